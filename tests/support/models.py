"""Real LangChain models without a network, which a test drives token by token.

Each model has a `Record` of what it did and may have a `Gate` that it passes before
each token.  A token is *produced* when the model gives it to LangChain (promise 2).
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Sequence  # noqa: TC003 - pydantic needs it at run time
from typing import TYPE_CHECKING, Any, cast

from langchain_core.language_models import LLM, BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field

from tests.support.gates import Gate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from langchain_core.callbacks import (
        AsyncCallbackManagerForLLMRun,
        CallbackManagerForLLMRun,
    )
    from langchain_core.messages.ai import UsageMetadata

__all__ = [
    "AsyncOnlyChatModel",
    "Record",
    "ScriptedChatModel",
    "ScriptedLLM",
    "SyncOnlyChatModel",
    "WholeAnswerChatModel",
    "seen_by_model",
    "silent_model",
    "tokens",
    "usage",
]

seen_by_model: contextvars.ContextVar[str] = contextvars.ContextVar("seen_by_model", default="")
"""A context variable whose value the models record at each call (promise 6)."""


def tokens(count: int, start: int = 0) -> list[str]:
    """Return `count` tokens, each unlike the others, with a space at the end."""
    return [f"t{index} " for index in range(start, start + count)]


def usage(prompt: int, completion: int, **details: Mapping[str, int]) -> UsageMetadata:
    """Return usage as LangChain has it; newer versions say that all details must be there."""
    counts = {
        "input_tokens": prompt,
        "output_tokens": completion,
        "total_tokens": prompt + completion,
        **details,
    }
    return cast("UsageMetadata", counts)


class Record:
    """What a model did, counted under a lock, so that any thread can read it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._produced = 0
        self._calls = 0
        self._finalized = 0
        self.threads: set[str] = set()
        """The names of the threads on which tokens were made."""
        self.loops: set[asyncio.AbstractEventLoop] = set()
        """The loops on which tokens were made."""
        self.context: list[str] = []
        """The value of `seen_by_model` at each call."""
        self.prompts: list[list[BaseMessage]] = []
        """What each call was asked."""

    @property
    def produced(self) -> int:
        """How many tokens were given to LangChain, over all calls."""
        with self._changed:
            return self._produced

    @property
    def calls(self) -> int:
        """How many answers were begun."""
        with self._changed:
            return self._calls

    @property
    def open(self) -> int:
        """How many answers were begun and neither ended nor finalised: zero means nothing leaks."""
        with self._changed:
            return self._calls - self._finalized

    def wait_until_produced(self, count: int, within: float = 5.0) -> None:
        """Block the thread until `count` tokens were produced."""
        with self._changed:
            reached = self._changed.wait_for(lambda: self._produced >= count, within)
            assert reached, f"{self._produced} of {count} tokens within {within} s"

    def wait_until_finalized(self, calls: int = 1, within: float = 5.0) -> None:
        """Block the thread until at least so many answers were begun, and none is open."""
        with self._changed:
            ended = self._changed.wait_for(lambda: calls <= self._calls == self._finalized, within)
            assert ended, f"{self._finalized} of {self._calls} answers ended within {within} s"

    def note_call(self, prompt: list[BaseMessage]) -> None:
        """Count an answer that begins."""
        with self._changed:
            self._calls += 1
            self.context.append(seen_by_model.get())
            self.prompts.append(list(prompt))
            self._changed.notify_all()

    def note_token(self) -> None:
        """Count a token that is about to be given to LangChain."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        with self._changed:
            self._produced += 1
            self.threads.add(threading.current_thread().name)
            if loop is not None:
                self.loops.add(loop)
            self._changed.notify_all()

    def note_finalized(self) -> None:
        """Count an answer that has ended, by whatever way."""
        with self._changed:
            self._finalized += 1
            self._changed.notify_all()


class _ScriptedModel(BaseChatModel):
    """What the chat models below have in common; without streaming of its own."""

    tokens: Sequence[str | AIMessageChunk] = ()
    gate: Gate | None = None
    """Passed before each token, and before an answer that is given whole."""
    failure: BaseException | None = None
    """Raised in place of the token at `fail_at`."""
    fail_at: int = -1
    """A position in `tokens`; their number means after the last."""
    fail_calls: int = -1
    """Only the first so many calls fail; -1 means all."""
    record: Record = Field(default_factory=Record)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _chunks(self) -> list[ChatGenerationChunk]:
        # Made anew for each call: LangChain writes the run's id into them.
        return [
            ChatGenerationChunk(
                message=AIMessageChunk(content=token)
                if isinstance(token, str)
                else token.model_copy(deep=True)
            )
            for token in self.tokens
        ]

    def _fail_if_due(self, position: int, call: int) -> None:
        if (
            self.failure is not None
            and position == self.fail_at
            and (self.fail_calls < 0 or call <= self.fail_calls)
        ):
            raise self.failure

    def _whole_answer(self) -> ChatResult:
        message = AIMessageChunk(content="")
        for position, chunk in enumerate(self._chunks()):
            self._fail_if_due(position, self.record.calls)
            message = message + chunk.message  # type: ignore[assignment] # a chunk again
        self._fail_if_due(len(self.tokens), self.record.calls)
        self.record.note_token()
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.record.note_call(messages)
        try:
            if self.gate is not None:
                self.gate.wait()
            return self._whole_answer()
        finally:
            self.record.note_finalized()

    def _stream_script(self, messages: list[BaseMessage]) -> Iterator[ChatGenerationChunk]:
        self.record.note_call(messages)
        call = self.record.calls
        try:
            for position, chunk in enumerate(self._chunks()):
                if self.gate is not None:
                    self.gate.wait()
                self._fail_if_due(position, call)
                self.record.note_token()
                yield chunk
            self._fail_if_due(len(self.tokens), call)
        finally:
            self.record.note_finalized()

    async def _astream_script(
        self, messages: list[BaseMessage]
    ) -> AsyncIterator[ChatGenerationChunk]:
        self.record.note_call(messages)
        call = self.record.calls
        try:
            for position, chunk in enumerate(self._chunks()):
                if self.gate is not None:
                    await self.gate.wait_async()
                self._fail_if_due(position, call)
                self.record.note_token()
                yield chunk
            self._fail_if_due(len(self.tokens), call)
        finally:
            self.record.note_finalized()


class WholeAnswerChatModel(_ScriptedModel):
    """A chat model that does not stream: its answer comes at once, with no token (fact 7)."""

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.record.note_call(messages)
        try:
            if self.gate is not None:
                await self.gate.wait_async()
            return self._whole_answer()
        finally:
            self.record.note_finalized()


class SyncOnlyChatModel(_ScriptedModel):
    """A chat model with `_stream` only: under `ainvoke`, LangChain runs it in an executor."""

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        return self._stream_script(messages)


class AsyncOnlyChatModel(_ScriptedModel):
    """A chat model with `_astream` only: its `invoke` raises `NotImplementedError`."""

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        msg = "this model is asynchronous only"
        raise NotImplementedError(msg)

    def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        return self._astream_script(messages)


class ScriptedChatModel(SyncOnlyChatModel):
    """A chat model that streams its `tokens` both ways.

    A token is a text, or a ready-made `AIMessageChunk` for list content, tool calls,
    reasoning or usage.

    Example:
        >>> model = ScriptedChatModel(tokens=["a", "b"], gate=Gate(1))
        >>> answer = model.stream("?")
        >>> next(answer).content, model.record.produced
        ('a', 1)
        >>> model.gate.release()
        >>> next(answer).content, model.record.open
        ('b', 1)
        >>> list(answer)[-1].chunk_position, model.record.open
        ('last', 0)

    """

    def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        return self._astream_script(messages)


def silent_model(*before: str) -> ScriptedChatModel:
    """Return a model that gives the tokens `before` and is then silent until its gate is opened."""
    return ScriptedChatModel(tokens=[*before, "never"], gate=Gate(len(before)))


class ScriptedLLM(LLM):
    """An old-style model: text in, text out, and no token (fact 7)."""

    tokens: list[str] = Field(default_factory=list)
    gate: Gate | None = None
    record: Record = Field(default_factory=Record)

    @property
    def _llm_type(self) -> str:
        return "scripted-llm"

    def _call(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        self.record.note_call([])
        try:
            if self.gate is not None:
                self.gate.wait()
            self.record.note_token()
            return "".join(self.tokens)
        finally:
            self.record.note_finalized()
