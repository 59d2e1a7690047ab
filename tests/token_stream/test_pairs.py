"""Every pair of what can happen to a stream at one time, in all schedules of a small case.

Two producers (the run, and a branch of it in a thread of LangChain's) with three tokens, a
queue for one, and a consumer; beside it whatever else may come at any moment.  Looked for: a
token that is lost, doubled or reordered, somebody who waits for ever, more than one buffered.

Consumers on loops are threads of the schedule (`ScheduledLoop`): their tasks, waiters and
wake-ups are the real ones, and so is all of the stream but LangChain.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from janus import SyncQueueShutDown

from queuestream import _buffer, _doorbell, _turns, producers, stream
from queuestream._buffer import Buffer
from queuestream._wakeups import ThreadWaiter
from queuestream.errors import ConcurrentIterationError, RunStopped, StreamClosedError
from tests.support.schedule import ScheduledDeque, ScheduledList, ScheduledLocal, explore, sample
from tests.support.scheduled_loop import ScheduledLoop

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream import TokenStream
    from queuestream._wakeups import Waiter
    from tests.support.schedule import Schedule

CONSUMERS = ["next", "anext", "anext cancelled", "pieces", "apieces", "apieces cancelled"]
OTHERS = ["nothing", "close", "another next", "the run fails", "closed by the run"]
PAIRS = [
    *itertools.product(CONSUMERS, OTHERS),
    *((consumer, "its loop is closed") for consumer in CONSUMERS if consumer.startswith("a")),
]
TOKENS = ["a1 ", "a2 "]
BRANCH = ["b1 "]


class Now:
    """The schedule that runs now, for what is made deep in the package."""

    schedule: Schedule


@pytest.fixture(autouse=True)
def _all_is_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sleeper(ThreadWaiter):
        __slots__ = ()

        def __init__(self) -> None:
            super().__init__()
            self._gate = Now.schedule.lock(locked=True)  # type: ignore[assignment]

    class Bell(_doorbell.Doorbell):
        __slots__ = ()

        def __init__(self, loop: Any) -> None:
            super().__init__(loop)
            self._wishes = ScheduledDeque(Now.schedule)

    def start(name: str, work: Callable[[], object]) -> None:
        Now.schedule.thread("run", work)

    monkeypatch.setattr(_buffer, "ThreadWaiter", Sleeper)
    monkeypatch.setattr(_doorbell, "Doorbell", Bell)
    monkeypatch.setattr(_doorbell, "_here", ScheduledLocal(bell=lambda: None))
    monkeypatch.setattr(_turns, "_here", ScheduledLocal(turn=_turns._Turn))
    monkeypatch.setattr(producers, "start_daemon", start)


class _RunError(Exception):
    """The run's own."""


