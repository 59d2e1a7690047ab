"""Every pair of operations on a queue, in all schedules of a small case.

Two producers with three items, a queue for one, two consumers; among them the two operations
of the pair.  A consumer goes on to the end, which comes when the producers are through, or
is one of those that give up.  Looked for: an item that is lost, doubled or reordered, a
wake-up that is lost (somebody waits for ever), a queue that holds more than one.

The threads are threads of the schedule, and so are the loops (`ScheduledLoop`): their tasks,
waiters, doorbells and wake-ups are the real ones.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
import sys
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest
from janus import AsyncQueueShutDown, SyncQueueEmpty, SyncQueueFull, SyncQueueShutDown

from queuestream import _buffer
from queuestream._buffer import BLOCKED, Buffer
from queuestream.mixed_queue import AsyncFace, MixedQueue, SyncFace
from tests.support.schedule import explore, sample
from tests.support.scheduled_loop import ScheduledLoop
from tests.support.scheduled_queue import (
    Now,
    is_all_over,
    length,
    put_into_schedules,
    schedule_buffer,
    with_a_point,
)
from tests.support.states import ALL_STATES, Hidden, Outcomes, exhaust, visits_states

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream._wakeups import Waiter
    from tests.support.schedule import Schedule

PRODUCERS = ["put", "aput", "put gives up", "aput cancelled", "aput's loop closed"]
CONSUMERS = ["get", "aget", "get gives up", "aget cancelled", "aget's loop closed"]
ENDS = ["shutdown", "close"]
Size = Literal["large", "small", "empty", "bare"]
PAIRS = list(itertools.combinations_with_replacement([*PRODUCERS, *CONSUMERS, *ENDS], 2))


@pytest.fixture(autouse=True)
def _all_is_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    put_into_schedules(monkeypatch)


class Item(str):
    """What is put: a name, and what became of it.

    Attributes:
        outcome: How often it came to a consumer, or stayed with a producer that is through.
            Not with whom, or there would be far more states.
    """

    __slots__ = ("outcome",)

    def __init__(self, _: str) -> None:
        self.outcome = 0


class Case:
    """A queue of a schedule, its producers and consumers, and what became of the items.

    Args:
        schedule: The schedule.
        pair: The two operations.
        buffer_class: The buffer to test.
        size: A producer of a "large" case puts two items, and consumers go on to the end.  In
            a "small" one each operation is done once, and one item waits from the start: as many
            states as can all be visited.  In an "empty" one it does not, so that two consumers may
            wait.  In a "bare" one there is nobody beside the pair.
        is_short: Whether points are left out that make no difference.

    Attributes:
        ends: Where bare cases came to.
    """

    ends: ClassVar[set[object]] = set()

    def __init__(
        self,
        schedule: Schedule,
        pair: tuple[str, str],
        buffer_class: type[Buffer[Any]] = Buffer,
        size: Size = "large",
        *,
        is_short: bool = False,
    ) -> None:
        Now.schedule, Now.is_short = schedule, is_short
        self.schedule = schedule
        self.pair = pair
        self.is_bare = is_bare = size == "bare"
        self.is_small = is_small = size != "large"
        buffer = self.buffer = (
            with_a_point(buffer_class) if is_small else buffer_class  # type: ignore[arg-type]
        )(1)
        schedule_buffer(buffer)
        queue = self.queue = MixedQueue[Item](1)
        queue._buffer, queue._sync_face, queue._async_face = (
            buffer,
            SyncFace(buffer),
            AsyncFace(buffer),
        )
        self.items = a1, a2, b1 = Outcomes(map(Item, ["a1", "a2", "b1"]))
        self.loops = Hidden[ScheduledLoop]()
        self.putting = 0
        self.getting = 0
        self.results: list[str] = []  # of bare cases

        producers = [one for one in pair if one in PRODUCERS]
        consumers = [one for one in pair if one in CONSUMERS]
        if not is_bare:
            producers += ["put"] * (2 - len(producers))
            if not is_small and all(one not in ("get", "aget") for one in consumers):
                consumers.append("get")  # one that stays to the end
            consumers += ["get" if is_small else "aget"] * (2 - len(consumers))
        if size == "empty":
            a1.outcome = 1
        elif is_small:
            queue.sync_q.put(a1)
        puts = [a2] if is_small else [a1, a2], [b1]
        for kind, items in zip(producers, puts, strict=not is_bare):
            self.producer(kind, items)
        for item in itertools.chain(*puts[len(producers) :]):
            item.outcome = 1  # it stays where it is
        for kind in consumers:
            self.consumer(kind)
        for kind in pair:
            if kind in ENDS:
                schedule.thread(kind, partial(self.stop, kind))
        schedule.thread("ends", self.end)
        if not is_bare:
            schedule.is_decided = partial(is_all_over, buffer)

    # The producers.

    def producer(self, kind: str, items: list[Item]) -> None:
        self.putting += 1
        if kind in ("put", "put gives up"):
            self.schedule.thread(kind, lambda: self.put(items, gives_up=kind != "put"))
        else:
            self.loop(kind, lambda: self.aput(items)).on_end = partial(self.leave, items)

    def put(self, items: list[Item], *, gives_up: bool) -> None:
        refused = []
        for item in items:
            try:
                self.queue.sync_q.put(item, timeout=1 if gives_up else None)
            except (SyncQueueFull, SyncQueueShutDown):
                refused.append(item)
            self.look()
        self.leave(refused)

    async def aput(self, items: list[Item]) -> None:
        with contextlib.suppress(AsyncQueueShutDown, asyncio.CancelledError):
            while items:
                await self.queue.async_q.put(items[0])
                items.pop(0)
                self.look()

    def leave(self, items: list[Item]) -> None:
        """A producer is through, and has items left."""
        for item in items:
            item.outcome += 1
        self.tell(f"put all but {items}")
        self.putting -= 1

    def look(self) -> None:
        assert length(self.buffer.items) <= 1, "past maxsize"

    # The consumers.

    def consumer(self, kind: str) -> None:
        self.getting += 1
        if kind in ("get", "get gives up"):
            self.schedule.thread(kind, lambda: self.get(gives_up=kind != "get"))
        else:
            self.loop(kind, self.aget).on_end = self.leave_getting

    def get(self, *, gives_up: bool) -> None:
        before = "a0"
        with contextlib.suppress(SyncQueueEmpty, SyncQueueShutDown):
            while True:
                before = self.come(self.queue.sync_q.get(timeout=1 if gives_up else None), before)
                if self.is_small:
                    break
        self.leave_getting()

    async def aget(self) -> None:
        before = "a0"
        with contextlib.suppress(AsyncQueueShutDown, asyncio.CancelledError):
            while True:
                before = self.come(await self.queue.async_q.get(), before)
                if self.is_small:
                    break

    def leave_getting(self) -> None:
        self.getting -= 1
        self.tell("a consumer leaves")

    def come(self, item: Item, before: str) -> str:
        """An item came to a consumer; answers which one of "a" came to it last."""
        item.outcome += 1
        self.tell(f"{self.schedule.name}: {item}")
        if item == "b1":
            return before
        assert item > before, f"{item} came to somebody after {before}"
        return item

    def tell(self, result: str) -> None:
        """Make something part of the state: by it cases are compared."""
        if self.is_bare:
            bisect.insort(self.results, result)

    # What happens to both.

    def stop(self, kind: str) -> None:
        self.schedule.point()
        self.queue.shutdown(immediate=kind == "close")

    def loop(self, kind: str, work: Any) -> ScheduledLoop:
        loop = ScheduledLoop(self.schedule, kind, work)
        self.loops.append(loop)
        loop.may_be_cancelled = kind.endswith("cancelled")
        loop.may_be_shut = kind.endswith("closed")
        if kind.endswith("cancelled"):
            self.schedule.thread("cancels", loop.cancel)
        elif kind.endswith("loop closed"):
            self.schedule.thread("closes the loop", loop.shut)
        return loop

    def end(self) -> None:
        """When nobody goes on any more: see that they wait with reason, and let them go."""
        self.schedule.point(is_last=True)
        waiting = length(self.buffer.items)
        if self.buffer.is_shutdown:
            assert not self.putting, "a producer waits after the shutdown"
            assert not self.getting, "a consumer waits after the shutdown"
        assert waiting or not self.putting, "a producer waits though there is a free slot"
        assert not waiting or not self.getting, "a consumer waits though there is an item"
        self.schedule.is_over = True
        if self.is_bare:
            self.ends.add((*self.results, waiting, self.putting, self.getting))
        self.queue.shutdown()

    def check(self) -> None:
        for loop in self.loops:
            loop.forget()
        for item in self.items:
            count = item.outcome + list(self.buffer.items).count(item)
            assert count <= 1, f"{item} is there {count} times"
            assert count or "close" in self.pair, f"{item} is lost"
        assert self.is_small or not self.buffer.items, "an item that was put is not got"
        for line in (self.buffer._getters, self.buffer._putters):
            assert not length(line.waiters), "somebody who has gone stands in a line"
            assert not line._called, "somebody who has gone is kept"


def of(
    pair: tuple[str, str],
    buffer_class: type[Buffer[Any]] = Buffer,
    size: Size = "large",
    *,
    is_short: bool = False,
) -> Any:
    """Return the case of a pair, for the explorer."""

    def case(schedule: Schedule) -> Callable[[], object]:
        return Case(schedule, pair, buffer_class, size, is_short=is_short).check

    return case


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_no_schedule_of_a_pair_loses_anything(pair: tuple[str, str]) -> None:
    """A wake-up or an item is lost only if two operations interleave in one certain way.

    All schedules in which one thread, wherever it may be, is passed over when its turn comes;
    and some in which chance picks every turn.
    """
    count = explore(of(pair), delays=1)
    sample(of(pair), count=10, seed=1)
    print(f"{pair}: {count} schedules")
    assert count > 50, "where are the points?"


@pytest.fixture
def _without_the_interpreters_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no GIL, an item is taken under the lock: another way through the code."""
    monkeypatch.setattr(_buffer, "_IS_ORDERED", False)


