"""First in, first out: items, and those who wait for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from queuestream import _buffer
from queuestream._buffer import Buffer
from queuestream.mixed_queue import MixedQueue, SyncFace
from tests.mixed_queue.places import MIXED, WITHIN, Lines, Place
from tests.support.schedule import HookedLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from queuestream._buffer import _Line
    from queuestream._wakeups import Waiter

ALIKE = [[name] * 4 for name in ("thread", "asyncio", "trio")]
in_one_line = pytest.mark.parametrize("names", [*ALIKE, MIXED], ids="-".join)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Waiter]:
    """Return all that were called out of a line to be woken, in that order."""
    all_called: list[Waiter] = []
    call = _buffer._Line.call

    def call_and_note(line: _Line, number: int) -> list[Waiter]:
        some = call(line, number)
        all_called.extend(some)
        return some

    monkeypatch.setattr(_buffer._Line, "call", call_and_note)
    return all_called


def places(names: list[str], open_place: Callable[[str], Place]) -> list[Place]:
    """One place of each kind, and for each name the place of that kind."""
    made = {name: open_place(name) for name in dict.fromkeys(names)}
    return [made[name] for name in names]


def test_items_come_in_the_order_in_which_they_were_put(place: Place, other_place: Place) -> None:
    """One face takes from the other end (promise 1)."""
    queue = MixedQueue[int]()
    for item in range(6):
        (place if item % 2 else other_place).put(queue, item).result(WITHIN)
    got = [(other_place if item % 3 else place).get(queue).result(WITHIN) for item in range(6)]
    assert got == list(range(6))


@in_one_line
def test_getters_are_served_in_the_order_of_their_arrival(
    names: list[str], open_place: Callable[[str], Place], lines: Lines
) -> None:
    """Threads and tasks wait in lines of their own, one of which is always served first."""
    queue = MixedQueue[int]()
    waiting: list[Future[int]] = []
    for place in places(names, open_place):
        waiting.append(place.get(queue))
        lines.wait_for_getters(queue, len(waiting))
    for number, getter in enumerate(waiting):
        queue.sync_q.put(number)
        assert len(queue._buffer._getters) == len(waiting) - number - 1
        assert getter.result(WITHIN) == number


@in_one_line
def test_putters_are_served_in_the_order_of_their_arrival(
    names: list[str], open_place: Callable[[str], Place], lines: Lines
) -> None:
    """The mirror image (promise 1: producers that wait are not reordered)."""
    queue = MixedQueue[int](1)
    queue.sync_q.put(-1)
    waiting: list[Future[None]] = []
    for number, place in enumerate(places(names, open_place)):
        waiting.append(place.put(queue, number))
        lines.wait_for_putters(queue, len(waiting))
    for number, putter in enumerate(waiting):
        assert queue.sync_q.get() == number - 1
        putter.result(WITHIN)
        assert len(queue._buffer._putters) == len(waiting) - number - 1


@in_one_line
def test_each_item_wakes_one_getter(
    names: list[str], open_place: Callable[[str], Place], lines: Lines, called: list[Waiter]
) -> None:
    """Each item wakes all getters, of whom all but one find nothing."""
    queue = MixedQueue[int]()
    waiting = [place.get(queue) for place in places(names, open_place)]
    lines.wait_for_getters(queue, len(waiting))
    for item in range(len(waiting)):
        queue.sync_q.put(item)
    assert sorted(one.result(WITHIN) for one in waiting) == list(range(len(waiting)))
    assert len(called) == len(waiting)


@in_one_line
def test_each_free_slot_wakes_one_putter(
    names: list[str], open_place: Callable[[str], Place], lines: Lines, called: list[Waiter]
) -> None:
    """A batch of putters is woken, or none until the queue is half empty."""
    queue = MixedQueue[int](8)
    for item in range(8):
        queue.sync_q.put(item)
    waiting = [place.put(queue, 9) for place in places(names, open_place)]
    lines.wait_for_putters(queue, len(waiting))
    for number, _ in enumerate(waiting, start=1):
        queue.sync_q.get()
        assert len(called) == number
    for one in waiting:
        one.result(WITHIN)
    assert len(called) == len(waiting)


def test_the_end_of_all_tasks_wakes_all_joiners_once(lines: Lines, called: list[Waiter]) -> None:
    """Joiners are served one by one, like getters, and there is no second occasion."""
    queue = MixedQueue[int]()
    queue.sync_q.put(1)
    waiting = [Place("thread").join(queue) for _ in range(3)]
    lines.wait_for_joiners(queue, 3)
    queue.sync_q.get()
    queue.sync_q.task_done()
    for one in waiting:
        one.result(WITHIN)
    assert len(called) == 3


def test_a_getter_that_was_woken_in_vain_stands_where_it_stood(
    place: Place, other_place: Place, lines: Lines
) -> None:
    """Somebody quicker had the item; the getter lines up again, behind those who came later.

    1. Two getters line up.
    2. An item is put and wakes the first.
    3. Before it has the lock, the item is taken by somebody who never waited.
    4. The first lines up again, in front of the second: the next item is its.
    """
    queue = MixedQueue[str]()
    lock = HookedLock()
    queue._buffer._lock = lock  # type: ignore[assignment]
    first = place.get(queue)  # 1
    lines.wait_for_getters(queue, 1)
    second = other_place.get(queue)
    lines.wait_for_getters(queue, 2)
    lock.at("wanted", lambda: None)  # of the put
    lock.at("wanted", lambda: stolen.append(queue.sync_q.get_nowait()))  # 3
    stolen: list[str] = []
    queue.sync_q.put("stolen")  # 2
    lines.wait_for_getters(queue, 2)
    assert stolen == ["stolen"]
    queue.sync_q.put("for the first")  # 4
    assert first.result(WITHIN) == "for the first"
    queue.sync_q.put("for the second")
    assert second.result(WITHIN) == "for the second"


def test_a_putter_that_was_woken_in_vain_stands_where_it_stood(
    place: Place, other_place: Place, lines: Lines
) -> None:
    """The mirror image, with a free slot that is taken by a put that never waited."""
    queue = MixedQueue[str](1)
    queue.sync_q.put("item")
    lock = HookedLock()
    queue._buffer._lock = lock  # type: ignore[assignment]
    first = place.put(queue, "of the first")
    lines.wait_for_putters(queue, 1)
    second = other_place.put(queue, "of the second")
    lines.wait_for_putters(queue, 2)
    lock.at("wanted", lambda: None)
    lock.at("wanted", lambda: queue.sync_q.put_nowait("of somebody quicker"))
    assert queue.sync_q.get() == "item"
    lines.wait_for_putters(queue, 2)
    assert queue.sync_q.get() == "of somebody quicker"
    first.result(WITHIN)
    assert queue.sync_q.get() == "of the first"
    second.result(WITHIN)
    assert queue.sync_q.get() == "of the second"


class TestLow:
    """`Buffer(low=...)`, which streams use: putters are woken together, when it is half empty."""

    def test_putters_sleep_until_it_is_low(self, lines: Lines, called: list[Waiter]) -> None:
        """A change of threads for each item, though there is enough to do."""
        buffer = Buffer[Any](4, low=2)
        queue = SyncFace(buffer)
        for item in range(4):
            queue.put(item)
        waiting: list[Future[None]] = []
        for item in range(4, 7):
            waiting.append(self.put(queue, item))
            lines.wait_for(buffer._putters, len(waiting))
        assert (queue.get(), called) == (0, [])
        assert queue.get() == 1
        assert len(called) == 2  # as many as there are slots
        assert (queue.get(), queue.get()) == (2, 3)
        assert {queue.get(timeout=WITHIN) for _ in range(3)} == {4, 5, 6}
        for one in waiting:
            one.result(WITHIN)

    @pytest.mark.parametrize(
        "maxsize, low", [(1, 0), (2, 0), (2, 1), (3, 1), (4, 2), (5, 4), (8, 0)]
    )
    @pytest.mark.parametrize("putters", [1, 2, 5, 9])
    def test_no_putter_is_stranded(
        self, maxsize: int, low: int, putters: int, lines: Lines
    ) -> None:
        """More putters than slots: those that were not woken, or were woken in vain, stay."""
        buffer = Buffer[Any](maxsize, low=low)
        queue = SyncFace(buffer)
        for item in range(maxsize):
            queue.put(item)
        waiting = [self.put(queue, "late") for _ in range(putters)]
        lines.wait_for(buffer._putters, putters)
        got = [queue.get(timeout=WITHIN) for _ in range(maxsize + putters)]
        for one in waiting:
            one.result(WITHIN)
        assert got == [*range(maxsize), *["late"] * putters]
        assert queue.empty()

    def test_one_that_gives_up_when_it_is_low_wakes_another(self, lines: Lines) -> None:
        """Of those that were woken together one has gone; its slot is another's.

        1. Three putters line up; the first will give up.
        2. The buffer is low, and two are woken; the first of them at this moment gives up.
        3. Its wake-up passes to the third.
        """
        buffer = Buffer[Any](2, low=0)
        queue = SyncFace(buffer)
        queue.put("a")
        queue.put("b")
        first = self.interrupted_put(buffer, lines)  # 1
        second, third = self.put(queue, 2), self.put(queue, 3)
        lines.wait_for(buffer._putters, 3)
        assert (queue.get(), queue.get()) == ("a", "b")  # 2
        with pytest.raises(KeyboardInterrupt):
            first.result(WITHIN)
        second.result(WITHIN)
        third.result(WITHIN)  # 3
        assert {queue.get_nowait(), queue.get_nowait()} == {2, 3}

    def put(self, queue: SyncFace[Any], item: Any) -> Future[None]:
        return Place("thread").start(lambda: queue.put(item), lambda: NotImplemented)

    def interrupted_put(self, buffer: Buffer[Any], lines: Lines) -> Future[None]:
        def attempt(waiter: Waiter | None) -> Any:
            if waiter is not None and waiter.ticket:  # it was woken
                raise KeyboardInterrupt
            return buffer.try_put("never", waiter, RuntimeError)

        putter = Place("thread").start(
            lambda: buffer.wait_in_thread(attempt, None, RuntimeError), lambda: NotImplemented
        )
        lines.wait_for(buffer._putters, 1)
        return putter