class Case:
    """A stream of a schedule."""

    def __init__(
        self, schedule: Schedule, pair: tuple[str, str], buffer_class: type[Buffer[Any]] = Buffer
    ) -> None:
        Now.schedule = schedule
        self.schedule = schedule
        self.consumer, self.other = pair
        self.received: list[str] = []
        self.end: BaseException | None = None
        self.loop: ScheduledLoop | None = None
        self.other_is_over = False
        self.other_ends = asyncio.Event()
        self.branch_is_over = False
        answer = self.answer = stream(self.run, "?", run_in="thread", maxsize=1)
        tokens = answer._tokens
        buffer = self.buffer = buffer_class(1, low=0)
        tokens.buffer = buffer
        tokens._sync_q.buffer = buffer  # type: ignore[attr-defined]
        tokens._async_q.buffer = buffer  # type: ignore[attr-defined]
        tokens._get = lambda waiter: buffer.try_get(waiter, SyncQueueShutDown)  # type: ignore[assignment]
        answer._reader._buffer = buffer
        feed: Any = answer._call.feed  # type: ignore[union-attr]
        feed._buffer = buffer
        self.feed = feed
        buffer._lock = schedule.lock()  # type: ignore[assignment]
        buffer.items = ScheduledDeque(schedule)
        buffer._putters.waiters = ScheduledList(schedule)
        answer.__enter__()
        schedule.thread("branch", self.branch)
        pieces = self.consumer in ("pieces", "apieces", "apieces cancelled")
        iterable: Any = answer.pieces() if pieces else answer
        if self.consumer in ("next", "pieces"):
            schedule.thread("consumer", lambda: self.consume(iterable))
        else:
            loop = self.loop = ScheduledLoop(
                schedule, "consumer", lambda: self.consume_in_task(iterable)
            )
            if self.consumer.endswith("cancelled"):
                loop.is_quiet = False
                schedule.thread("cancels", loop.cancel)
        if self.other == "close":
            schedule.thread("closes", answer.close)
        elif self.other == "its loop is closed":
            assert self.loop is not None
            self.loop.is_quiet = False
            schedule.thread("closes the loop", self.loop.shut)
            schedule.thread("heir", lambda: self.inherit(iterable))
        elif self.other == "another next":
            schedule.thread("another", lambda: self.intrude(answer))

    # The run, and its branch.

    def run(self, _: str, callbacks: list[Any]) -> str:
        for token in TOKENS:
            self.feed.on_llm_new_token(token)
        self.schedule.point(lambda: self.branch_is_over)
        if self.other == "closed by the run":
            self.answer.close()
        if self.other == "the run fails":
            raise _RunError
        return "done"

    def branch(self) -> None:
        try:
            for token in BRANCH:
                self.feed.on_llm_new_token(token)
        except RunStopped:
            assert self.answer._tokens.closed
        self.branch_is_over = True

    # The consumer, and one that is not to be.

    def consume(self, iterable: Any) -> None:
        try:
            for token in iterable:
                self.received.append(token)
        except (StreamClosedError, _RunError) as error:
            self.end = error
        except ConcurrentIterationError:  # the other one was first
            self.schedule.point(lambda: self.other_is_over)
            self.consume(iterable)

    async def consume_in_task(self, iterable: Any) -> None:
        is_refused = False
        while True:
            try:
                while is_refused and not self.other_is_over:
                    await self.other_ends.wait()
                async for token in iterable:
                    self.received.append(token)
                return
            except asyncio.CancelledError:  # noqa: PERF203 - it goes on after it
                continue  # and wants the rest all the same
            except (StreamClosedError, _RunError) as error:
                self.end = error
                return
            except ConcurrentIterationError:
                is_refused = True

    def inherit(self, iterable: Any) -> None:
        """Go on for a consumer whose loop was closed, once its task is dropped."""
        assert self.loop is not None
        self.schedule.point(self.loop.is_closed)
        self.loop.forget()
        if self.end is None:
            self.consume(iterable)

    def intrude(self, answer: TokenStream[str]) -> None:
        """Ask for one token, while another may be waiting."""
        try:
            self.received.append(next(answer))
        except (ConcurrentIterationError, StopIteration):
            pass
        finally:
            self.other_is_over = True
            if self.loop is not None:
                with contextlib.suppress(RuntimeError):  # closed
                    self.loop.call_soon_threadsafe(self.other_ends.set)

    def check(self) -> None:
        came = "".join(self.received)
        for part in (TOKENS, BRANCH):
            mine = [token for token in came.split(" ") if token and token[0] == part[0][0]]
            assert mine == [token.strip() for token in part][: len(mine)], f"{came!r}"
        assert self.buffer.peak <= 1, "past maxsize"
        is_closed = self.answer._tokens.closed
        if isinstance(self.end, StreamClosedError):
            assert is_closed
        else:
            assert len(came.split()) == 3, f"lost: {came!r}"
            if self.other == "the run fails":
                assert isinstance(self.end, _RunError)
            else:
                assert self.answer.result == "done"
        assert not self.buffer._getters.waiters
        assert not list.__len__(self.buffer._putters.waiters)
        self.answer.close()


def of(pair: tuple[str, str], buffer_class: type[Buffer[Any]] = Buffer) -> Any:
    """Return the case of a pair, for the explorer."""

    def case(schedule: Schedule) -> Callable[[], object]:
        return Case(schedule, pair, buffer_class).check

    return case


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_no_schedule_of_a_pair_loses_anything(pair: tuple[str, str]) -> None:
    """Promises 1 to 4 and 7: one that breaks only if two things interleave in one certain way."""
    count = explore(of(pair), delays=1)
    sample(of(pair), count=10, seed=1)
    print(f"{pair}: {count} schedules")
    assert count > 20, "where are the points?"


@pytest.mark.stress
@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_no_wild_schedule_of_a_pair_loses_anything(pair: tuple[str, str]) -> None:
    """As above, with more that chance picks."""
    sample(of(pair), count=250, seed=1_000)


class PassesNoWakeUpOn(Buffer[Any]):
    __slots__ = ()

    def _leave(self, waiter: Waiter) -> None:
        pass


class WakesNobodyAtTheEnd(Buffer[Any]):
    __slots__ = ()

    def _wake_all_at_end(self, dropped: list[object]) -> list[Waiter]:
        return []


class DropsAtTheEnd(Buffer[Any]):
    __slots__ = ()

    def shutdown(self, *, immediate: bool) -> None:
        super().shutdown(immediate=True)


class WakesNoPutter(Buffer[Any]):
    __slots__ = ()

    def _putters_for_free_slot(self) -> list[Waiter]:
        return super()._putters_for_free_slot() if self.is_shutdown else []


PLANTED = [
    (WakesNobodyAtTheEnd, ("next", "nothing")),
    (WakesNobodyAtTheEnd, ("anext", "close")),
    (DropsAtTheEnd, ("anext", "nothing")),
    (WakesNoPutter, ("next", "nothing")),
    (PassesNoWakeUpOn, ("anext", "its loop is closed")),
    (PassesNoWakeUpOn, ("apieces cancelled", "nothing")),
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("planted, pair", PLANTED, ids=str)
def test_a_planted_bug_is_found(planted: type[Buffer[Any]], pair: tuple[str, str]) -> None:
    """The canary: an explorer that finds nothing may look at nothing."""
    with pytest.raises(AssertionError, match="repeated by"):
        explore(of(pair, planted), delays=2)
