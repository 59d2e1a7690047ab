"""`StreamHandler`: a LangChain callback handler that passes each token to a function.

What comes from LangChain is taken apart here: which model run a token is of, its text, the
end.  What is handed on is decided by three hooks, which a ready-made handler overrides; each
answers the texts that are to be delivered now, and none of them delivers or waits::

    start of a model run --> _texts_at_start ---+
    token                --> _texts_of_token ---+--> _deliver --> on_token
    end, error           --> _texts_at_end -----+

Handlers nest: where ``on_token`` is a handler, it is told of starts, tokens and ends with
the ids of their runs, so that it keeps these apart, and nothing of them stays in it.

A cancelled run does not always report its end, so what is kept of each is kept weakly.  A
handler that holds something back watches the task, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

from queuestream._background import in_daemon_thread
from queuestream._buffer import members
from queuestream._messages import text_of_chunk, text_of_result
from queuestream._token_queue import logger
from queuestream._turns import running_asyncio_loop
from queuestream.events import About
from queuestream.handlers._dual import dual, held_up, note_held_up
from queuestream.handlers._hand_over import finish_before_the_loop_ends
from queuestream.handlers._listener import Listener

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from uuid import UUID

    from langchain_core.outputs import LLMResult

__all__ = ["StreamHandler", "awaited", "is_async"]

_NOBODY = object(), None
_DIRECT_CALL = About(None, None)


class StreamHandler(Listener):
    """Calls ``on_token(token)`` for each token, under ``invoke`` and all its relatives.

    Pass it as ``config={"callbacks": [handler]}`` or in a model's constructor.  The model
    needs no ``streaming=True``.  Tokens are never empty; a model that does not stream
    gives its whole text as one.

    A plain ``on_token`` is called in place, in order, and holds up the run (on asynchronous
    runs: the loop).  A coroutine function is awaited on asynchronous runs; on synchronous
    ones the run waits while it runs to its end on the loop where the handler was made, if
    that is running, else on a background loop of ours.  Synchronous code on that loop's own
    thread would wait for itself: there it is refused, with a ``RuntimeError``.  (A bare
    ``model.batch`` there is not noticed, as its runs begin in other threads: use ``abatch``.)

    >>> from langchain_core.language_models import FakeListChatModel
    >>> tokens = []
    >>> model = FakeListChatModel(responses=["Hi!"])
    >>> _ = model.invoke("Hello", {"callbacks": [StreamHandler(tokens.append)]})
    >>> tokens
    ['H', 'i', '!']

    A class of your own may override LangChain's methods, ``on_llm_new_token`` say, with ``def``
    or ``async def``, and call ``super()``.  What a ``def`` calls of it is done in place, or,
    where it has to be awaited, when the method returns.  A token that is given to ``super()``
    changed is delivered so; one that is not given to it is not delivered.  As the ``on_token``
    of another handler, it gets texts, and these methods are not called.

    Args:
        on_token: The function to call; kept as the attribute ``on_token``.  A handler is one.
        raise_error: Whether an exception of ``on_token`` ends the run.  If not, LangChain
            logs it and goes on.

    Raises:
        TypeError: If ``on_token`` is not callable.

    **Thread safety**: ``on_token`` is called on whatever thread or loop the run is on, and
    from several at once where runs go on side by side.
    """

    holds_back: bool = False  # whether a token may be delivered later than it came

    def __init__(self, on_token: Callable[[str], object], *, raise_error: bool = False) -> None:
        if not callable(on_token):
            raise TypeError(f"on_token must be a function of one token, not {on_token!r}")
        self.on_token: Any = on_token
        inner = on_token if isinstance(on_token, StreamHandler) else None
        if inner is not None:
            self.holds_back = self.holds_back or inner.holds_back
        self._set_up(
            raise_error=raise_error or (inner is not None and inner.raise_error),
            may_wait=is_async(on_token) if inner is None else inner.may_wait,
        )

    def _set_up(self, *, raise_error: bool, may_wait: bool) -> None:
        super()._set_up(raise_error=raise_error, may_wait=may_wait)
        # Open model runs that had a token, and the one that had the last.
        self._streamed: WeakSet[UUID] = WeakSet()
        self._latest_streamed: UUID | None = None
        # What the hooks keep of each model run, and of direct calls, which have no run id.
        self._states: WeakKeyDictionary[UUID, Any] = WeakKeyDictionary()
        self._direct: list[Any] = []  # one at most
        # Whose the last token was, and what is kept of it.  A pair, so that it changes at once.
        self._latest: tuple[object, Any] = _NOBODY
        # Tasks in which a model run goes on whose end was not reported yet, see `_watch_task`.
        self._goes_on_in: dict[UUID, dict[asyncio.Task[Any], Callable[..., None]]] = {}

    # -- hooks: what is delivered when -------------------------------------------------------

    def _new_state(self, about: About) -> Any:
        """What the other hooks keep of a model run."""
        return None

    def _texts_at_start(self, state: Any) -> Iterable[str]:
        """What to deliver at the start of a model run."""
        return ()

    def _texts_of_token(self, state: Any, token: str) -> Iterable[str]:
        """What to deliver when a token has come, which is never empty."""
        return (token,)

    def _texts_at_end(self, state: Any, response: LLMResult | None) -> Iterable[str]:
        """What to deliver at the end of a model run; it has no response if it failed."""
        return ()

    # -- from LangChain's calls to runs ----------------------------------------------------

    def _start(self, kind: str, about: About) -> None:
        if kind == "llm":
            self._watch_task(about.run_id, is_whole_run=True)
            self._begin(about)

    async def _start_in_task(self, kind: str, about: About, loop: object) -> None:
        if kind == "llm":
            self._watch_task(about.run_id, is_whole_run=True)
            await self._begin_in_task(about, loop)

    def _run_ended(self, run_id: UUID, error: BaseException | None) -> None:
        super()._run_ended(run_id, error)
        self._streamed.discard(run_id)
        self._latest_streamed = None
        self._latest = _NOBODY

    # -- from LangChain's calls to text ----------------------------------------------------

    def _new_token(
        self, token: object, *, chunk: Any = None, run_id: UUID | None = None, **details: Any
    ) -> None:
        """LangChain calls this for each token; you may, too, without a run id.

        Where an asyncio loop runs in the calling thread, it may be a coroutine function: if
        ``on_token`` is one, or waits for a consumer.  Direct calls must then be awaited.
        """
        self.note_token(run_id)
        self._receive(text_of_chunk(token, chunk), run_id, details)

    async def _new_token_in_task(
        self,
        loop: object,
        token: object,
        *,
        chunk: Any = None,
        run_id: UUID | None = None,
        **details: Any,
    ) -> None:
        self.note_token(run_id)
        await self._receive_in_task(text_of_chunk(token, chunk), run_id, loop, details)

    on_llm_new_token: Any = dual(_new_token, _new_token_in_task)

    def note_token(self, run_id: UUID | None) -> None:
        """Take note of a run that streams: its whole text at its end is not news."""
        if run_id is not None and run_id is not self._latest_streamed:
            self._streamed.add(run_id)
            self._latest_streamed = run_id
            self._watch_task(run_id, is_whole_run=False)

    def _llm_end(self, response: LLMResult, *, run_id: UUID | None = None, **details: Any) -> None:
        """LangChain calls this at the end of a model run."""
        try:
            self._receive(self._whole_text(response, run_id), run_id, details)
        finally:
            try:
                self._finish(run_id, response)
            finally:
                self._forget(run_id, None)

    async def _llm_end_in_task(
        self, loop: object, response: LLMResult, *, run_id: UUID | None = None, **details: Any
    ) -> None:
        try:
            text = self._whole_text(response, run_id)
            await self._receive_in_task(text, run_id, loop, details)
        finally:
            try:
                await self._finish_in_task(run_id, loop, response)
            finally:
                self._forget(run_id, None)

    on_llm_end: Any = dual(_llm_end, _llm_end_in_task)

    def _llm_error(
        self, error: BaseException, *, run_id: UUID | None = None, **details: Any
    ) -> None:
        """LangChain calls this when a model run fails."""
        try:
            with _logging(self, Exception):  # the run's own error is the one that counts
                self._finish(run_id, None)
        finally:
            self._forget(run_id, error)

    async def _llm_error_in_task(
        self, loop: object, error: BaseException, *, run_id: UUID | None = None, **details: Any
    ) -> None:
        try:
            await self._finish_abandoned(run_id, loop)
        finally:
            self._forget(run_id, error)

    on_llm_error: Any = dual(_llm_error, _llm_error_in_task)

    def _whole_text(self, response: LLMResult | None, run_id: UUID | None) -> str:
        """The text of a run that did not stream: a cache hit, an old-style model."""
        if run_id is None or run_id in self._streamed or response is None:
            return ""
        return text_of_result(response)

    def _forget(self, run_id: UUID | None, error: BaseException | None) -> None:
        """A model run has ended, and what was left of it is delivered."""
        if run_id is None:
            return
        self._stop_watching(run_id)
        self._run_ended(run_id, error)

    def _watch_task(self, run_id: UUID | None, *, is_whole_run: bool) -> None:
        """See to it that nothing of a cancelled run is held back.

        LangChain reports no end of a model whose task is cancelled.  The end of the task that
        called it tells, and, sooner where that goes on, the cancellation of the one that the
        tokens come from.
        """
        if not self.holds_back or run_id is None or run_id in held_up:
            return
        task = asyncio.current_task() if running_asyncio_loop() is not None else None
        tasks = self._goes_on_in.setdefault(run_id, {}) if task is not None else {}
        if task is not None and task not in tasks:
            callback = tasks[task] = partial(self._task_ended, run_id, is_whole_run=is_whole_run)
            task.add_done_callback(callback)

    def _stop_watching(self, run_id: UUID) -> None:
        for task, callback in self._goes_on_in.pop(run_id, {}).items():
            task.remove_done_callback(callback)

    def _task_ended(self, run_id: UUID, task: asyncio.Task[Any], *, is_whole_run: bool) -> None:
        # It may as well go on in another task: nothing is forgotten, and what is held back
        # comes a little early.
        if not is_whole_run and not task.cancelled():
            self._goes_on_in.get(run_id, {}).pop(task, None)
            return
        self._stop_watching(run_id)
        loop = task.get_loop()
        if not self.may_wait:
            with _logging(self, Exception, SystemExit):  # which would end the loop, here
                self._finish(run_id, None)
        elif not loop.is_closed():
            finish_before_the_loop_ends(loop, partial(self._finish_abandoned, run_id, loop))

    async def _finish_abandoned(self, run_id: UUID | None, loop: object) -> None:
        with _logging(self, Exception, SystemExit):
            await self._finish_in_task(run_id, loop, None)

    # -- from text to texts: what a handler above this one calls, too ------------------------

    def _begin(self, about: About) -> None:
        """A model run starts."""
        state = self._begun(about)
        if isinstance(self.on_token, StreamHandler):
            self.on_token._begin(about)  # noqa: SLF001 - a handler's
        for text in self._texts_at_start(state):
            self._deliver(text, about.run_id)

    async def _begin_in_task(self, about: About, loop: object) -> None:
        state = self._begun(about)
        if isinstance(self.on_token, StreamHandler):
            await self.on_token._begin_in_task(about, loop)  # noqa: SLF001 - a handler's
        for text in self._texts_at_start(state):
            await self._deliver_in_task(text, about.run_id, loop)

    def _receive(self, token: str, run_id: UUID | None, details: dict[str, Any]) -> None:
        """A token has come; it may be empty."""
        if token:
            for text in self._texts_of_token(self._state_of(run_id, details), token):
                self._deliver(text, run_id)

    async def _receive_in_task(
        self, token: str, run_id: UUID | None, loop: object, details: dict[str, Any]
    ) -> None:
        if token:
            for text in self._texts_of_token(self._state_of(run_id, details), token):
                await self._deliver_in_task(text, run_id, loop)

    def _finish(self, run_id: UUID | None, response: LLMResult | None) -> None:
        """A model run has ended, or failed if there is no response."""
        try:
            for text in self._take_last(run_id, response):
                self._deliver(text, run_id)
        finally:
            if isinstance(self.on_token, StreamHandler):
                self.on_token._finish(run_id, response)  # noqa: SLF001 - a handler's

    async def _finish_in_task(
        self, run_id: UUID | None, loop: object, response: LLMResult | None
    ) -> None:
        try:
            for text in self._take_last(run_id, response):
                await self._deliver_in_task(text, run_id, loop)
        finally:
            if isinstance(self.on_token, StreamHandler):
                await self.on_token._finish_in_task(  # noqa: SLF001 - a handler's
                    run_id, loop, response
                )

    def _begun(self, about: About) -> Any:
        """The state of a run that begins."""
        state = self._new_state(about)
        if about.run_id is None:
            self._direct = [state]
        else:
            self._states[about.run_id] = state
        return state

    def _state_of(self, run_id: UUID | None, details: dict[str, Any]) -> Any:
        """The state of a run, also of one whose start was not reported."""
        latest = self._latest
        if latest[0] is run_id:
            return latest[1]
        if run_id is None:
            state = self._direct[0] if self._direct else self._begun(_DIRECT_CALL)
        elif run_id in self._states:
            state = self._states[run_id]
        else:
            state = self._begun(About(run_id, details.get("parent_run_id"), None, details))
        self._latest = run_id, state
        return state

    def _open_state(self, run_id: UUID | None) -> Any:
        """The state of a run that goes on; None if none does."""
        if run_id is None:
            return self._direct[0] if self._direct else None
        return self._states.get(run_id)

    def _open_states(self) -> list[Any]:
        """The states of all runs that go on."""
        states = [self._states.get(run_id) for run_id in members(self._states)]
        return [*self._direct, *(state for state in states if state is not None)]

    def _take_last(self, run_id: UUID | None, response: LLMResult | None) -> Iterable[str]:
        """What is left of a run, whose state is not needed any more."""
        self._latest = _NOBODY
        try:
            state = self._direct.pop() if run_id is None else self._states.pop(run_id)
        except (IndexError, KeyError):
            return ()
        return self._texts_at_end(state, response)

    # -- from texts to on_token ------------------------------------------------------------

    def _deliver(self, text: str, run_id: UUID | None) -> None:
        """Call ``on_token`` from a thread."""
        if isinstance(self.on_token, StreamHandler):
            self.on_token._receive(text, run_id, {})  # noqa: SLF001 - a handler's
            return
        waiting = self.on_token(text)
        if inspect.isawaitable(waiting):
            if not self.may_wait and running_asyncio_loop() is not None:
                if inspect.iscoroutine(waiting):
                    waiting.close()
                raise TypeError(
                    f"on_token {self.on_token!r} returned an awaitable where nothing can await "
                    "it: make it a coroutine function (async def)"
                )
            coroutine = waiting if inspect.iscoroutine(waiting) else awaited(waiting)
            self.finish_in_thread(coroutine, run_id)

    async def _deliver_in_task(self, text: str, run_id: UUID | None, loop: Any) -> None:
        """Call ``on_token`` in a callback that was looked up on ``loop``."""
        if isinstance(self.on_token, StreamHandler):
            await self.on_token._receive_in_task(text, run_id, loop, {})  # noqa: SLF001 - as above
        elif running_asyncio_loop() is not loop:  # on LangChain's, in a thread of its own
            note_held_up(self, loop, run_id)
            await in_daemon_thread(partial(self._deliver, text, run_id))
        else:
            waiting = self.on_token(text)
            if inspect.isawaitable(waiting):
                await waiting

    # Handlers nest: a handler is a valid on_token.

    def _call(self, token: str) -> None:
        """Pass a token on."""
        self._receive(token, None, {})

    async def _call_in_task(self, loop: object, token: str) -> None:
        await self._receive_in_task(token, None, loop, {})

    __call__: Any = dual(_call, _call_in_task)


@contextlib.contextmanager
def _logging(handler: StreamHandler, *kinds: type[BaseException]) -> Iterator[None]:
    try:
        yield
    except kinds:
        logger.exception("%s: what was left of a run that failed", type(handler).__name__)


async def awaited(waiting: Any) -> object:
    """A coroutine of anything that can be awaited."""
    return await waiting


def is_async(function: object) -> bool:
    """Whether a function is known to return what must be awaited."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object whose call is async
    )
