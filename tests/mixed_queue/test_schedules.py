"""All schedules of small cases: over the boundaries of the buffer's lock and of sleep, and
over the operations on what is used without the lock, the items and the line of putters.

Between two such points a thread touches nothing that another may change.  A lost wake-up
shows as a schedule in which nobody can go on; see `tests.support.schedule`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from janus import SyncQueueEmpty, SyncQueueFull, SyncQueueShutDown

from queuestream import _buffer
from queuestream._buffer import Buffer
from queuestream._wakeups import ThreadWaiter
from queuestream.mixed_queue import SyncFace
from tests.support.schedule import ScheduledDeque, ScheduledList, explore, sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream._wakeups import Waiter
    from tests.support.schedule import Schedule

BufferClass = type[Buffer[Any]]
CaseOf: TypeAlias = "Callable[[BufferClass, Schedule], Callable[[], object]]"
"""Adds the threads of a case to a schedule; what it returns looks at the outcome."""


@pytest.fixture(autouse=True)
def _threads_sleep_on_locks_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sleeper(ThreadWaiter):
        __slots__ = ()

        def __init__(self) -> None:
            super().__init__()
            self._gate = Case.schedule.lock(locked=True)  # type: ignore[assignment]

    monkeypatch.setattr(_buffer, "ThreadWaiter", Sleeper)


class Case:
    """A queue of a schedule, and what its threads got."""

    schedule: Schedule  # the one that runs now

    def __init__(
        self, schedule: Schedule, buffer_class: BufferClass, maxsize: int, low: int | None = None
    ) -> None:
        Case.schedule = schedule
        self.buffer: Buffer[Any] = buffer_class(maxsize, low)
        self.buffer._lock = schedule.lock()  # type: ignore[assignment]
        self.buffer.items = ScheduledDeque(schedule)
        self.buffer._putters.waiters = ScheduledList(schedule)
        self.queue = SyncFace(self.buffer)
        self.got: dict[str, list[Any]] = {}
        self.not_put: list[Any] = []
        self.most = 0

    def producer(self, *items: Any, timeout: float | None = None) -> None:
        def body() -> None:
            for item in items:
                try:
                    self.queue.put(item, timeout=timeout)
                except (SyncQueueFull, SyncQueueShutDown):
                    self.not_put.append(item)
                self.most = max(self.most, len(self.buffer.items))

        self.schedule.thread(f"puts {items}", body)

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


EXHAUSTED: dict[CaseOf, int] = {
    get_gives_up: 1,
    put_gives_up: 1,
    past_the_end: 2,
    joining: 1,
    closing_and_all: 1,
}
"""How many turns are taken away in the cases that are small enough to run all schedules."""
SAMPLED: list[CaseOf] = [two_and_two, shutdown_and_all, half_empty, *EXHAUSTED]


@pytest.mark.parametrize("case", EXHAUSTED, ids=lambda case: case.__name__)
def test_no_schedule_loses_an_item_or_a_wake_up(case: CaseOf) -> None:
    """A wake-up or an item that is lost only if threads interleave in one certain way."""
    count = explore(lambda schedule: case(Buffer, schedule), preemptions=EXHAUSTED[case])
    print(f"{case.__name__}: {count} schedules")


@pytest.mark.parametrize("case", SAMPLED, ids=lambda case: case.__name__)
def test_no_wild_schedule_loses_an_item_or_a_wake_up(case: CaseOf) -> None:
    """As above, where it takes more turns at certain places than can be tried in order."""
    sample(lambda schedule: case(Buffer, schedule), count=300, seed=1)


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
        explore(lambda schedule: case(planted, schedule), preemptions=2)


@pytest.mark.stress
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", SAMPLED, ids=lambda case: case.__name__)
def test_no_schedule_of_a_larger_case_loses_anything(case: CaseOf) -> None:
    """As above, with more.  Of many threads, those in which two are passed over."""
    if case in EXHAUSTED:
        explore(lambda schedule: case(Buffer, schedule), preemptions=1, limit=1_000_000)
    else:
        explore(lambda schedule: case(Buffer, schedule), delays=2, limit=1_000_000)
    sample(lambda schedule: case(Buffer, schedule), count=2_500, seed=1_000)