WITHOUT_LOCK = [
    *((producer, "get") for producer in PRODUCERS),
    *(("put", consumer) for consumer in CONSUMERS if consumer != "get"),
    *(("get", end) for end in ENDS),
    ("aput", "aget"),
    ("put gives up", "aget cancelled"),
    ("aput", "close"),
]
"""Those who take an item, with most others: it is their way that is another."""


@pytest.mark.usefixtures("_without_the_interpreters_lock")
@pytest.mark.parametrize("pair", WITHOUT_LOCK, ids="-".join)
def test_no_schedule_without_the_interpreters_lock_loses_anything(pair: tuple[str, str]) -> None:
    """Hazard: what is right on the way without the lock, and not on the one with it."""
    count = explore(of(pair), delays=1)
    sample(of(pair), count=10, seed=1)
    assert count > 50, "where are the points?"


@pytest.mark.stress
@pytest.mark.usefixtures("_without_the_interpreters_lock")
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_no_wild_schedule_without_the_interpreters_lock_loses_anything(
    pair: tuple[str, str],
) -> None:
    """As above, all pairs, in schedules that chance picks."""
    sample(of(pair), count=8, seed=1_000)


@pytest.mark.stress
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_no_wild_schedule_of_a_pair_loses_anything(pair: tuple[str, str]) -> None:
    """As above, with more that chance picks."""
    sample(of(pair), count=100, seed=1_000)


