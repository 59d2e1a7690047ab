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

from queuestream import producers, stream
from queuestream._buffer import Buffer
from queuestream.errors import ConcurrentIterationError, RunStopped, StreamClosedError
from tests.support.schedule import explore, sample
from tests.support.scheduled_loop import ScheduledLoop
from tests.support.scheduled_queue import (
    Now,
    is_all_over,
    put_into_schedules,
    schedule_stream,
)
from tests.support.states import ALL_STATES, exhaust, visits_states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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


@pytest.fixture(autouse=True)
def _all_is_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(name: str, work: Callable[[], object]) -> None:
        Now.schedule.thread("run", lambda: after_a_point(work))

    put_into_schedules(monkeypatch)
    monkeypatch.setattr(producers, "start_daemon", start)


def after_a_point(work: Callable[[], object]) -> None:
    """Do what may not be the first of all; what goes before the first point is nobody's choice."""
    Now.schedule.point()
    work()


class _RunError(Exception):
    """The run's own."""


class Case:
    """A stream of a schedule.

    Args:
        schedule: The schedule.
        pair: The consumer, and what comes beside it.
        buffer_class: The buffer to test.
        is_short: Whether points are left out that make no difference, so that all states can be
            visited.
    """

    def __init__(
        self,
        schedule: Schedule,
        pair: tuple[str, str],
        buffer_class: type[Buffer[Any]] = Buffer,
        *,
        is_short: bool = False,
    ) -> None:
        Now.schedule, Now.is_short = schedule, is_short
        self.schedule = schedule
        self.consumer, self.other = pair
        self.received: list[str] = []
        self.intruded: list[str] = []  # what another consumer had of it
        self.end: BaseException | None = None
        self.loop: ScheduledLoop | None = None
        self.other_is_over = False
        self.other_ends = asyncio.Event()
        self.branch_is_over = False
        answer = self.answer = stream(self.run, "?", run_in="thread", maxsize=1)
        buffer = self.buffer = schedule_stream(answer, buffer_class)
        self.feed: Any = answer._call.feed  # type: ignore[union-attr]
        schedule.is_decided = lambda: buffer.is_closed and is_all_over(buffer)
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
                loop.may_be_cancelled = True
                schedule.thread("cancels", loop.cancel)
        if self.other == "close":
            schedule.thread("closes", lambda: after_a_point(answer.close))
        elif self.other == "its loop is closed":
            assert self.loop is not None
            self.loop.may_be_shut = True
            schedule.thread("closes the loop", self.loop.shut)
            schedule.thread("heir", lambda: self.inherit(iterable))
        elif self.other == "another next":
            schedule.thread("another", lambda: after_a_point(lambda: self.intrude(answer)))

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
            assert self.answer.result == "done"
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
                assert self.answer.result == "done"
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
            self.intruded.append(next(answer))
        except (ConcurrentIterationError, StopIteration):
            pass
        finally:
            self.other_is_over = True
            if self.loop is not None:
                with contextlib.suppress(RuntimeError):  # closed
                    self.loop.call_soon_threadsafe(self.other_ends.set)

    def check(self) -> None:
        received = "".join(self.received).split()
        came = received + [token.strip() for token in self.intruded]
        for part in (TOKENS, BRANCH):
            mine = [token for token in received if token[0] == part[0][0]]
            assert mine == sorted(mine), f"in disorder: {received}"
            mine = sorted(token for token in came if token[0] == part[0][0])
            assert mine == [token.strip() for token in part][: len(mine)], f"{came}"
        assert self.buffer.peak <= 1, "past maxsize"
        is_closed = self.answer._tokens.closed
        if isinstance(self.end, StreamClosedError):
            assert is_closed
        else:
            assert len(came) == 3, f"lost: {came}"
            if self.other == "the run fails":
                assert isinstance(self.end, _RunError)
            else:
                assert self.answer.result == "done"
        assert not self.buffer._getters.waiters
        assert not list.__len__(self.buffer._putters.waiters)
        self.answer.close()


