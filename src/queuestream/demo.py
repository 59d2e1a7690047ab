"""A chat model that needs no network: it recites a passage at a natural pace.

`DemoChatModel` is a real LangChain chat model in every other respect, so what works with
it works with a provider's: it goes into chains, agents and graphs, answers ``invoke`` as
well as ``stream``, tells its usage, and obeys ``stop=``.  ``queuestream demo`` streams it,
``queuestream serve`` serves it, and ``queuestream run queuestream.demo:model "any text"``
reaches it by its import path.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, cast

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
    from langchain_core.messages.ai import UsageMetadata

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
        for chunk in self._chunks(messages, stop):
            if self.pace:
                time.sleep(self.pace)  # it plays a server that takes its time
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._chunks(messages, stop):
            if self.pace:
                await asyncio.sleep(self.pace)
            yield chunk

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

    def _chunks(
        self, messages: Sequence[BaseMessage], stop: Sequence[str] | None
    ) -> Iterator[ChatGenerationChunk]:
        ends = [self.passage.find(text) for text in stop or () if text in self.passage]
        tokens = _tokens(self.passage[: min(ends, default=len(self.passage))])
        asked, said = sum(len(_tokens(message.text)) for message in messages), len(tokens)
        counts = {"input_tokens": asked, "output_tokens": said, "total_tokens": asked + said}
        usage = cast("UsageMetadata", counts)  # newer versions say that all details must be there
        for number, token in enumerate(tokens or [""], 1):
            told = usage if number >= said else None  # with the last one
            yield ChatGenerationChunk(message=AIMessageChunk(content=token, usage_metadata=told))


def _tokens(text: str) -> list[str]:
    """Words, the long ones in pieces, as a tokenizer makes them."""
    return re.findall(r"\s*\S{1,6}|\s+$", text)


model: DemoChatModel = DemoChatModel()
"""One at the default pace, for ``queuestream run queuestream.demo:model``."""