CASES = [pair for pair in PAIRS if "get" not in pair]
"""All pairs, for the explorers of states: those with "get" are the cases with "put" instead."""
FEW_STATES = list(itertools.combinations_with_replacement(["put", "aput", "aget"], 2))
"""Some with no more than 6,000 states."""
MORE_STATES = [("put", "aget cancelled")]
"""One with 10,000."""
FEW_WITHOUT_LOCK = [("put", "aput's loop closed")]
"""One with 3,000 where items are taken under the lock."""


def states(pair: tuple[str, str]) -> int:
    """Visit all states of a pair, with and without an item that waits from the start."""
    sizes: tuple[Size, ...] = "small", "empty"
    return sum(exhaust(of(pair, size=size, is_short=True)) for size in sizes)


@visits_states
@pytest.mark.parametrize("pair", FEW_STATES, ids="-".join)
def test_no_state_that_a_pair_can_come_to_is_wrong(pair: tuple[str, str]) -> None:
    """Hazard: what needs more changes of threads than the explorers above try.

    With two producers, two consumers, three items and room for one, each of which does one
    operation: all schedules over the boundaries of the lock, sleep, wake-ups, and what is done
    without the lock.
    """
    count = states(pair)
    print(f"{pair}: {count} states")
    assert count > 500, "where are the points?"


@visits_states
@pytest.mark.usefixtures("_without_the_interpreters_lock")
@pytest.mark.parametrize("pair", FEW_STATES, ids="-".join)
def test_no_state_without_the_interpreters_lock_is_wrong(pair: tuple[str, str]) -> None:
    """As above, where items are taken under the lock, which leaves a fifth of the states."""
    count = states(pair)
    print(f"{pair}: {count} states")
    assert 250 < count < 1_200, "is it the other way?"