def of(
    pair: tuple[str, str], buffer_class: type[Buffer[Any]] = Buffer, *, is_short: bool = False
) -> Any:
    """Return the case of a pair, for the explorer."""

    def case(schedule: Schedule) -> Callable[[], object]:
        return Case(schedule, pair, buffer_class, is_short=is_short).check

    return case


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_no_schedule_of_a_pair_loses_anything(pair: tuple[str, str]) -> None:
    """Promises 1 to 4 and 7: one that breaks only if two things interleave in one certain way."""
    count = explore(of(pair), delays=1)
    sample(of(pair), count=10, seed=1)
    print(f"{pair}: {count} schedules")
    assert count > 20, "where are the points?"


@pytest.mark.stress
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_no_wild_schedule_of_a_pair_loses_anything(pair: tuple[str, str]) -> None:
    """As above, with more that chance picks."""
    sample(of(pair), count=100, seed=1_000)


FEW_STATES = [("next", "nothing"), ("anext", "nothing")]
"""Pairs with no more than 10,000 states."""
MORE_STATES = [("next", "the run fails")]
"""One more."""


@visits_states
@pytest.mark.parametrize("pair", FEW_STATES, ids="-".join)
def test_no_state_that_a_pair_can_come_to_is_wrong(pair: tuple[str, str]) -> None:
    """Hazard: what needs more changes of threads than the explorers above try.

    All schedules over the boundaries of the lock, sleep, wake-ups, and what is done without the
    lock.
    """
    count = exhaust(of(pair, is_short=True))
    print(f"{pair}: {count} states")
    assert count > 500, "where are the points?"


@visits_states
@pytest.mark.stress
@pytest.mark.parametrize("pair", PAIRS if ALL_STATES else MORE_STATES, ids="-".join)
def test_no_state_of_many_that_a_pair_can_come_to_is_wrong(pair: tuple[str, str]) -> None:
    """As above.  All pairs: ``QUEUESTREAM_STATES=all tox -e stress -- -k of_many --timeout 0``."""
    count = exhaust(of(pair, is_short=True))
    print(f"{pair}: {count} states")
    assert count > 500, "where are the points?"


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


class EndsWithTheLastToken(Buffer[Any]):
    """Before the run has returned."""

    __slots__ = ()

    def put_now(self, item: Any) -> bool:
        return False

    def _append(self, item: Any) -> Iterable[Waiter]:
        woken = super()._append(item)
        if self.unfinished == len(TOKENS + BRANCH):
            self.shutdown(immediate=False)
        return woken


PLANTED = [
    (WakesNobodyAtTheEnd, ("next", "nothing")),
    (WakesNobodyAtTheEnd, ("anext", "close")),
    (DropsAtTheEnd, ("anext", "nothing")),
    (WakesNoPutter, ("next", "nothing")),
    (PassesNoWakeUpOn, ("anext", "its loop is closed")),
    (PassesNoWakeUpOn, ("apieces cancelled", "nothing")),
]


@pytest.mark.parametrize("planted, pair", PLANTED, ids=str)
def test_a_planted_bug_is_found(planted: type[Buffer[Any]], pair: tuple[str, str]) -> None:
    """The canary: an explorer that finds nothing may look at nothing."""
    with pytest.raises(AssertionError, match="repeated by"):
        explore(of(pair, planted), delays=2)


@visits_states
@pytest.mark.parametrize(
    "planted, pair",
    [
        *((planted, pair) for planted, pair in PLANTED if pair[1] != "its loop is closed"),
        (EndsWithTheLastToken, ("next", "nothing")),
        (EndsWithTheLastToken, ("anext", "nothing")),
    ],
    ids=str,
)
def test_a_state_that_is_wrong_is_found(planted: type[Buffer[Any]], pair: tuple[str, str]) -> None:
    """The canary of the states: it must come to those in which a planted bug shows."""
    with pytest.raises(AssertionError, match="repeated by"):
        exhaust(of(pair, planted, is_short=True))
