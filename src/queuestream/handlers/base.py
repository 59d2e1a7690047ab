"""`StreamHandler`: a LangChain callback handler that passes each token to a function.

Three things about LangChain decide how it is made (``tests/facts`` pins each):

- A model streams inside ``invoke`` only if a handler has ``tap_output_iter`` and
  ``tap_output_aiter``, whatever they do.
- Asynchronous runs look at ``handler.on_llm_new_token`` *before* they call it: a coroutine
  function is awaited; a plain one is called in place if the handler has ``run_inline``.
  Synchronous runs call it, and run a coroutine that comes back in a new event loop in
  another thread, swallowing its errors.  So what may wait is a `dual` method: a coroutine
  function where an asyncio loop runs in the calling thread, a plain function elsewhere.
- Synchronous code on a loop's own thread (an ``async def`` node that calls ``llm.invoke``)
  gets the coroutine function, too, and runs it on another loop.  That is how it is known.
  It *holds up* the loop, on which the consumer may be; so such a run, and what it starts in
  other threads and waits for, must not wait for anybody.

A run that is cancelled does not always report its end.  What is kept of runs beyond their
time is kept in weak sets: a run's id lives as long as LangChain has a use for it.
"""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from langchain_core.callbacks import BaseCallbackHandler

from queuestream._background import run_in_background
from queuestream._messages import text_of_chunk, text_of_result
from queuestream._wakeups import running_asyncio_loop
from queuestream.events import About

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
    from uuid import UUID

    from langchain_core.outputs import LLMResult

__all__ = ["StreamHandler", "dual"]


class dual:  # noqa: N801 - used as a decorator is
    """A method with two bodies, chosen where it is looked up.

    The coroutine's first argument is the loop on which it was looked up.  On another loop
    it was called by synchronous code that holds up the first one.
    """

    def __init__(
        self, plain: Callable[..., None], coroutine: Callable[..., Coroutine[Any, Any, None]]
    ) -> None:
        self._plain = plain
        self._coroutine = coroutine
        self.__doc__ = plain.__doc__

    def __get__(self, handler: StreamHandler | None, owner: type | None = None) -> Any:
        if handler is None:
            return self._plain
        loop = running_asyncio_loop()
        if loop is None or not handler.may_wait:
            return MethodType(self._plain, handler)
        return partial(self._coroutine, handler, loop)


def _start_of(kind: str) -> Any:
    """A method for LangChain to call at the start of each run of a kind."""

    def on_start(
        self: StreamHandler,
        serialized: Any = None,
        *_args: Any,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **details: Any,
    ) -> None:
        """LangChain calls this at the start of a run."""
        if self._has_held_up and parent_run_id in self._held_up:
            self._held_up.add(run_id)
        about = About(run_id, parent_run_id, serialized, details)
        for item in self._run_started(kind, run_id, about):
            self._announce(item, run_id)

    async def on_start_in_task(
        self: StreamHandler,
        loop: object,
        serialized: Any = None,
        *_args: Any,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **details: Any,
    ) -> None:
        if running_asyncio_loop() is not loop:
            self._has_held_up = True
            self._held_up.add(run_id)
        about = About(run_id, parent_run_id, serialized, details)
        for item in self._run_started(kind, run_id, about):
            await self._announce_in_task(item, loop, run_id)

    return dual(on_start, on_start_in_task)


