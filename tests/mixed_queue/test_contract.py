"""What each face of a `MixedQueue` does when full, empty, shut down: as janus's do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import janus
import pytest

from queuestream.mixed_queue import MixedQueue
from tests.mixed_queue.places import WITHIN, Lines, Place

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("maxsize", [None, 1.0, "1", True, [1]])
def test_maxsize_that_is_no_whole_number(maxsize: Any) -> None:
    """A wrong maxsize shows only when the queue is full, far from where it was given."""
    with pytest.raises(TypeError, match="maxsize must be an int"):
        MixedQueue(maxsize)


def test_negative_maxsize() -> None:
    """Taken for unbounded, or for a queue that is always full."""
    with pytest.raises(ValueError, match="not -1"):
        MixedQueue(-1)


def test_faces_tell_what_there_is(place: Place) -> None:
    """The faces count differently."""
    queue = MixedQueue[int](2)
    face = place.face(queue)
    assert (face.maxsize, face.qsize(), face.empty(), face.full()) == (2, 0, True, False)
    place.put(queue, 1).result(WITHIN)
    assert (face.qsize(), face.empty(), face.full()) == (1, False, False)
    face.put_nowait(2)
    assert (face.qsize(), face.empty(), face.full(), face.unfinished_tasks) == (2, False, True, 2)
    assert (queue.maxsize, queue.closed, face.closed) == (2, False, False)


def test_unbounded_is_never_full(place: Place) -> None:
    """A bound of 0 is taken literally."""
    queue = MixedQueue[int]()
    for item in range(1_000):
        place.face(queue).put_nowait(item)
    assert not place.face(queue).full()
    assert [place.face(queue).get_nowait() for _ in range(1_000)] == list(range(1_000))


def test_get_waits_for_an_item(place: Place, other_place: Place, lines: Lines) -> None:
    """A getter of one kind is not woken by a putter of another."""
    queue = MixedQueue[str]()
    got = place.get(queue)
    lines.wait_for_getters(queue)
    other_place.put(queue, "item").result(WITHIN)
    assert got.result(WITHIN) == "item"


def test_put_waits_for_a_slot(place: Place, other_place: Place, lines: Lines) -> None:
    """A putter of one kind is not woken by a getter of another (promise 2)."""
    queue = MixedQueue[int](1)
    place.put(queue, 1).result(WITHIN)
    put = place.put(queue, 2)
    lines.wait_for_putters(queue)
    assert queue.sync_q.qsize() == 1
    assert other_place.get(queue).result(WITHIN) == 1
    put.result(WITHIN)
    assert other_place.get(queue).result(WITHIN) == 2


def test_nowait_never_waits(place: Place) -> None:
    """It waits, or raises what the other face raises."""
    queue = MixedQueue[int](1)
    face = place.face(queue)
    with pytest.raises(place.empty):
        face.get_nowait()
    face.put_nowait(1)
    with pytest.raises(place.full):
        face.put_nowait(2)
    assert face.get_nowait() == 1
    assert face.unfinished_tasks == 1


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_get_gives_up_in_time(timeout: float) -> None:
    """A getter that gave up stays in line, and an item's wake-up goes to it."""
    queue = MixedQueue[int]()
    with pytest.raises(janus.SyncQueueEmpty):
        queue.sync_q.get(timeout=timeout)
    with pytest.raises(janus.SyncQueueEmpty):
        queue.sync_q.get(block=False, timeout=timeout)
    assert not queue._buffer._getters


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_put_gives_up_in_time(timeout: float) -> None:
    """A putter that gave up stays in line, or its item is in the queue nonetheless."""
    queue = MixedQueue[int](1)
    queue.sync_q.put(1)
    with pytest.raises(janus.SyncQueueFull):
        queue.sync_q.put(2, timeout=timeout)
    with pytest.raises(janus.SyncQueueFull):
        queue.sync_q.put(2, block=False, timeout=timeout)
    assert not queue._buffer._putters
    assert (queue.sync_q.get(), queue.sync_q.qsize()) == (1, 0)


