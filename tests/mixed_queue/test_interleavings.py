"""One interleaving each: somebody comes while another holds the lock, or is about to.

What may happen in a finalizer or a signal handler happens here in the very thread that
holds the lock: a plain lock would wait for itself, and the test would hang (promise 7).
"""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import TYPE_CHECKING, Any

import anyio
import janus
import pytest

from queuestream._wakeups import ThreadWaiter
from queuestream.mixed_queue import MixedQueue
from tests.mixed_queue.places import WITHIN, Lines, Place, lined_up
from tests.support.backends import ASYNCIO_BACKENDS
from tests.support.schedule import HookedLock
from tests.support.signals import signals_when

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream._buffer import Buffer

HOLDERS: dict[str, Callable[[MixedQueue[Any]], object]] = {
    "put": lambda queue: queue.sync_q.put_nowait("late"),
    "get": lambda queue: queue._buffer.try_get(None, janus.SyncQueueShutDown),
    "task_done": lambda queue: queue.sync_q.task_done(),
    "join": lambda queue: queue._buffer.try_join(None),
    "shutdown": lambda queue: queue.shutdown(),
    "close": lambda queue: queue.close(),
    "put_past_end": lambda queue: queue._buffer.put_past_end("late"),
}
"""All that takes the lock, each on a queue with one item and room for another."""
holders = pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
BOUNDARIES = ["wanted", "held", "releasing", "free"]
at_each_boundary = pytest.mark.parametrize("boundary", BOUNDARIES)


def hooked(buffer: Buffer[Any]) -> HookedLock:
    """Give a buffer a lock with hooks."""
    lock = HookedLock()
    buffer._lock = lock  # type: ignore[assignment]
    return lock


def tolerate(operation: Callable[[MixedQueue[Any]], object], queue: MixedQueue[Any]) -> None:
    """Do something that the end may refuse."""
    try:
        operation(queue)
    except (janus.SyncQueueShutDown, janus.SyncQueueEmpty, ValueError):
        pass


@holders
@at_each_boundary
@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_in_the_thread_that_holds_the_lock(
    hold: Callable[[MixedQueue[Any]], object], boundary: Any, immediate: bool
) -> None:
    """A finalizer or signal handler shuts down in the middle of an operation (promise 7)."""
    queue = MixedQueue[Any](2)
    queue.sync_q.put("item")
    hooked(queue._buffer).at(boundary, lambda: queue.shutdown(immediate=immediate))
    tolerate(hold, queue)
    assert queue.closed
    assert not queue._buffer._requests
    if immediate:
        assert (queue.sync_q.qsize(), list(queue._buffer.items)) == (0, [])
    with pytest.raises(janus.SyncQueueShutDown):
        while True:
            queue.sync_q.get_nowait()
    with pytest.raises(janus.SyncQueueShutDown):
        queue.sync_q.put_nowait("never")


@holders
@at_each_boundary
@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_reaches_those_who_wait_whoever_holds_the_lock(
    hold: Callable[[MixedQueue[Any]], object],
    boundary: Any,
    immediate: bool,
    lines: Lines,
    open_place: Callable[[str], Place],
) -> None:
    """The request is made, and the holder forgets to look for it (promises 3 and 4)."""
    queue = MixedQueue[Any](1)
    queue.sync_q.put("item")
    queue.sync_q.get()
    waiting = [(place := open_place(name), place.get(queue)) for name in ("thread", "trio")]
    lines.wait_for_getters(queue, 2)
    hooked(queue._buffer).at(boundary, lambda: queue.shutdown(immediate=immediate))
    tolerate(hold, queue)
    for place, one in waiting:
        error = one.exception(WITHIN)
        assert isinstance(error, place.shut_down) or one.result() == "late"