class StreamHandler(BaseCallbackHandler):
    """Calls ``on_token(token)`` for each token, under ``invoke`` and all its relatives.

    Pass it as ``config={"callbacks": [handler]}`` or in a model's constructor.  The model
    needs no ``streaming=True``.  Tokens are never empty; a model that does not stream
    gives its whole text as one.

    A plain ``on_token`` is called in place, in order, and holds up the run (on asynchronous
    runs: the loop).  A coroutine function is awaited on asynchronous runs; on synchronous
    ones the run waits while it runs to its end on the loop where the handler was made, if
    that is running, else on a background loop of ours.

    >>> from langchain_core.language_models import FakeListChatModel
    >>> tokens = []
    >>> model = FakeListChatModel(responses=["Hi!"])
    >>> _ = model.invoke("Hello", {"callbacks": [StreamHandler(tokens.append)]})
    >>> tokens
    ['H', 'i', '!']

    Args:
        on_token: The function to call; kept as the attribute ``on_token``.  A handler is one.
        raise_error: Whether an exception of ``on_token`` ends the run.  If not, LangChain
            logs it and goes on.

    Raises:
        TypeError: If ``on_token`` is not callable.

    **Thread safety**: ``on_token`` is called on whatever thread or loop the run is on, and
    from several at once where runs go on side by side.
    """

    run_inline = True

    def __init__(self, on_token: Callable[[str], object], *, raise_error: bool = False) -> None:
        if not callable(on_token):
            raise TypeError(f"on_token must be a function of one token, not {on_token!r}")
        self.on_token: Any = on_token
        self._set_up(
            raise_error=raise_error,
            may_wait=(
                on_token.may_wait if isinstance(on_token, StreamHandler) else _is_async(on_token)
            ),
        )

    def _set_up(self, *, raise_error: bool, may_wait: bool) -> None:
        self.raise_error = raise_error
        self.may_wait = may_wait  # whether dual methods are coroutine functions on a loop
        self._home = running_asyncio_loop()
        # Open model runs that had a token, and the one that had the last.
        self._streamed: WeakSet[UUID] = WeakSet()
        self._latest: UUID | None = None
        self._held_up: WeakSet[UUID] = WeakSet()  # runs that must not wait, see above
        self._has_held_up = False

    def tap_output_iter(self, run_id: UUID, output: Iterator[Any]) -> Iterator[Any]:
        """Return ``output``.  Its being here makes models stream."""
        return output

    def tap_output_aiter(self, run_id: UUID, output: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Return ``output``.  Its being here makes models stream."""
        return output

    # -- from LangChain's calls to runs ----------------------------------------------------

    on_chat_model_start = _start_of("llm")
    on_llm_start = _start_of("llm")
    on_chain_start = _start_of("chain")
    on_tool_start = _start_of("tool")
    on_retriever_start = _start_of("retriever")

    def _ended(self, *args: Any, run_id: UUID, **kwargs: Any) -> None:
        """LangChain calls this at the end of each run."""
        self._run_ended(run_id, None)

    on_chain_end = _ended
    on_tool_end = _ended
    on_retriever_end = _ended

    def _failed(self, error: BaseException, *, run_id: UUID | None = None, **kwargs: Any) -> None:
        """LangChain calls this when a run fails."""
        if run_id is not None:
            self._run_ended(run_id, error)

    on_llm_error = _failed
    on_chain_error = _failed
    on_tool_error = _failed
    on_retriever_error = _failed

    def _run_started(self, kind: str, run_id: UUID, about: About) -> Sequence[object]:
        """A run of a kind (llm, chain, tool, retriever) starts; answers what to announce."""
        return ()

    def _announce(self, item: object, run_id: UUID) -> None:
        """Announce something at a run's start, from a thread."""

    async def _announce_in_task(self, item: object, loop: object, run_id: UUID) -> None:
        """Announce something at a run's start, in a callback that was looked up on ``loop``."""

    def _run_ended(self, run_id: UUID, error: BaseException | None) -> None:
        """A run ends."""
        self._streamed.discard(run_id)
        self._latest = None

    # -- from LangChain's calls to text ----------------------------------------------------

    def _new_token(
        self, token: object, *, chunk: Any = None, run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """LangChain calls this for each token; you may, too, without a run id.

        Where an asyncio loop runs in the calling thread, it may be a coroutine function: if
        ``on_token`` is one, or waits for a consumer.  Direct calls must then be awaited.
        """
        if not self._note_token(run_id):
            return
        if self._has_held_up and run_id in self._held_up:
            self._deliver_at_once(text_of_chunk(token, chunk))
        else:
            self._deliver(text_of_chunk(token, chunk), run_id)

    async def _new_token_in_task(
        self,
        loop: object,
        token: object,
        *,
        chunk: Any = None,
        run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        if self._note_token(run_id):
            await self._deliver_in_task(text_of_chunk(token, chunk), loop, run_id)

    on_llm_new_token: Any = dual(_new_token, _new_token_in_task)

    def _note_token(self, run_id: UUID | None) -> bool:
        """Take note of a run that streams; whether its tokens are to be delivered."""
        if run_id is not None and run_id is not self._latest:
            self._latest = run_id
            self._streamed.add(run_id)
        return True

    def _llm_end(self, response: LLMResult, *, run_id: UUID | None = None, **kwargs: Any) -> None:
        """LangChain calls this at the end of a model run."""
        try:
            if text := self._whole_text(response, run_id):
                if self._has_held_up and run_id in self._held_up:
                    self._deliver_at_once(text)
                else:
                    self._deliver(text, run_id)
        finally:
            if run_id is not None:
                self._run_ended(run_id, None)

    async def _llm_end_in_task(
        self, loop: object, response: LLMResult, *, run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        try:
            if text := self._whole_text(response, run_id):
                await self._deliver_in_task(text, loop, run_id)
        finally:
            if run_id is not None:
                self._run_ended(run_id, None)

    on_llm_end: Any = dual(_llm_end, _llm_end_in_task)

    def _whole_text(self, response: LLMResult, run_id: UUID | None) -> str:
        """The text of a run that did not stream: a cache hit, an old-style model."""
        return "" if run_id is None or run_id in self._streamed else text_of_result(response)

    # -- from text to on_token -------------------------------------------------------------

    def _deliver(self, text: str, run_id: UUID | None = None) -> None:
        """Deliver a text from a thread; empty ones go no further."""
        if not text:
            return
        waiting = self.on_token(text)
        if inspect.isawaitable(waiting):
            if running_asyncio_loop() is not None:
                if inspect.iscoroutine(waiting):
                    waiting.close()
                raise TypeError(
                    f"on_token {self.on_token!r} returned an awaitable where nothing can await "
                    "it: make it a coroutine function (async def)"
                )
            self._run_from_thread(waiting)

    async def _deliver_in_task(self, text: str, loop: object, run_id: UUID | None = None) -> None:
        """Deliver a text from a callback that was looked up on ``loop``."""
        if running_asyncio_loop() is not loop:
            await asyncio.to_thread(self._deliver_at_once, text)
        elif text:
            waiting = self.on_token(text)
            if inspect.isawaitable(waiting):
                await waiting

    def _deliver_at_once(self, text: str) -> None:
        """Deliver a text, from a thread, for a run that holds up a loop."""
        if text and self.may_wait and self._home is not None and self._home.is_running():
            raise RuntimeError(
                "on_token is to run on the loop where the handler was made, but synchronous "
                "code may hold up that very loop: call the model with ainvoke there, or invoke "
                "it in a thread (asyncio.to_thread)"
            )
        self._deliver(text)

    def _run_from_thread(self, waiting: Awaitable[object]) -> None:
        async def finish() -> object:
            return await waiting

        if self._home is not None and self._home.is_running():
            asyncio.run_coroutine_threadsafe(finish(), self._home).result()
        else:
            run_in_background(finish())

    # Handlers nest: a handler is a valid on_token.

    def _call(self, token: str) -> None:
        """Pass a token on."""
        self._deliver(token)

    async def _call_in_task(self, loop: object, token: str) -> None:
        await self._deliver_in_task(token, loop)

    __call__: Any = dual(_call, _call_in_task)


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object whose call is async
    )
