"""`BatchStreamHandler`: several tokens as one."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections import deque
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from queuestream._background import RUN_THREAD, on_background_loop, start_daemon
from queuestream._checks import checked_count, checked_seconds
from queuestream._token_queue import logger
from queuestream._turns import running_asyncio_loop
from queuestream.handlers._dual import dual
from queuestream.handlers._turns import Turns, may_wait, without_turns
from queuestream.handlers.base import StreamHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from langchain_core.outputs import LLMResult

    from queuestream.events import About

__all__ = ["BatchStreamHandler"]


class _Batch:
    """What waits of one run.

    Attributes:
        run_id: The run's id, as long as LangChain has a use for it.
        tokens: The tokens that wait.
        since: When the first of them came, by the monotonic clock.
        alarm: What a timer is to do, if one is set.
        turns: Orders the deliveries of the run and of its timer.
        error: What a timed delivery raised, for the run to raise.
        is_over: Whether nothing of the run comes any more, and so nothing will raise it.
    """

    __slots__ = ("__weakref__", "alarm", "error", "is_over", "run_id", "since", "tokens", "turns")

    def __init__(self, run_id: UUID | None) -> None:
        self.run_id = run_id
        self.tokens: deque[str] = deque()
        self.since = 0.0
        self.alarm: _Alarm | None = None
        self.turns = Turns()
        self.error: BaseException | None = None
        self.is_over = False

    def add(self, token: str) -> None:
        if not self.tokens:
            self.since = monotonic()
        self.tokens.append(token)

    def take(self, most: int | None = None) -> Iterable[str]:
        """What waits, joined; nothing if nothing does.  More may come meanwhile, and be taken."""
        taken: list[str] = []
        with contextlib.suppress(IndexError):
            for _ in range(most or len(self.tokens)):
                taken.append(self.tokens.popleft())  # noqa: PERF401 - what was taken is kept
        return ("".join(taken),) if taken else ()

    def stop_alarm(self) -> None:
        if self.alarm is not None:
            self.alarm.stop()
            self.alarm = None

    def raise_late(self, token: str | None = None) -> None:
        """Raise what a timed delivery raised; the token that meets it is kept no more."""
        error, self.error = self.error, None
        if error is not None:
            if token is not None and self.tokens and self.tokens[-1] is token:
                self.tokens.pop()
            raise error


class BatchStreamHandler(StreamHandler):
    """Passes on ``batch_size`` tokens as one.

    What is left is delivered at the end of the run, also if that fails or is cancelled.
    Runs that go on at the same time have batches of their own.

    >>> from langchain_core.language_models import FakeListChatModel
    >>> batches = []
    >>> handler = BatchStreamHandler(batches.append, batch_size=4)
    >>> _ = FakeListChatModel(responses=["Hello!"]).invoke("Hi", {"callbacks": [handler]})
    >>> batches
    ['Hell', 'o!']

    Args:
        on_token: Called with each batch; see `StreamHandler`.
        batch_size: The number of tokens in a batch; the last one may have fewer.
        max_delay: Seconds after which a token is delivered, though its batch be incomplete;
            never, if None.  Where the model is silent that happens without it: on the loop
            of an asynchronous run, else in a thread.  Synchronous code on a loop's own thread
            holds that up, too.
        raise_error: As of `StreamHandler`.  An error in a delivery that ``max_delay`` brought
            about ends the run at its next token.

    Raises:
        TypeError: If ``on_token`` is not callable, ``batch_size`` no integer or ``max_delay``
            no number.
        ValueError: If ``batch_size`` is less than 1 or ``max_delay`` negative.

    **Cancellation**: a token that is cancelled while it waits for a late delivery to end is kept.

    **Thread safety**: as of `StreamHandler`; deliveries of one run come one after the other.
    """

    holds_back: bool = True

    def __init__(
        self,
        on_token: Callable[[str], object],
        batch_size: int = 5,
        *,
        max_delay: float | None = None,
        raise_error: bool = False,
    ) -> None:
        super().__init__(on_token, raise_error=raise_error)
        self.batch_size: int = checked_count("batch_size", batch_size, least=1)
        self.max_delay: float | None = checked_seconds("max_delay", max_delay)

    def _new_state(self, about: About) -> _Batch:
        return _Batch(about.run_id)

    def _texts_at_end(self, state: _Batch, response: LLMResult | None) -> Iterable[str]:
        return state.take()

    # -- by hand -----------------------------------------------------------------------------

    def _flush(self) -> None:
        """Deliver what waits, of all runs.

        Where an asyncio loop runs in the calling thread and ``on_token`` is a coroutine
        function, this is one, too, and must be awaited.
        """
        for state in self._open_states():
            with state.turns.in_thread():
                for text in state.take():
                    self._deliver(text, state.run_id)

    async def _flush_in_task(self, loop: object) -> None:
        for state in self._open_states():
            async with state.turns.in_task():
                for text in state.take():
                    await self._deliver_in_task(text, state.run_id, loop)

    flush: Any = dual(_flush, _flush_in_task)

    # -- a run, its timer and whoever calls flush take turns to deliver --------------------------
    #
    # A token is kept before its turn comes, so that it is not lost if the run is cancelled.

    def _receive(self, token: str, run_id: UUID | None, details: dict[str, Any]) -> None:
        if not token:
            return
        state: _Batch = self._state_of(run_id, details)
        state.raise_late()
        state.add(token)
        if self._only_waits(state):
            return
        with state.turns.in_thread(waits=may_wait(self, run_id)):
            state.raise_late(token)
            for text in self._take_complete(state):
                self._deliver(text, run_id)
            self._set_alarm(state)

    async def _receive_in_task(
        self, token: str, run_id: UUID | None, loop: object, details: dict[str, Any]
    ) -> None:
        if not token:
            return
        state: _Batch = self._state_of(run_id, details)
        state.raise_late()
        state.add(token)
        if self._only_waits(state):
            return
        async with state.turns.in_task(waits=running_asyncio_loop() is loop):
            state.raise_late(token)
            for text in self._take_complete(state):
                await self._deliver_in_task(text, run_id, loop)
            self._set_alarm(state)

    def _only_waits(self, state: _Batch) -> bool:
        """Whether a token brought no delivery about, and no alarm.

        A turn costs more than all the rest.
        """
        return self.max_delay is None and len(state.tokens) < self.batch_size

    def _take_complete(self, state: _Batch) -> Iterable[str]:
        while len(state.tokens) >= self.batch_size:
            yield from state.take(self.batch_size)

    def _finish(self, run_id: UUID | None, response: LLMResult | None) -> None:
        state: _Batch | None = self._open_state(run_id)
        if state is None:
            super()._finish(run_id, response)
            return
        with state.turns.in_thread(waits=may_wait(self, run_id)):
            state.stop_alarm()
            state.is_over = True
            super()._finish(run_id, response)
        state.raise_late()

    async def _finish_in_task(
        self, run_id: UUID | None, loop: object, response: LLMResult | None
    ) -> None:
        state: _Batch | None = self._open_state(run_id)
        if state is None:
            await super()._finish_in_task(run_id, loop, response)
            return
        async with state.turns.in_task(waits=running_asyncio_loop() is loop):
            state.stop_alarm()
            state.is_over = True
            await super()._finish_in_task(run_id, loop, response)
        state.raise_late()

    # -- with max_delay, what waits is delivered by a timer, too ---------------------------------

    def _set_alarm(self, state: _Batch) -> None:
        """See to it that what waits does not wait too long.  In turn.

        One alarm at a time: it finds out for itself whether what it was set for still waits.
        """
        if self.max_delay is None or not state.tokens:
            return
        if state.alarm is not None and not state.alarm.is_lost:
            return
        delay = max(0.0, state.since + self.max_delay - monotonic())
        context = without_turns()
        loop = running_asyncio_loop()
        if loop is not None:
            time_is_up = partial(self._time_is_up, state, loop)
            state.alarm = _Alarm(lambda: context.run(time_is_up))
            state.alarm.set(delay)
            return

        def deliver() -> None:
            try:
                context.run(self._deliver_late, state)
            except BaseException as error:  # the run is stopped; nobody would hear of it here
                state.error = error

        alarm = _Alarm(partial(start_daemon, f"{RUN_THREAD}'s late batch", deliver))
        state.alarm = alarm
        on_background_loop(partial(alarm.set, delay), lambda _: None)

    def _time_is_up(self, state: _Batch, loop: asyncio.AbstractEventLoop) -> None:
        if not self.may_wait:
            self._deliver_late(state)
            return
        task = loop.create_task(self._deliver_late_in_task(state, loop))
        _late.add(task)
        task.add_done_callback(_late.discard)

    def _deliver_late(self, state: _Batch) -> None:
        with state.turns.in_thread():
            try:
                for text in self._take_late(state):
                    self._deliver(text, state.run_id)
            except BaseException as error:
                self._note_late(state, error)
            self._set_alarm(state)

    async def _deliver_late_in_task(self, state: _Batch, loop: object) -> None:
        async with state.turns.in_task():
            try:
                for text in self._take_late(state):
                    await self._deliver_in_task(text, state.run_id, loop)
            except (asyncio.CancelledError, GeneratorExit):
                raise
            except BaseException as error:
                self._note_late(state, error)
            self._set_alarm(state)

    def _take_late(self, state: _Batch) -> Iterable[str]:
        assert self.max_delay is not None
        state.alarm = None
        return state.take() if state.since + self.max_delay <= monotonic() else ()

    def _note_late(self, state: _Batch, error: BaseException) -> None:
        """A late delivery has failed.

        What is no Exception (SystemExit) is always the run's, and must not end a loop; but for
        Ctrl-C, which nobody wants to wait for a silent model.
        """
        if isinstance(error, KeyboardInterrupt) and _is_main_thread():
            raise error
        if not state.is_over and (self.raise_error or not isinstance(error, Exception)):
            state.error = error
        else:
            logger.error("%s: a late delivery failed", type(self).__name__, exc_info=error)


class _Alarm:
    """What a timer is to do, once; nothing if it was stopped before that.

    A timer cannot be taken back from any thread.  It need not be, as it keeps nothing then.
    """

    __slots__ = ("_pid", "_work")

    def __init__(self, work: Callable[[], object]) -> None:
        self._work: Callable[[], object] | None = work
        self._pid = os.getpid()

    @property
    def is_lost(self) -> bool:
        """Whether its timer is that of the parent of a fork."""
        return self._pid != os.getpid()

    def set(self, delay: float) -> None:
        """Set the timer, on the loop that runs here."""
        nothing = contextvars.Context()  # else it keeps the caller's
        asyncio.get_running_loop().call_later(delay, self._ring, context=nothing)

    def stop(self) -> None:
        self._work = None

    def _ring(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


_late: set[asyncio.Task[None]] = set()  # a loop refers to its tasks only weakly