@pytest.mark.parametrize("immediate", [False, True])
def test_shutdown_between_the_look_and_the_line(lines: Lines, immediate: bool) -> None:
    """A getter finds nothing and lines up, after the end has woken all that were in line.

    1. The getter has the lock and has found nothing.
    2. The end comes from another thread, which cannot have the lock.
    3. The getter lines up and releases the lock, and has to see the end now.
    """
    queue = MixedQueue[Any]()
    lock = hooked(queue._buffer)

    def end_elsewhere() -> None:
        thread = threading.Thread(target=queue.shutdown, args=(immediate,))
        thread.start()
        thread.join(WITHIN)
        assert not thread.is_alive()  # promise 7: it does not wait

    lock.at("held", lambda: None)  # the attempt that would not wait
    lock.at("releasing", lambda: None)
    lock.at("releasing", end_elsewhere)  # the line-up: 2
    got = Place("thread").get(queue)
    with pytest.raises(janus.SyncQueueShutDown):
        got.result(WITHIN)


@pytest.mark.parametrize("boundary", ["wanted", "held"])
def test_a_put_before_the_getter_is_in_line(boundary: Any, lines: Lines) -> None:
    """An item comes after a getter's look and before its line-up, and wakes nobody.

    1. The getter's first attempt finds nothing.
    2. Another thread puts an item before, or is about to while, the getter has the lock again.
    3. The getter, about to line up, sees the item, or is woken.
    """
    queue = MixedQueue[str]()
    lock = hooked(queue._buffer)
    putters: list[threading.Thread] = []

    def put_elsewhere() -> None:
        putters.append(threading.Thread(target=queue.sync_q.put, args=("item",)))
        lock.at("wanted", began.set)
        putters[0].start()
        assert began.wait(WITHIN)
        if boundary == "wanted":  # else it waits for the lock, which this thread holds
            putters[0].join(WITHIN)

    began = threading.Event()
    lock.at(boundary, lambda: None)  # 1
    lock.at(boundary, put_elsewhere)  # 2
    assert queue.sync_q.get(timeout=WITHIN) == "item"  # 3
    putters[0].join(WITHIN)


