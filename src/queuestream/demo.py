"""A chat model that needs no network: it recites a passage at a natural pace.

`DemoChatModel` is a real LangChain chat model in every other respect, so what works with
it works with a provider's: it goes into chains, agents and graphs, answers ``invoke`` as
well as ``stream``, and obeys ``stop=``.  ``queuestream demo`` streams it, and ``queuestream
run queuestream.demo:model "any text"`` reaches it by its import path.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any

from langchain_core.language_models.chat_models import (
    BaseChatModel,
    agenerate_from_stream,
    generate_from_stream,
)
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import Field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from langchain_core.callbacks import (
        AsyncCallbackManagerForLLMRun,
        CallbackManagerForLLMRun,
    )

__all__ = ["PASSAGE", "DemoChatModel", "model"]

PASSAGE = """\
A river does not hurry and does not wait. It takes what the hills give
it, a little at a time, and hands it on downstream, where someone else
is already holding out a bucket.

When the bucket is full, the water stands; when the bucket is emptied,
it runs again. Nothing is lost on the way, and nothing arrives twice. If
the person with the bucket goes home, there is no reason for the rain to
go on falling on their account.

That is all there is to a stream of tokens: a source that can be told to
wait, a reader who takes one piece after the other, and an end that
always comes.
"""


class DemoChatModel(BaseChatModel):
    """Recite a passage token by token, whatever the question.

    Example:
        >>> DemoChatModel(passage="A short answer.", pace=0).invoke("Anything?").text
        'A short answer.'
    """

    passage: str = PASSAGE
    """What it says."""

    pace: float = Field(default=0.03, ge=0, allow_inf_nan=False)
    """Seconds from one token to the next; with 0 they come in one burst."""

    @property
    def _llm_type(self) -> str:
        return "queuestream-demo"

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        # LangChain calls on_llm_new_token for each chunk that comes out of here.
        for token in self._tokens(stop):
            if self.pace:
                time.sleep(self.pace)  # it plays a server that takes its time
            yield _chunk(token)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for token in self._tokens(stop):
            if self.pace:
                await asyncio.sleep(self.pace)
            yield _chunk(token)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, run_manager, **kwargs))

    def _tokens(self, stop: Sequence[str] | None) -> list[str]:
        # Words, the long ones in pieces, as a tokenizer makes them.
        ends = [self.passage.find(text) for text in stop or () if text in self.passage]
        said = self.passage[: min(ends, default=len(self.passage))]
        return re.findall(r"\s*\S{1,6}|\s+$", said)


def _chunk(token: str) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=token))


model = DemoChatModel()
"""One at the default pace, for ``queuestream run queuestream.demo:model``."""