def test_a_timeout_counts_from_the_call(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wake-up in vain starts the time anew, so that a busy queue never gives up."""
    now = [100.0]
    waits: list[float | None] = []
    queue = MixedQueue[int]()

    def wait(waiter: object, timeout: float | None) -> bool:
        waits.append(timeout)
        queue._buffer._getters.call(1)
        now[0] += 4.0
        return len(waits) < 3  # woken, and there is nothing; then the time is over

    monkeypatch.setattr("queuestream._buffer.monotonic", lambda: now[0])
    monkeypatch.setattr("queuestream._wakeups.ThreadWaiter.wait", wait)
    with pytest.raises(janus.SyncQueueEmpty):
        queue.sync_q.get(timeout=10)
    assert waits == [10.0, 6.0, 2.0]


@pytest.mark.parametrize("timeout", [1e300, float("inf")])
def test_a_timeout_longer_than_a_lock_can_take(timeout: float, lines: Lines) -> None:
    """OverflowError, and only where the queue happens to be empty."""
    queue = MixedQueue[int]()
    got = Place("thread").start(lambda: queue.sync_q.get(timeout=timeout), queue.async_q.get)
    lines.wait_for_getters(queue)
    queue.sync_q.put(1)
    assert got.result(WITHIN) == 1


def test_negative_timeout() -> None:
    """Taken for 0 or for ever; janus raises where it would look at it."""
    queue = MixedQueue[int](1)
    with pytest.raises(ValueError, match="non-negative"):
        queue.sync_q.get(timeout=-1)
    with pytest.raises(ValueError, match="non-negative"):
        queue.sync_q.put(1, timeout=-1)
    MixedQueue[int]().sync_q.put(1, timeout=-1)
    queue.sync_q.put(1, block=False, timeout=-1)
    assert queue.sync_q.get(block=False, timeout=-1) == 1
    queue.shutdown()
    with pytest.raises(janus.SyncQueueShutDown):
        queue.sync_q.get(timeout=-1)
    with pytest.raises(janus.SyncQueueShutDown):
        queue.sync_q.put(1, timeout=-1)


def test_shutdown_refuses_items_and_hands_out_what_is_there(place: Place) -> None:
    """The end overtakes items that were put before it (promise 3)."""
    queue = MixedQueue[int]()
    face = place.face(queue)
    face.put_nowait(1)
    face.put_nowait(2)
    face.shutdown()
    assert queue.closed
    assert face.closed
    with pytest.raises(place.shut_down):
        place.put(queue, 3).result(WITHIN)
    with pytest.raises(place.shut_down):
        face.put_nowait(3)
    assert place.get(queue).result(WITHIN) == 1
    assert face.get_nowait() == 2
    with pytest.raises(place.shut_down):
        place.get(queue).result(WITHIN)
    with pytest.raises(place.shut_down):
        face.get_nowait()


def test_shutdown_wakes_all_getters(place: Place, lines: Lines) -> None:
    """The end wakes only the first, or those of one kind (promise 3)."""
    queue = MixedQueue[int]()
    waiting = [place.get(queue) for _ in range(3)]
    lines.wait_for_getters(queue, 3)
    queue.shutdown()
    for one in waiting:
        with pytest.raises(place.shut_down):
            one.result(WITHIN)


def test_shutdown_wakes_all_putters_and_takes_none_of_their_items(
    place: Place, lines: Lines
) -> None:
    """A putter that is woken by the end puts its item after it (promise 4)."""
    queue = MixedQueue[int](1)
    queue.sync_q.put(0)
    waiting = [place.put(queue, item) for item in (1, 2, 3)]
    lines.wait_for_putters(queue, 3)
    queue.shutdown()
    for one in waiting:
        with pytest.raises(place.shut_down):
            one.result(WITHIN)
    assert queue.sync_q.get() == 0
    with pytest.raises(janus.SyncQueueShutDown):
        queue.sync_q.get()


@pytest.mark.parametrize("close", [lambda q: q.shutdown(immediate=True), MixedQueue.close])
def test_immediate_shutdown_drops_items(
    place: Place, lines: Lines, close: Callable[[MixedQueue[int]], None]
) -> None:
    """Dropped items count as waiting or as unfinished, so that a join never ends."""
    queue = MixedQueue[int](2)
    queue.sync_q.put(1)
    queue.sync_q.put(2)
    putting, joining = place.put(queue, 3), place.join(queue)
    lines.wait_for_putters(queue)
    lines.wait_for_joiners(queue)
    close(queue)
    joining.result(WITHIN)
    with pytest.raises(place.shut_down):
        putting.result(WITHIN)
    with pytest.raises(place.shut_down):
        place.face(queue).get_nowait()
    face = place.face(queue)
    assert (face.qsize(), face.empty(), face.full(), face.unfinished_tasks) == (0, True, False, 0)


def test_immediate_shutdown_leaves_what_was_got_to_its_getter(place: Place) -> None:
    """An item that somebody works on counts as dropped: its task_done() is one too many."""
    queue = MixedQueue[int]()
    queue.sync_q.put(1)
    queue.sync_q.put(2)
    place.get(queue).result(WITHIN)
    queue.close()
    assert place.face(queue).unfinished_tasks == 1
    place.face(queue).task_done()
    place.join(queue).result(WITHIN)


def test_immediate_shutdown_after_a_gentle_one(place: Place) -> None:
    """The second call does nothing, because the queue is shut down already."""
    queue = MixedQueue[int]()
    queue.sync_q.put(1)
    queue.shutdown()
    queue.shutdown(immediate=True)
    queue.shutdown()
    with pytest.raises(place.shut_down):
        place.get(queue).result(WITHIN)
    place.join(queue).result(WITHIN)


def test_join_waits_until_each_item_is_done(place: Place, lines: Lines) -> None:
    """Join looks at the items that wait, and not at those that are worked on."""
    queue = MixedQueue[int]()
    place.join(queue).result(WITHIN)
    queue.sync_q.put(1)
    queue.sync_q.put(2)
    waiting = [place.join(queue), place.join(queue)]
    lines.wait_for_joiners(queue, 2)
    queue.sync_q.get()
    place.face(queue).task_done()
    queue.sync_q.get()
    assert len(queue._buffer._joiners) == 2
    place.face(queue).task_done()
    for one in waiting:
        one.result(WITHIN)


def test_task_done_too_often(place: Place) -> None:
    """The count goes below zero, and a later join hangs or ends too early."""
    queue = MixedQueue[int]()
    with pytest.raises(ValueError, match="too many times"):
        place.face(queue).task_done()
    queue.sync_q.put(1)
    place.face(queue).task_done()
    with pytest.raises(ValueError, match="too many times"):
        place.face(queue).task_done()


def test_the_async_face_outside_of_any_loop() -> None:
    """A coroutine that waits where nobody can wake it."""
    queue = MixedQueue[int]()
    waiting = queue.async_q.get()
    with pytest.raises(RuntimeError):
        while True:
            waiting.send(None)
    assert not queue._buffer._getters


@pytest.mark.anyio
async def test_aclose_closes_at_once() -> None:
    """aclose() waits for something, or is harmful when called twice."""
    queue = MixedQueue[int]()
    with pytest.raises(RuntimeError, match="non-closed"):
        await queue.wait_closed()
    queue.sync_q.put(1)
    await queue.aclose()
    await queue.aclose()
    await queue.wait_closed()
    assert queue.closed
    with pytest.raises(janus.AsyncQueueShutDown):
        await queue.async_q.get()


@pytest.mark.anyio
async def test_aclose_that_is_cancelled_has_closed() -> None:
    """A stop that is cancelled did not happen."""
    queue = MixedQueue[int]()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await queue.aclose()
    assert queue.closed