@pytest.mark.parametrize("boundary", ["wanted", "held", "lining up"])
def test_a_get_before_the_putter_is_in_line(boundary: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirror image; a get takes no lock, and so may come in the middle of a put."""
    queue = MixedQueue[str](1)
    queue.sync_q.put("first")
    got: list[str] = []

    def get_elsewhere(*_: object) -> None:
        got.append(Place("thread").get(queue).result(WITHIN))

    if boundary == "lining up":
        monkeypatch.setattr(ThreadWaiter, "arm", get_elsewhere)
    else:
        lock = hooked(queue._buffer)
        lock.at(boundary, lambda: None)
        lock.at(boundary, get_elsewhere)
    queue.sync_q.put("second", timeout=WITHIN)
    assert got == ["first"]
    assert queue.sync_q.get(timeout=WITHIN) == "second"


# -- past the end ----------------------------------------------------------------------------


@pytest.mark.parametrize("hold", ["put", "get", "task_done", "join", "put_past_end"])
@at_each_boundary
def test_past_the_end_in_the_thread_that_holds_the_lock(hold: str, boundary: Any) -> None:
    """What needs no free slot does not wait for the lock either, and is not lost (promise 3)."""
    queue = MixedQueue[Any](4)
    queue.sync_q.put("item")
    hooked(queue._buffer).at(boundary, lambda: queue._buffer.put_past_end("past the end"))
    HOLDERS[hold](queue)
    assert list(queue._buffer.items).count("past the end") == 1


def test_what_is_put_past_the_end_comes_before_what_the_same_thread_puts_then() -> None:
    """The request is carried out after a later put of the same thread (promise 1).

    1. Another thread holds the lock; this one puts past the end.
    2. The other releases the lock, and has not looked for requests when this one puts.
    """
    queue = MixedQueue[str](1)
    lock = hooked(queue._buffer)
    held, requested, put = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        lock.at("held", held.set)
        lock.at("releasing", lambda: requested.wait(WITHIN))
        lock.at("free", lambda: put.wait(WITHIN))
        queue._buffer.try_join(None)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(WITHIN)
    queue._buffer.put_past_end("first")  # 1
    assert queue.sync_q.empty()
    requested.set()
    with pytest.raises(janus.SyncQueueFull):  # 2: by what was put past the end, before this
        queue.sync_q.put("second", timeout=0)
    put.set()
    holder.join(WITHIN)
    assert queue.sync_q.get_nowait() == "first"


def test_what_is_put_past_the_end_comes_before_the_end() -> None:
    """Requested while the lock was held, as was the end; a getter sees the end first (promise 3).

    1. Another thread holds the lock; this one puts past the end, and shuts down.
    2. The other releases the lock, and has not looked for requests when this one gets.
    """
    queue = MixedQueue[str](1)
    lock = hooked(queue._buffer)
    held, requested, got = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        lock.at("held", held.set)
        lock.at("releasing", lambda: requested.wait(WITHIN))
        lock.at("free", lambda: got.wait(WITHIN))
        queue._buffer.try_join(None)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(WITHIN)
    queue._buffer.put_past_end("past the end")
    queue.shutdown()
    requested.set()
    assert queue.sync_q.get_nowait() == "past the end"
    with pytest.raises(janus.SyncQueueShutDown):
        queue.sync_q.get_nowait()
    got.set()
    holder.join(WITHIN)


def test_past_the_end_wakes_a_getter_and_counts(lines: Lines, place: Place) -> None:
    """An item that came in another way is not heard, or task_done() is one too many."""
    queue = MixedQueue[str](1)
    got = place.get(queue)
    lines.wait_for_getters(queue)
    queue._buffer.put_past_end("item")
    assert got.result(WITHIN) == "item"
    queue.sync_q.task_done()
    queue.sync_q.join()


def test_past_the_end_of_a_full_queue_wakes_no_putter_too_many(lines: Lines) -> None:
    """A queue past its bound: one freed slot is none (promise 2)."""
    queue = MixedQueue[str](1)
    queue.sync_q.put("a")
    queue._buffer.put_past_end("b")
    put = Place("thread").put(queue, "c")
    lines.wait_for_putters(queue)
    assert queue.sync_q.get() == "a"
    lines.wait_for_putters(queue)
    assert not put.done()
    assert queue.sync_q.get() == "b"
    put.result(WITHIN)
    assert queue.sync_q.get() == "c"


def test_past_the_end_after_the_end() -> None:
    """A late item in a queue that has ended: nobody ever gets it."""
    queue = MixedQueue[str]()
    queue.shutdown()
    queue._buffer.put_past_end("item")
    assert queue.sync_q.empty()
    assert queue.sync_q.unfinished_tasks == 0


# -- waiters that are dropped -----------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS)
@at_each_boundary
@pytest.mark.parametrize("is_woken", [False, True])
async def test_a_coroutine_is_dropped_in_the_thread_that_holds_the_lock(
    boundary: Any, is_woken: bool, lines: Lines
) -> None:
    """The collector drops a coroutine that waits, in the middle of an operation (promise 7)."""
    queue = MixedQueue[str]()
    dropped = queue.async_q.get()
    while not queue._buffer._getters:
        future: asyncio.Future[None] | None = dropped.send(None)
        if future is not None:
            future._asyncio_future_blocking = False  # as a task that takes it says
    other = Place("thread").get(queue)
    lines.wait_for_getters(queue, 2)
    if is_woken:
        queue.sync_q.put("item")
    lock = hooked(queue._buffer)
    lock.at(boundary, dropped.close)
    queue._buffer.try_join(None)
    assert not queue._buffer._requests
    if not is_woken:
        queue.sync_q.put("item")
    assert other.result(WITHIN) == "item"
    assert not queue._buffer._getters


@pytest.mark.anyio
async def test_cancelled_while_another_thread_holds_the_lock(lines: Lines) -> None:
    """A loop that is cancelled waits for the lock, and everything on it too (promise 5)."""
    queue = MixedQueue[str]()
    lock = hooked(queue._buffer)
    held, cancelled = threading.Event(), threading.Event()

    def hold() -> None:
        lock.at("held", held.set)
        lock.at("releasing", lambda: cancelled.wait(WITHIN))
        queue._buffer.try_join(None)

    holder = threading.Thread(target=hold)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.async_q.get)
        await lined_up(queue._buffer._getters)
        holder.start()
        held.wait(WITHIN)
        tasks.cancel_scope.cancel()
    assert len(queue._buffer._getters) == 1  # a request
    cancelled.set()
    holder.join(WITHIN)
    assert not queue._buffer._getters


# -- what is dropped -------------------------------------------------------------------------


class Touchy:
    """An item whose finalizer uses the queue that it was in."""

    dropped = 0

    def __init__(self, queue: MixedQueue[Any]) -> None:
        self.queue = queue

    def __del__(self) -> None:
        Touchy.dropped += 1
        assert not self.queue._buffer._lock.locked(), "dropped under the lock"
        tolerate(lambda queue: queue.sync_q.get_nowait(), self.queue)
        tolerate(lambda queue: queue.sync_q.put_nowait("from a finalizer"), self.queue)
        tolerate(lambda queue: queue.sync_q.task_done(), self.queue)
        self.queue.close()


@pytest.fixture
def touchy() -> type[Touchy]:
    Touchy.dropped = 0
    return Touchy


@holders
@at_each_boundary
def test_items_are_dropped_outside_of_the_lock(
    hold: Callable[[MixedQueue[Any]], object], boundary: Any, touchy: type[Touchy]
) -> None:
    """The finalizer of an item uses the queue, and waits for the lock it was dropped under."""
    queue = MixedQueue[Any](4)
    queue.sync_q.put(touchy(queue))
    queue.sync_q.put(touchy(queue))
    hooked(queue._buffer).at(boundary, queue.close)
    tolerate(hold, queue)
    assert touchy.dropped == 2


def test_items_are_dropped_outside_of_the_lock_where_a_wake_up_fails(
    lines: Lines, touchy: type[Touchy]
) -> None:
    """A loop that was closed makes for a second turn with the lock, which drops the first's.

    1. An item waits, and somebody waits to join, on a loop that is closed.
    2. The immediate shutdown drops the item, and cannot wake the joiner.
    3. It takes the lock again, to wake the next instead.
    """
    queue = MixedQueue[Any]()
    queue.sync_q.put(touchy(queue))
    loop = asyncio.new_event_loop()
    joiner = loop.create_task(queue.async_q.join())
    joiner._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_until_complete(asyncio.sleep(0))
    lines.wait_for_joiners(queue)
    loop.close()  # 1
    queue.close()
    assert touchy.dropped == 1


def test_an_item_that_is_refused_past_the_end_is_dropped_outside_of_the_lock(
    touchy: type[Touchy],
) -> None:
    """What is put past the end and comes too late has its finalizer run under the lock."""
    queue = MixedQueue[Any]()
    lock = hooked(queue._buffer)

    def put_past_end_and_close() -> None:
        queue._buffer.put_past_end(touchy(queue))
        queue.close()

    lock.at("held", put_past_end_and_close)
    queue._buffer.try_join(None)
    assert touchy.dropped == 1


# -- signals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", ["held", "releasing"])
def test_shutdown_from_a_signal_handler_that_interrupts_the_holder(boundary: Any) -> None:
    """The handler waits for a lock that cannot be released before it returns (promise 7)."""
    queue = MixedQueue[str]()
    hooked(queue._buffer).at(boundary, lambda: signal.raise_signal(signal.SIGUSR1))
    old = signal.signal(signal.SIGUSR1, lambda *_: queue.shutdown(immediate=True))
    try:
        tolerate(lambda queue: queue.sync_q.put("item"), queue)
    finally:
        signal.signal(signal.SIGUSR1, old)
    with pytest.raises(janus.SyncQueueShutDown):
        queue.sync_q.get_nowait()
    assert not queue._buffer.items


def test_shutdown_from_a_signal_handler_wakes_the_thread_it_interrupted(lines: Lines) -> None:
    """The main thread sleeps in a get; its own handler ends the queue (promise 7)."""
    queue = MixedQueue[str]()

    def has_lined_up() -> None:
        lines.wait_for_getters(queue)

    with (
        signals_when(has_lined_up, lambda *_: queue.shutdown()),
        pytest.raises(janus.SyncQueueShutDown),
    ):
        queue.sync_q.get()