@visits_states
@pytest.mark.stress
@pytest.mark.usefixtures("_without_the_interpreters_lock")
@pytest.mark.parametrize("pair", CASES if ALL_STATES else FEW_WITHOUT_LOCK, ids="-".join)
def test_no_state_of_many_without_the_interpreters_lock_is_wrong(pair: tuple[str, str]) -> None:
    """As above.  All pairs: ``QUEUESTREAM_STATES=all tox -e stress -- -k of_many --timeout 0``."""
    count = states(pair)
    print(f"{pair}: {count} states")
    assert count > 250, "where are the points?"


@visits_states
@pytest.mark.stress
@pytest.mark.parametrize("pair", CASES if ALL_STATES else MORE_STATES, ids="-".join)
def test_no_state_of_many_that_a_pair_can_come_to_is_wrong(pair: tuple[str, str]) -> None:
    """As above.  All pairs: ``QUEUESTREAM_STATES=all tox -e stress -- -k of_many --timeout 0``."""
    count = states(pair)
    print(f"{pair}: {count} states")
    assert count > 500, "where are the points?"


@visits_states
@pytest.mark.parametrize("pair", PAIRS if ALL_STATES else FEW_STATES, ids="-".join)
def test_nothing_that_is_left_out_makes_a_difference(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above leave out points and orders; with all of them the same comes of a case.

    All pairs: ``QUEUESTREAM_STATES=all tox -e py313 -- -k left_out``.
    """
    ends: list[set[object]] = []
    for is_short in (True, False):
        monkeypatch.setattr(Case, "ends", set())
        exhaust(of(pair, size="bare", is_short=is_short), is_short=is_short)
        ends.append(Case.ends)
    assert ends[0] == ends[1]


class WakesNoPutter(Buffer[Any]):
    __slots__ = ()

    def _putters_for_free_slot(self) -> list[Waiter]:
        return super()._putters_for_free_slot() if self.is_shutdown else []


class LooksForAFreeSlotOnce(Buffer[Any]):
    __slots__ = ()

    def _is_full(self) -> bool:
        return super()._is_full() or bool(self._putters.waiters)


class LooksNoMoreOnceItStandsInLine(Buffer[Any]):
    """Misses a slot that is made free, without the lock, after its first look."""

    __slots__ = ("_seen",)

    def _is_full(self) -> bool:
        before, self._seen = getattr(self, "_seen", 0), length(self._putters.waiters)
        return self._seen > before or super()._is_full()


class EndsOnlyForThoseWhoWait(Buffer[Any]):
    """Misses one who has seen that there is no end, and does not stand in line yet."""

    __slots__ = ()

    def shutdown(self, *, immediate: bool) -> None:
        if length(self._getters.waiters) or length(self._putters.waiters):
            super().shutdown(immediate=immediate)
        else:
            self.is_shutdown, self.is_closed = True, immediate


class KeepsOneThatGaveUpInLine(Buffer[Any]):
    __slots__ = ()

    def _leave(self, waiter: Waiter) -> None:
        pass


class PassesNoWakeUpOn(Buffer[Any]):
    __slots__ = ()

    def _is_worth_trying(self, line: Any) -> bool:
        return False


class ForgetsRequestsMadeUnderTheLock(Buffer[Any]):
    __slots__ = ()

    def _request(self, request: Any) -> None:
        if not self._lock.locked():
            super()._request(request)


class LosesNobody(Buffer[Any]):
    __slots__ = ()

    def _wake(self, waiter: Waiter) -> None:
        waiter.wake()


class IsNeverFull(Buffer[Any]):
    __slots__ = ()

    def put_now(self, item: Any) -> bool:
        return False

    def _is_full(self) -> bool:
        return False


class SeesTheLineAsItWas(Buffer[Any]):
    """Looks at the line before it takes: without a GIL, it may be seen in this order."""

    __slots__ = ()

    def get_now(self) -> Any:
        if self._needs_lock:
            return BLOCKED
        has_putters = bool(self._putters.waiters)
        item = self._pop()
        if item is not BLOCKED and has_putters:
            with self._lock:
                woken = self._putters_for_free_slot()
            for one in woken:
                self._wake(one)
        return item


class WakesNoPutterUnderTheLock(Buffer[Any]):
    """Right where an item is taken without the lock, which is where there is a GIL."""

    __slots__ = ()

    def try_get(self, waiter: Waiter | None, shut_down: type[Exception]) -> Any:
        if waiter is None and self._needs_lock:
            with self._lock:
                if (item := self._pop()) is not BLOCKED:
                    return item
        return super().try_get(waiter, shut_down)


PLANTED = [
    (WakesNoPutter, ("put", "aput")),
    (LooksForAFreeSlotOnce, ("put", "get")),
    (KeepsOneThatGaveUpInLine, ("put", "aget cancelled")),
    (PassesNoWakeUpOn, ("put", "aget cancelled")),
    (ForgetsRequestsMadeUnderTheLock, ("put", "shutdown")),
    (LosesNobody, ("put", "aget's loop closed")),
    (IsNeverFull, ("put", "put")),
]


@pytest.mark.parametrize("planted, pair", PLANTED, ids=str)
def test_a_planted_bug_is_found(planted: type[Buffer[Any]], pair: tuple[str, str]) -> None:
    """The canary: an explorer that finds nothing may look at nothing."""
    with pytest.raises(AssertionError, match="repeated by"):
        sample(of(pair, planted), count=300, seed=1)
        explore(of(pair, planted), delays=2)


@pytest.mark.parametrize(
    "buffer_class, is_ordered, is_wrong",
    [(SeesTheLineAsItWas, True, True), (SeesTheLineAsItWas, False, False), (Buffer, True, False)],
)
def test_what_is_seen_late_without_the_interpreters_lock_is_found(
    buffer_class: type[Buffer[Any]],
    is_ordered: bool,
    is_wrong: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The canary: to take without the lock, as if there were a GIL that there is not.

    Where it is known that there is none, that way is not taken, and there is nothing to find.
    """
    monkeypatch.setattr(_buffer, "_IS_ORDERED", is_ordered)
    case = of(("put", "get"), buffer_class, "small", is_short=True)
    found = pytest.raises(AssertionError, match="a producer waits") if is_wrong else nullcontext()
    with found:
        sample(case, count=300, seed=1)


@pytest.mark.usefixtures("_without_the_interpreters_lock")
@pytest.mark.parametrize(
    "finds",
    [
        lambda: explore(of(("put", "get"), WakesNoPutterUnderTheLock), delays=1),
        lambda: sample(of(("put", "put"), WakesNoPutterUnderTheLock), count=300, seed=1),
        pytest.param(
            lambda: exhaust(of(("put", "put"), WakesNoPutterUnderTheLock, "small", is_short=True)),
            marks=pytest.mark.skipif(sys.version_info < (3, 13), reason="see visits_states"),
        ),
    ],
    ids=["explore", "sample", "exhaust"],
)
def test_what_is_wrong_only_without_the_interpreters_lock_is_found(
    finds: Callable[[], object],
) -> None:
    """The canary: each of the explorers goes the way that is taken where there is no GIL."""
    with pytest.raises(AssertionError, match="repeated by"):
        finds()


def test_with_the_interpreters_lock_it_is_not_found() -> None:
    """Nor is it there: so the canary tells the two ways apart."""
    explore(of(("put", "get"), WakesNoPutterUnderTheLock), delays=1)


@visits_states
@pytest.mark.parametrize(
    "planted, pair, size",
    [
        (WakesNoPutter, ("put", "get"), "small"),
        (LooksForAFreeSlotOnce, ("put", "get"), "small"),
        (LooksNoMoreOnceItStandsInLine, ("put", "get"), "small"),
        (IsNeverFull, ("put", "get"), "small"),
        (SeesTheLineAsItWas, ("put", "get"), "small"),
        (KeepsOneThatGaveUpInLine, ("put", "put gives up"), "small"),
        pytest.param(
            PassesNoWakeUpOn, ("put", "aput cancelled"), "small", marks=pytest.mark.stress
        ),
        (PassesNoWakeUpOn, ("put", "aget cancelled"), "empty"),
        (ForgetsRequestsMadeUnderTheLock, ("put", "shutdown"), "small"),
        (EndsOnlyForThoseWhoWait, ("put", "shutdown"), "small"),
        (LosesNobody, ("put", "aput's loop closed"), "small"),
        (LosesNobody, ("put", "aget's loop closed"), "empty"),
    ],
    ids=str,
)
def test_a_state_that_is_wrong_is_found(
    planted: type[Buffer[Any]], pair: tuple[str, str], size: Size
) -> None:
    """The canary of the states: it must come to those in which a planted bug shows."""
    with pytest.raises(AssertionError, match="repeated by"):
        exhaust(of(pair, planted, size, is_short=True))
