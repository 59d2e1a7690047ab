"""A model that does what the question says, and tells on stdout what it does."""

from __future__ import annotations

import asyncio
import itertools
import sys
from typing import TYPE_CHECKING, Any

from langchain_core.language_models.chat_models import BaseChatModel, agenerate_from_stream
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class ObedientModel(BaseChatModel):
    """Answer the last message.

    ``mute``: silence.  ``silent``: two tokens, then silence.  ``endless``: tokens without an
    end.  ``fail``: two tokens, then an error.  ``flaky``: the same at the first call, "good
    answer" at the next.  ``history``: what was said before.  Else: ``You said ...``.
    """

    calls: list[str] = []  # noqa: RUF012 - pydantic copies it

    @property
    def _llm_type(self) -> str:
        return "obedient"

    def _generate(self, *_: Any, **__: Any) -> ChatResult:
        msg = "only ainvoke is expected here"
        raise NotImplementedError(msg)

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages))

    async def _astream(
        self, messages: list[BaseMessage], *_: Any, **__: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        question = messages[-1].text
        self.calls.append(question)
        tell(f"asked {question}")
        try:
            for number, token in enumerate(self._tokens(question, messages)):
                yield ChatGenerationChunk(message=AIMessageChunk(content=token))
                if number < 5:
                    tell(f"made {number + 1}")
                await asyncio.sleep(0.01)  # the pace, for people and plots
            if question in {"mute", "silent"}:
                await asyncio.Event().wait()
            if question == "fail" or (question == "flaky" and self.calls.count("flaky") == 1):
                msg = "the line went dead"
                raise ConnectionError(msg)
        finally:
            tell(f"left {question}")

    def _tokens(self, question: str, messages: list[BaseMessage]) -> Iterator[str]:
        if question == "endless":
            return (f"{number} " for number in itertools.count())
        if question == "history":
            return iter([f"{message.type}={message.text}; " for message in messages])
        if question == "flaky" and self.calls.count("flaky") > 1:
            return iter(["good ", "answer"])
        if question in {"silent", "fail", "flaky"}:
            return iter(["one ", "two "])
        return iter(() if question == "mute" else ("You ", "said ", f"**{question}**."))


def tell(what: str) -> None:
    sys.stdout.write(f"MODEL {what}\n")  # in one piece: other threads tell something, too
    sys.stdout.flush()
