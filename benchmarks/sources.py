"""Models that cost nothing: they yield chunks that were made before the clock was started.

What is left to measure is LangChain's own work for each token, and what is added to it.
The chunks have ids, as a provider's have; without them LangChain would set one in the first
round and find it there in all others.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import Field, SkipValidation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from langchain_core.callbacks import (
        AsyncCallbackManagerForLLMRun,
        CallbackManagerForLLMRun,
    )

__all__ = [
    "AsyncIdleHandler",
    "IdleHandler",
    "PacedModel",
    "ReadyModel",
    "SilentModel",
    "TapHandler",
    "Timetable",
    "chunks_of",
    "texts_of",
]


def texts_of(count: int, mark: str = "t") -> list[str]:
    """Return so many tokens, each unlike the others."""
    return [f"{mark}{number} " for number in range(count)]


def chunks_of(texts: Sequence[str]) -> list[ChatGenerationChunk]:
    """Return a chunk for each text; any number of models may yield them."""
    return [
        ChatGenerationChunk(message=AIMessageChunk(content=text, id="chatcmpl-1")) for text in texts
    ]


class ReadyModel(BaseChatModel):
    """Yields chunks that are ready.  Make it with `ReadyModel.of`."""

    chunks: SkipValidation[list[ChatGenerationChunk]] = Field(repr=False)
    """Not in the repr, which LangChain makes for each run."""

    streaming: bool = False
    """Set for handlers that do not make a model stream by themselves."""

    @classmethod
    def of(cls, texts: Sequence[str], **fields: Any) -> Any:
        """Return a model that says these texts."""
        return cls(chunks=chunks_of(texts), **fields)

    @property
    def _llm_type(self) -> str:
        return "ready"

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        yield from self.chunks

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self.chunks:
            yield chunk

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        raise NotImplementedError("it was not asked to stream")


@dataclass
class Timetable:
    """When the producers of several paced streams speak.

    Each goes by the clock, and nobody wakes them: a thousand threads that are woken at once
    and ask for the GIL cost more than all that they do.
    """

    producers: int
    pace: float
    """Seconds from one token to the next."""
    count: int
    """The tokens of each."""
    begin: float = 0.0
    """The moment of the first token; 0 as long as not all are there."""
    arrived: list[object] = field(default_factory=list[object])
    """Grows by one with each producer that waits for its first token."""

    @property
    def look(self) -> float:
        """Seconds after which a producer looks again whether the beginning is known."""
        return min(0.1, 0.01 + 0.001 * self.producers)

    def fix(self) -> float:
        """Say when it begins; return the seconds to wait until all know."""
        self.begin = time.perf_counter() + 3 * self.look
        return 2 * self.look

    def enter(self) -> float:
        """Wait, as a producer, until the beginning is known, and return it."""
        self.arrived.append(None)
        while not self.begin:
            time.sleep(self.look)
        return self.begin


class PacedModel(ReadyModel):
    """Yields a ready chunk when it is due; one that is late makes no other late."""

    timetable: SkipValidation[Timetable] = Field(repr=False)
    number: int = 0
    """Which of the producers it is: they speak one after the other."""

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        plan = self.timetable
        due = plan.enter() + plan.pace * self.number / plan.producers
        for chunk in self.chunks:
            now = time.perf_counter()
            if now < due:
                time.sleep(due - now)
            due += plan.pace
            yield chunk
        # The end of a run is not to be measured with the tokens of others.
        time.sleep(max(0.0, due + plan.pace - time.perf_counter()))


class SilentModel(ReadyModel):
    """Never gives a token; waits for the first one until its task is cancelled."""

    reached: SkipValidation[list[object]] = Field(repr=False)
    """Grows by one with each run that waits."""

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        self.reached.append(None)
        await asyncio.get_running_loop().create_future()
        yield self.chunks[0]


class TapHandler(BaseCallbackHandler):
    """Makes a model stream inside ``invoke``, by having these two methods."""

    run_inline = True
    raise_error = True

    def tap_output_iter(self, run_id: Any, output: Iterator[Any]) -> Iterator[Any]:
        """Return ``output``."""
        return output

    def tap_output_aiter(self, run_id: Any, output: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Return ``output``."""
        return output


class IdleHandler(TapHandler):
    """Does nothing with each token: with it, ``invoke`` is the floor."""

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        """Do nothing."""


class AsyncIdleHandler(TapHandler):
    """Does nothing, in a coroutine that is awaited in place: the floor of ``ainvoke``."""

    async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        """Do nothing."""
