"""All schedules of small cases: over the boundaries of the buffer's lock and of sleep, and
over the operations on what is used without the lock, the items and the line of putters.

Between two such points a thread touches nothing that another may change.  A lost wake-up
shows as a schedule in which nobody can go on; see `tests.support.schedule`.  `test_pairs.py` has
the operations that most users know; here are those beside them, too: `join`, what is put past the
end, slots that are held, items that become stale, putters that are woken together.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from janus import SyncQueueEmpty, SyncQueueFull, SyncQueueShutDown

from queuestream._buffer import Buffer, Stale
from queuestream.mixed_queue import AsyncFace, SyncFace
from tests.support.schedule import explore, sample
from tests.support.scheduled_loop import ScheduledLoop
from tests.support.scheduled_queue import (
    Now,
    length,
    put_into_schedules,
    schedule_buffer,
    with_a_point,
)
from tests.support.states import ALL_STATES, exhaust, visits_states

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream._wakeups import Waiter
    from tests.support.schedule import Schedule

BufferClass = type[Buffer[Any]]
CaseOf: TypeAlias = "Callable[[BufferClass, Schedule], Callable[[], object]]"
"""Adds the threads of a case to a schedule; what it returns looks at the outcome."""


@pytest.fixture(autouse=True)
def _all_is_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    put_into_schedules(monkeypatch)


class Case:
    """A queue of a schedule, and what its threads got."""

    def __init__(
        self, schedule: Schedule, buffer_class: BufferClass, maxsize: int, low: int | None = None
    ) -> None:
        self.schedule = Now.schedule = schedule
        buffer_class = with_a_point(buffer_class, is_joined=True)  # type: ignore[arg-type]
        self.buffer: Buffer[Any] = buffer_class(maxsize, low)
        schedule_buffer(self.buffer)
        self.queue = SyncFace(self.buffer)
        self.got: dict[str, list[Any]] = {}
        self.not_put: list[Any] = []
        self.most: float = 0
        self.gone: float = inf
        """How many items are not in use any more, of those that were got."""

    def producer(self, *items: Any, timeout: float | None = None) -> None:
        def body() -> None:
            for item in items:
                try:
                    self.queue.put(item, timeout=timeout)
                except (SyncQueueFull, SyncQueueShutDown):
                    self.not_put.append(item)
                in_use = max(0, len(self.all_got()) - self.gone)
                self.most = max(self.most, length(self.buffer.items) + in_use)

        name = f"puts {items}" if timeout is None else f"puts {items} or gives up"
        self.schedule.thread(name, body)

    def consumer(
        self, name: str, count: int = 1_000, timeout: float | None = None, *, done: bool = False
    ) -> None:
        got = self.got.setdefault(name, [])

        def body() -> None:
            try:
                for _ in range(count):
                    got.append(self.queue.get(timeout=timeout))
                    if done:
                        self.queue.task_done()
            except SyncQueueEmpty:
                pass
            except SyncQueueShutDown:
                got.append("end")

        self.schedule.thread(name, body)

    def all_got(self) -> list[Any]:
        return [item for got in self.got.values() for item in got if item != "end"]

    def conserves(self, *items: Any) -> None:
        """Each item is got, or was refused, or is still there: once."""
        where = Counter([*self.all_got(), *self.not_put, *self.buffer.items])
        assert where == Counter(items), f"{where} of {items}"
        for got in self.got.values():
            for producer in "ab":
                numbers = [item for item in got if item[0] == producer]
                assert numbers == sorted(numbers), f"{got} is out of order"


def two_and_two(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    case = Case(schedule, buffer_class, maxsize=1)
    case.producer("a1", "a2")
    case.producer("b1")
    case.consumer("c", 2)
    case.consumer("d", 1)

    def check() -> None:
        case.conserves("a1", "a2", "b1")
        assert not case.buffer.items
        assert case.most <= 1, "past maxsize"

    return check


def get_gives_up(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    case = Case(schedule, buffer_class, maxsize=1)
    case.consumer("gives up", 1, timeout=1)
    case.consumer("waits", 1)
    case.producer("a1", "a2")

    def check() -> None:
        case.conserves("a1", "a2")
        assert len(case.got["waits"]) == 1

    return check


def put_gives_up(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    case = Case(schedule, buffer_class, maxsize=1)
    case.queue.put("a0")
    case.producer("a1", timeout=1)
    case.producer("b1")
    case.consumer("c", 2)
    return lambda: case.conserves("a0", "a1", "b1")


def shutdown_and_all(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    case = Case(schedule, buffer_class, maxsize=1)
    case.producer("a1", "a2")
    case.consumer("c")
    case.consumer("d")
    schedule.thread("shuts down", case.queue.shutdown)

    def check() -> None:
        case.conserves("a1", "a2")
        assert not case.buffer.items, "an item that was put is not got"

    return check


def closing_and_all(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    case = Case(schedule, buffer_class, maxsize=1)
    case.producer("a1")
    case.consumer("c", done=True)
    schedule.thread("joins", case.queue.join)
    schedule.thread("closes", lambda: case.queue.shutdown(immediate=True))

    def check() -> None:
        assert case.got["c"] in (["end"], ["a1", "end"])
        assert not case.buffer.items, "dropped too late"

    return check


def past_the_end(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    case = Case(schedule, buffer_class, maxsize=1)

    def run() -> None:
        case.queue.put("a1")
        case.buffer.put_past_end("a2")
        case.buffer.put_past_end("a3")
        case.queue.shutdown()

    schedule.thread("runs", run)
    case.consumer("c")

    def check() -> None:
        case.conserves("a1", "a2", "a3")
        assert not case.buffer.items, "an item that was put is not got"

    return check


def joining(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    case = Case(schedule, buffer_class, maxsize=0)
    case.queue.put("a1")
    case.queue.put("b1")
    seen = []

    def work() -> None:
        case.queue.get()
        case.queue.task_done()

    schedule.thread("works", work)
    schedule.thread("works, too", work)

    def join() -> None:
        case.queue.join()
        seen.append(case.buffer.unfinished)

    schedule.thread("joins", join)

    def check() -> None:
        assert seen == [0]

    return check


def half_empty(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    case = Case(schedule, buffer_class, maxsize=2, low=1)
    case.producer("a1", "a2", "a3")
    case.producer("b1", timeout=1)
    case.producer("b2")
    case.consumer("c", 4)

    def check() -> None:
        assert Counter([*case.all_got(), *case.not_put, *case.buffer.items]) == Counter(
            ["a1", "a2", "a3", "b1", "b2"]
        )
        assert case.most <= 2, "past maxsize"

    return check


def past_the_end_of_others(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    case = Case(schedule, buffer_class, maxsize=1)
    case.queue.put("b0")

    def run() -> None:
        case.buffer.put_past_end("a1")
        case.queue.shutdown()

    schedule.thread("runs", run)
    case.producer("b1")
    case.consumer("c")

    def check() -> None:
        case.conserves("a1", "b0", "b1")
        assert not case.buffer.items, "an item that was put is not got"

    return check


def one_put_and_cancelled(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    """With a second put, that one would wake whom the first forgets."""
    case = Case(schedule, buffer_class, maxsize=1)

    async def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            case.got["cancelled"].append(await AsyncFace(case.buffer).get())

    case.got["cancelled"] = []
    loop = ScheduledLoop(schedule, "cancelled", work)
    loop.may_be_cancelled = True
    schedule.thread("cancels", loop.cancel)
    case.consumer("c", 1)
    case.producer("a1")

    def end() -> None:
        schedule.point(is_last=True)
        assert case.all_got(), "somebody waits though there is an item"
        case.queue.shutdown()

    schedule.thread("ends", end)
    return lambda: case.conserves("a1")


def joining_and_cancelled(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    case = Case(schedule, buffer_class, maxsize=0)
    case.queue.put("a1")

    async def join() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await AsyncFace(case.buffer).join()
            assert not case.buffer.unfinished

    loop = ScheduledLoop(schedule, "joins", join)
    loop.may_be_cancelled = True
    schedule.thread("cancels", loop.cancel)
    schedule.thread("joins, too", case.queue.join)
    schedule.thread("works", case.queue.task_done)
    return lambda: case.conserves("a1")


def stale(
    buffer_class: BufferClass, schedule: Schedule, *, is_alone: bool = False
) -> Callable[[], object]:
    case = Case(schedule, buffer_class, maxsize=1)
    case.queue.put("a0")
    asked: list[bool] = []

    def put(waiter: Waiter | None) -> Any:
        return case.buffer.try_put("a1", waiter, SyncQueueShutDown, lambda: bool(asked))

    def produce() -> None:
        try:
            case.buffer.wait_in_thread(put, None, SyncQueueFull)
        except Stale:
            case.not_put.append("a1")

    def make_stale() -> None:
        schedule.point(step="request")
        asked.append(True)
        case.buffer.recheck_putters()

    schedule.thread("puts what is stale", produce)
    schedule.thread("makes it stale", make_stale)
    if is_alone:
        return lambda: case.conserves("a0", "a1")
    case.producer("b1", timeout=1)
    case.consumer("c", 1)
    return lambda: case.conserves("a0", "a1", "b1")


def stale_and_full(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    return stale(buffer_class, schedule, is_alone=True)


def held(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    case = Case(schedule, buffer_class, maxsize=1)
    case.buffer.hold()
    case.producer("a1", "a2")
    case.producer("b1", timeout=1)
    case.consumer("c", 2)
    got = case.got["c"]
    case.gone = 0

    def let_go() -> None:
        for number in range(2):
            schedule.point(lambda number=number: len(got) > number)  # type: ignore[misc]
            case.gone += 1
            case.buffer.let_go(1)

    schedule.thread("lets go", let_go)

    def check() -> None:
        case.conserves("a1", "a2", "b1")
        assert case.most <= 1, "past maxsize"

    return check


def held_meanwhile(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    case = Case(schedule, buffer_class, maxsize=1)
    case.producer("a1")
    case.producer("b1")
    got = case.got["c"] = []

    def get() -> None:
        for _ in range(2):
            got.append(case.queue.get())
            case.buffer.let_go(1)

    def hold() -> None:
        case.buffer.hold(1)
        case.buffer.let_go(1)

    schedule.thread("c", get)
    schedule.thread("holds", hold)

    def check() -> None:
        case.conserves("a1", "b1")
        assert not case.buffer.held

    return check


def woken_together(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    case = Case(schedule, buffer_class, maxsize=2, low=0)
    case.queue.put("a1")
    case.queue.put("a2")
    case.producer("b1", timeout=1)
    case.producer("b2")
    case.consumer("c", 3)

    def check() -> None:
        assert len(case.got["c"]) == 3
        assert Counter([*case.all_got(), *case.not_put, *case.buffer.items]) == Counter(
            ["a1", "a2", "b1", "b2"]
        )
        assert case.most <= 2, "past maxsize"

    return check


EXHAUSTED: dict[CaseOf, int] = {
    get_gives_up: 1,
    put_gives_up: 1,
    past_the_end: 2,
    joining: 1,
    closing_and_all: 1,
}
"""How many turns are taken away in the cases that are small enough to run all schedules."""
SAMPLED: list[CaseOf] = [two_and_two, shutdown_and_all, half_empty, *EXHAUSTED]


def of(
    case: CaseOf, buffer_class: BufferClass = Buffer, *, is_short: bool = False
) -> Callable[[Schedule], Callable[[], object]]:
    """Return a case for the explorer."""

    def of_schedule(schedule: Schedule) -> Callable[[], object]:
        Now.is_short = is_short
        return case(buffer_class, schedule)

    return of_schedule


@pytest.mark.parametrize("case", EXHAUSTED, ids=lambda case: case.__name__)
def test_no_schedule_loses_an_item_or_a_wake_up(case: CaseOf) -> None:
    """A wake-up or an item that is lost only if threads interleave in one certain way."""
    count = explore(of(case), preemptions=EXHAUSTED[case])
    print(f"{case.__name__}: {count} schedules")


@pytest.mark.parametrize("case", SAMPLED, ids=lambda case: case.__name__)
def test_no_wild_schedule_loses_an_item_or_a_wake_up(case: CaseOf) -> None:
    """As above, where it takes more turns at certain places than can be tried in order."""
    sample(of(case), count=300, seed=1)


FEW_STATES: list[CaseOf] = [
    joining,
    joining_and_cancelled,
    one_put_and_cancelled,
    past_the_end,
    stale_and_full,
]
"""Some with no more than 3,000 states."""
MORE_STATES: list[CaseOf] = [closing_and_all, woken_together]
"""Some with no more than 9,000."""
MOST_STATES: list[CaseOf] = [
    get_gives_up,
    put_gives_up,
    past_the_end_of_others,
    stale,
    held,
    held_meanwhile,
]
"""The others, with up to 70,000."""


@visits_states
@pytest.mark.parametrize("case", FEW_STATES, ids=lambda case: case.__name__)
def test_no_state_that_a_case_can_come_to_is_wrong(case: CaseOf) -> None:
    """Hazard: what needs more changes of threads than the explorers above try."""
    count = exhaust(of(case, is_short=True))
    print(f"{case.__name__}: {count} states")
    assert count > 10, "where are the points?"


@visits_states
@pytest.mark.stress
@pytest.mark.parametrize(
    "case", [*MORE_STATES, *(MOST_STATES if ALL_STATES else [])], ids=lambda case: case.__name__
)
def test_no_state_of_many_that_a_case_can_come_to_is_wrong(case: CaseOf) -> None:
    """As above.  All of them: ``QUEUESTREAM_STATES=all tox -e stress -- -k of_many``."""
    count = exhaust(of(case, is_short=True))
    print(f"{case.__name__}: {count} states")
    assert count > 500, "where are the points?"


class KeepsOneThatGaveUpInLine(Buffer[Any]):
    __slots__ = ()

    def _leave(self, waiter: Waiter) -> None:
        pass


class WakesNoPutter(Buffer[Any]):
    __slots__ = ()

    def _putters_for_free_slot(self) -> list[Waiter]:
        return super()._putters_for_free_slot() if self.is_shutdown else []


class LooksForAFreeSlotOnce(Buffer[Any]):
    __slots__ = ()

    def _is_full(self) -> bool:
        return super()._is_full() or bool(self._putters.waiters)


class DropsWhatComesPastTheEnd(Buffer[Any]):
    __slots__ = ()

    def _append_anyway(self, item: Any, _: list[object]) -> list[Waiter]:
        return [] if self.is_shutdown else list(self._append(item))


class ForgetsRequestsMadeUnderTheLock(Buffer[Any]):
    __slots__ = ()

    def _request(self, request: Any) -> None:
        if not self._lock.locked():
            super()._request(request)


class LooksForNoRequestsAfterAPut(Buffer[Any]):
    __slots__ = ()

    def put_now(self, item: Any) -> bool:
        with self._lock:
            if self._requests or self.is_shutdown or self._is_full():
                return False
            woken = self._append(item)
        for one in woken:
            self._wake(one)
        return True


class WakesOneJoiner(Buffer[Any]):
    __slots__ = ()

    def task_done(self) -> None:
        with self._lock:
            self.unfinished -= 1
            woken = self._joiners.call(1)
        for one in woken:
            self._wake(one)


class WakesNobodyWhoseItemIsStale(Buffer[Any]):
    __slots__ = ()

    def recheck_putters(self) -> None:
        pass


class WakesTheFirstToLookAgain(Buffer[Any]):
    __slots__ = ()

    def recheck_putters(self) -> None:
        self._request(lambda _: self._putters.call(1))


class HoldsNothing(Buffer[Any]):
    __slots__ = ()

    def hold(self, number: int = 0) -> None:
        pass


class FreesInSilence(Buffer[Any]):
    __slots__ = ()

    def _free(self, number: int, _: list[object]) -> list[Waiter]:
        super()._free(number, _)
        return []


PLANTED = [
    (KeepsOneThatGaveUpInLine, put_gives_up),
    (WakesNoPutter, two_and_two),
    (LooksForAFreeSlotOnce, two_and_two),
    (DropsWhatComesPastTheEnd, past_the_end),
    (ForgetsRequestsMadeUnderTheLock, closing_and_all),
]


@pytest.mark.parametrize("planted, case", PLANTED, ids=lambda value: value.__name__)
def test_a_planted_bug_is_found(planted: BufferClass, case: CaseOf) -> None:
    """The canary: an explorer that finds nothing may look at nothing."""
    with pytest.raises(AssertionError, match="repeated by"):
        explore(of(case, planted), preemptions=2)


@visits_states
@pytest.mark.parametrize(
    "planted, case",
    [
        (LooksForNoRequestsAfterAPut, one_put_and_cancelled),
        (WakesOneJoiner, joining_and_cancelled),
        (WakesNobodyWhoseItemIsStale, stale_and_full),
        pytest.param(WakesTheFirstToLookAgain, stale, marks=pytest.mark.stress),
        (DropsWhatComesPastTheEnd, past_the_end),
        (HoldsNothing, held),
        (FreesInSilence, held_meanwhile),
        (WakesNoPutter, woken_together),
    ],
    ids=lambda value: value.__name__,
)
def test_a_state_that_is_wrong_is_found(planted: BufferClass, case: CaseOf) -> None:
    """The canary of the states: it must come to those in which a planted bug shows."""
    with pytest.raises(AssertionError, match="repeated by"):
        exhaust(of(case, planted, is_short=True))


@pytest.mark.stress
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", SAMPLED, ids=lambda case: case.__name__)
def test_no_schedule_of_a_larger_case_loses_anything(case: CaseOf) -> None:
    """As above, with more.  Of many threads, those in which two are passed over."""
    if case in EXHAUSTED:
        explore(of(case), preemptions=1, limit=1_000_000)
    else:
        explore(of(case), delays=2, limit=1_000_000)
    sample(of(case), count=1_000, seed=1_000)
