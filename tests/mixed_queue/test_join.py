"""`Buffer`'s ``join``: what is put into a full buffer may become part of what waits in it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from janus import SyncQueueFull, SyncQueueShutDown

from queuestream import _buffer
from queuestream._buffer import BLOCKED, Buffer, Stale
from queuestream._wakeups import ThreadWaiter
from queuestream.events import About, Joinable, ModelRun
from queuestream.mixed_queue import SyncFace
from tests.support.schedule import HookedLock, explore, sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.schedule import Schedule


def join_letters(items: deque[list[str]], item: list[str]) -> bool:
    """Join lists that begin with the same letter."""
    for waiting in items:
        if waiting[0][0] == item[0][0]:
            waiting.extend(item)
            return True
    return False


def put(buffer: Buffer[Any], item: Any) -> bool:
    """Put an item without waiting; whether that could be."""
    return buffer.try_put(item, None, SyncQueueShutDown) is not BLOCKED


def test_only_when_full() -> None:
    """Hazard: it joins where there is a free slot, and the consumer gets bigger pieces for nothing.

    What is joined is no item more: neither for the bound, nor for `peak`, nor to be done.
    """
    buffer = Buffer[list[str]](2, join=join_letters)
    assert put(buffer, ["a1"])
    assert put(buffer, ["a2"])
    assert list(buffer.items) == [["a1"], ["a2"]]
    assert put(buffer, ["a3"])
    assert list(buffer.items) == [["a1", "a3"], ["a2"]]
    assert (buffer.peak, buffer.unfinished) == (2, 2)


def test_never_where_it_is_unbounded() -> None:
    buffer = Buffer[list[str]](0, join=join_letters)
    for number in range(9):
        assert put(buffer, [f"a{number}"])
    assert len(buffer.items) == buffer.peak == 9


def test_what_joins_nothing_waits() -> None:
    """Hazard: it is dropped, or goes past ``maxsize``."""
    buffer = Buffer[list[str]](1, join=join_letters)
    put(buffer, ["a1"])
    assert not put(buffer, ["b1"])
    with pytest.raises(SyncQueueFull):
        SyncFace(buffer).put(["b1"], timeout=0)
    assert list(buffer.items) == [["a1"]]
    assert len(buffer._putters) == 0


def test_whoever_waits_may_join_later() -> None:
    """Hazard: one that is woken, and finds the buffer full again, does not try to join.

    1. ``b1`` finds neither a free slot nor one to join, and lines up.
    2. The slot becomes free, and before the putter comes another ``b`` takes it.
    3. The putter joins it, and stands in no line any more.
    """
    buffer = Buffer[list[str]](1, join=join_letters)
    put(buffer, ["a1"])
    waiter = ThreadWaiter()
    assert buffer.try_put(["b1"], waiter, SyncQueueShutDown) is BLOCKED  # 1
    assert buffer.try_get(None, SyncQueueShutDown) == ["a1"]  # 2
    put(buffer, ["b0"])
    assert buffer.try_put(["b1"], waiter, SyncQueueShutDown) is None  # 3
    assert list(buffer.items) == [["b0", "b1"]]
    assert not buffer._putters._called


def test_nothing_joins_after_the_end() -> None:
    """Hazard: the item is accepted, and counts, though the run was told to stop."""
    buffer = Buffer[list[str]](1, join=join_letters)
    put(buffer, ["a1"])
    buffer.shutdown(immediate=False)
    with pytest.raises(SyncQueueShutDown):
        put(buffer, ["a2"])
    assert list(buffer.items) == [["a1"]]


def test_nothing_stale_joins() -> None:
    """Hazard: a token of a run that is over reaches the next one, inside another item."""
    buffer = Buffer[list[str]](1, join=join_letters)
    put(buffer, ["a1"])
    with pytest.raises(Stale):
        buffer.try_put(["a2"], None, SyncQueueShutDown, lambda: True)
    assert list(buffer.items) == [["a1"]]


def test_what_was_put_past_the_end_comes_first() -> None:
    """Hazard: an item joins one that waits, and overtakes what was put before it.

    1. Somebody holds the lock while ``b`` is put past the end, so that it is only requested.
    2. The next ``b`` joins that one, which has to be in the buffer by then.
    """
    buffer = Buffer[list[str]](1, join=join_letters)
    put(buffer, ["a1"])
    lock = HookedLock()
    buffer._lock = lock  # type: ignore[assignment]
    lock.at("wanted", lambda: None)
    lock.at("held", lambda: None)
    with lock:
        buffer.put_past_end(["b1"])  # 1
        assert len(buffer.items) == 1
    assert put(buffer, ["b2"])  # 2
    assert list(buffer.items) == [["a1"], ["b1", "b2"]]


# -- all schedules -------------------------------------------------------------------------

BufferClass: TypeAlias = "type[Buffer[Any]]"
CaseOf: TypeAlias = "Callable[[BufferClass, Schedule], Callable[[], object]]"


class Case:
    """A buffer of a schedule, and what its consumer got of each run."""

    schedule: Schedule  # the one that runs now

    def __init__(self, schedule: Schedule, buffer_class: BufferClass, maxsize: int) -> None:
        Case.schedule = schedule
        self.buffer: Buffer[Any] = buffer_class(maxsize, maxsize // 2, Joinable.join)
        self.buffer._lock = schedule.lock()  # type: ignore[assignment]
        self.queue = SyncFace(self.buffer)
        self.put: dict[ModelRun, list[str]] = {}
        self.got: dict[ModelRun, list[str]] = {}
        self.most = 0

    def producer(self, *items: str) -> None:
        """Add a run: of ``"a1"``, the letter is the kind of item."""
        run = ModelRun(About(None, None), 1, is_heard=True)
        put = self.put.setdefault(run, [])
        self.got[run] = []

        def body() -> None:
            try:
                for item in items:
                    self.queue.put(Joinable(run, item[0], item))
                    put.append(item)
                    self.most = max(self.most, len(self.buffer.items))
            except SyncQueueShutDown:
                pass

        self.schedule.thread(f"puts {items}", body)

    def consumer(self, count: int) -> None:
        """Add a consumer, which goes on until it has so many values."""

        def body() -> None:
            left = count
            try:
                while left:
                    item = self.queue.get()
                    self.got[item.run] += item.values
                    left -= len(item.values)
                    self.looked_at(item)
            except SyncQueueShutDown:
                pass

        self.schedule.thread("gets", body)

    def looked_at(self, item: Joinable) -> None:
        """Look at an item that was got."""
        kinds = {value[0] for value in item.values}
        assert kinds == {item.key}, f"{item.values} is joined of several kinds"

    def conserves(self) -> None:
        """All that was put was got, once and in order."""
        assert self.got == self.put, f"{list(self.got.values())} of {list(self.put.values())}"
        assert self.most <= self.buffer.maxsize, "past maxsize"


@pytest.fixture(autouse=True)
def _threads_sleep_on_locks_of_the_schedule(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sleeper(ThreadWaiter):
        __slots__ = ()

        def __init__(self) -> None:
            super().__init__()
            self._gate = Case.schedule.lock(locked=True)  # type: ignore[assignment]

    if "case" in request.fixturenames:
        monkeypatch.setattr(_buffer, "ThreadWaiter", Sleeper)


def taken_while_joined(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    """The consumer takes an item in the moment in which another joins it."""
    case = Case(schedule, buffer_class, maxsize=1)
    case.producer("a1", "a2", "a3")
    case.consumer(3)
    return case.conserves


def several_kinds(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    """An item must not overtake one of another kind that was put before it."""
    case = Case(schedule, buffer_class, maxsize=2)
    case.producer("a1", "b2", "a3", "a4")
    case.consumer(4)
    return case.conserves


def several_runs(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    """One run joins while another waits for a free slot."""
    case = Case(schedule, buffer_class, maxsize=1)
    case.producer("a1", "a2")
    case.producer("a3", "a4")
    case.consumer(4)
    return case.conserves


def ended(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    """The end comes while one joins: what was put is got, what was not is refused."""
    case = Case(schedule, buffer_class, maxsize=1)
    case.producer("a1", "a2", "b3")
    case.consumer(9)
    schedule.thread("ends", case.queue.shutdown)
    return case.conserves


def closed(buffer_class: BufferClass, schedule: Schedule) -> Callable[[], object]:
    """The consumer goes while one joins."""
    case = Case(schedule, buffer_class, maxsize=1)
    case.producer("a1", "a2", "b3")
    schedule.thread("closes", lambda: case.queue.shutdown(immediate=True))

    def check() -> None:
        assert not case.buffer.items, "dropped too late"
        assert case.buffer.unfinished == 0

    return check


SCHEDULES: dict[CaseOf, int] = {
    taken_while_joined: 2,
    several_kinds: 2,
    several_runs: 1,
    ended: 1,
    closed: 3,
}
"""How many turns are taken away in each case, in all ways."""


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: case.__name__)
def test_no_schedule_loses_or_doubles_what_joins(case: CaseOf) -> None:
    """Promise 1.  Hazard: an item joins one that a consumer has just taken."""
    count = explore(lambda schedule: case(Buffer, schedule), preemptions=SCHEDULES[case])
    print(f"{case.__name__}: {count} schedules")


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: case.__name__)
def test_no_wild_schedule_loses_or_doubles_what_joins(case: CaseOf) -> None:
    """As above, where it takes more turns than can be tried in order."""
    sample(lambda schedule: case(Buffer, schedule), count=100, seed=1)


class JoinsOneThatItTook(Buffer[Any]):
    """Finds what to join before it has the lock: a consumer may take that meanwhile."""

    __slots__ = ()

    def try_put(self, item: Any, *args: Any, **kwargs: Any) -> Any:
        seen = deque(self.items)
        with self._lock:
            if self.maxsize <= len(seen) and Joinable.join(seen, item):
                return None
        return super().try_put(item, *args, **kwargs)


class JoinsWhateverIsOfTheSameKind(Buffer[Any]):
    __slots__ = ()

    def __init__(self, maxsize: int, low: int, _join: object) -> None:
        def join(items: deque[Any], item: Any) -> bool:
            for waiting in items:
                if waiting.run is item.run and waiting.key == item.key:
                    waiting.values += item.values
                    return True
            return False

        super().__init__(maxsize, low, join)


class JoinsTwice(Buffer[Any]):
    __slots__ = ()

    def __init__(self, maxsize: int, low: int, join: Any) -> None:
        super().__init__(maxsize, low, lambda items, item: join(items, item) and join(items, item))


PLANTED: list[tuple[BufferClass, CaseOf]] = [
    (JoinsOneThatItTook, taken_while_joined),
    (JoinsWhateverIsOfTheSameKind, several_kinds),
    (JoinsTwice, several_runs),
]


@pytest.mark.parametrize("planted, case", PLANTED, ids=lambda value: value.__name__)
def test_a_planted_bug_is_found(planted: BufferClass, case: CaseOf) -> None:
    """The canary: an explorer that finds nothing may look at nothing."""
    with pytest.raises(AssertionError, match="repeated by"):
        explore(lambda schedule: case(planted, schedule), preemptions=2)


@pytest.mark.stress
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: case.__name__)
def test_no_schedule_with_more_turns_loses_what_joins(case: CaseOf) -> None:
    """As above, with more."""
    turns = SCHEDULES[case] + 1
    explore(lambda schedule: case(Buffer, schedule), preemptions=turns, limit=1_000_000)
    sample(lambda schedule: case(Buffer, schedule), count=1_000, seed=1_000)
