"""Somebody who waits gives up: nothing that was meant for it is lost."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import janus
import pytest

from queuestream._buffer import Buffer
from queuestream._wakeups import ThreadWaiter
from queuestream.mixed_queue import MixedQueue
from tests.mixed_queue.places import WITHIN, Lines, Place, lined_up
from tests.support.backends import ASYNCIO_BACKENDS
from tests.support.gates import eventually_async
from tests.support.schedule import HookedLock
from tests.support.signals import signals_when

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from queuestream._buffer import _Line

pytestmark = pytest.mark.anyio
on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS)


class Ends:
    """The two ends of a queue as mirror images: one that waits, and what lets it go on."""

    def __init__(self, end: str) -> None:
        self.is_get = end == "get"
        self.queue = MixedQueue[str](1)
        if not self.is_get:
            self.queue.sync_q.put("first")

    @property
    def line(self) -> _Line:
        return self.queue._buffer._getters if self.is_get else self.queue._buffer._putters

    async def wait(self, name: str) -> str:
        """Get an item, or put one; return which."""
        if self.is_get:
            return await self.queue.async_q.get()
        await self.queue.async_q.put(name)
        return name

    def wait_in_thread(self, name: str) -> str:
        if self.is_get:
            return self.queue.sync_q.get(timeout=WITHIN)
        self.queue.sync_q.put(name, timeout=WITHIN)
        return name

    def let_one_go_on(self) -> None:
        """Put an item, or make a free slot."""
        if self.is_get:
            self.queue.sync_q.put_nowait("item")
        else:
            self.queue.sync_q.get_nowait()

    def went_on(self, name: str) -> str:
        """What the one of that name got or put."""
        return "item" if self.is_get else name

    def check_nothing_is_left(self, put_by: str) -> None:
        """The one item has gone to whoever waited, or is the one that `put_by` has put."""
        assert not self.queue._buffer._getters
        assert not self.queue._buffer._putters
        if self.is_get:
            assert self.queue.sync_q.empty()
        else:
            assert self.queue.sync_q.get_nowait() == put_by
            assert self.queue.sync_q.empty()


@pytest.fixture(params=["get", "put"])
def ends(request: pytest.FixtureRequest) -> Ends:
    return Ends(request.param)


async def test_one_that_was_cancelled_stands_in_no_line(ends: Ends) -> None:
    """An item or a free slot goes to a waiter that has gone."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ends.wait, "gone")
        await lined_up(ends.line)
        tasks.cancel_scope.cancel()
    assert not ends.line
    ends.let_one_go_on()
    if ends.is_get:
        assert ends.queue.sync_q.get_nowait() == "item"
    assert ends.queue.sync_q.empty()


@pytest.mark.parametrize("order", ["wake, cancel", "cancel, wake"])
async def test_cancelled_in_the_same_turn_as_woken(ends: Ends, order: str) -> None:
    """The wake-up of a task that is cancelled before it runs again, by its scope."""
    went_on: dict[str, str] = {}
    one = ""

    async def wait(name: str, scope: anyio.CancelScope) -> None:
        with scope:
            went_on[name] = await ends.wait(name)

    async with anyio.create_task_group() as tasks:
        scopes = {"first": anyio.CancelScope(), "second": anyio.CancelScope()}
        for number, (name, scope) in enumerate(scopes.items(), start=1):
            tasks.start_soon(wait, name, scope)
            await lined_up(ends.line, number)
        steps = [ends.let_one_go_on, scopes["first"].cancel]
        for step in steps if order == "wake, cancel" else reversed(steps):
            step()
        # Either has it: the first went on before it could be cancelled, or the second.
        await eventually_async(lambda: went_on)
        one = next(iter(went_on))
        assert went_on == {one: ends.went_on(one)}
        scopes["second"].cancel()
    assert len(went_on) == 1
    ends.check_nothing_is_left(one)


@on_asyncio
@pytest.mark.parametrize("order", ["wake, cancel", "cancel, wake"])
async def test_a_task_cancelled_in_the_same_turn_as_woken(ends: Ends, order: str) -> None:
    """A task of asyncio is cancelled even if what it awaits is done: then it has not taken part."""
    first = asyncio.create_task(ends.wait("first"))
    await lined_up(ends.line, 1)
    second = asyncio.create_task(ends.wait("second"))
    await lined_up(ends.line, 2)
    steps: list[Callable[[], object]] = [ends.let_one_go_on, first.cancel]
    for step in steps if order == "wake, cancel" else reversed(steps):
        step()
    assert await asyncio.wait_for(second, WITHIN) == ends.went_on("second")
    with pytest.raises(asyncio.CancelledError):
        await first
    ends.check_nothing_is_left("second")


@on_asyncio
async def test_all_that_were_woken_are_cancelled(ends: Ends) -> None:
    """A wake-up passes on more than once, at last to one that came much later."""
    tasks: list[asyncio.Task[str]] = []
    for number in range(1, 6):
        tasks.append(asyncio.create_task(ends.wait(str(number))))
        await lined_up(ends.line, number)
    ends.let_one_go_on()
    for task in tasks[:-1]:
        task.cancel()
    assert await asyncio.wait_for(tasks[-1], WITHIN) == ends.went_on("5")
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [task.cancelled() for task in tasks] == [True, True, True, True, False]
    ends.check_nothing_is_left("5")


async def test_a_wake_up_passes_from_a_loop_to_a_thread(ends: Ends, lines: Lines) -> None:
    """The next in line waits in another way and another thread than the one that gives up."""
    waiting: list[Future[str]] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ends.wait, "gone")
        await lined_up(ends.line)
        waiting.append(
            Place("thread").start(lambda: ends.wait_in_thread("next"), lambda: NotImplemented)
        )
        lines.wait_for(ends.line, 2)
        tasks.cancel_scope.cancel()
        ends.let_one_go_on()
    assert waiting[0].result(WITHIN) == ends.went_on("next")
    ends.check_nothing_is_left("next")


async def test_a_joiner_that_was_cancelled_leaves_the_others(lines: Lines) -> None:
    """The end of all tasks is told once; it must not go to one that has gone alone."""
    queue = MixedQueue[int]()
    queue.sync_q.put(1)
    joiner = Place("thread").join(queue)
    lines.wait_for_joiners(queue, 1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.async_q.join)
        await lined_up(queue._buffer._joiners, 2)
        tasks.cancel_scope.cancel()
        queue.sync_q.task_done()
    joiner.result(WITHIN)


async def test_cancelled_before_the_shutdown(ends: Ends) -> None:
    """The end meets a line with a hole in it (promise 3)."""
    ended = []

    async def wait_for_end() -> None:
        with pytest.raises(janus.AsyncQueueShutDown):
            await ends.wait("waits")
        ended.append(True)

    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as cancelled:
                cancelled.start_soon(ends.wait, "gone")
                await lined_up(ends.line, 1)
                tasks.start_soon(wait_for_end)
                await lined_up(ends.line, 2)
                scope.cancel()
                ends.queue.shutdown()
    assert ended == [True]


@on_asyncio
@pytest.mark.skipif(sys.version_info < (3, 12), reason="before, wait_for made a task of its own")
async def test_wait_for_that_is_late_loses_no_item() -> None:
    """The time is over in the turn in which the item comes."""
    queue = MixedQueue[str]()

    async def get_in_no_time() -> str | None:
        try:
            async with asyncio.timeout(None) as limit:  # type: ignore[attr-defined,unused-ignore]
                limits.append(limit)
                return await queue.async_q.get()
        except TimeoutError:
            return None

    limits: list[Any] = []
    getter = asyncio.create_task(get_in_no_time())
    await lined_up(queue._buffer._getters)
    queue.async_q.put_nowait("item")
    limits[0].reschedule(asyncio.get_running_loop().time() - 1)
    got = await getter
    assert [got, queue.sync_q.qsize()] in ([None, 1], ["item", 0])


# -- threads ---------------------------------------------------------------------------------


def hooked(queue: MixedQueue[Any]) -> HookedLock:
    """Give a queue a lock with hooks."""
    lock = HookedLock()
    queue._buffer._lock = lock  # type: ignore[assignment]
    return lock


def test_an_item_comes_when_the_time_of_a_get_is_over() -> None:
    """The item's wake-up goes to a getter whose time is just over: it has it nonetheless.

    1. A getter lines up; its time is over at once.
    2. Before it has left the line, an item is put and wakes it.
    3. It leaves, and takes the item.
    """
    queue = MixedQueue[str]()
    lock = hooked(queue)
    for _ in range(2):  # the attempt, and the one that lines up: 1
        lock.at("wanted", lambda: None)
    lock.at("wanted", lambda: queue.sync_q.put("item"))  # 2
    assert queue.sync_q.get(timeout=0) == "item"  # 3
    assert queue.sync_q.empty()


def test_a_slot_comes_when_the_time_of_a_put_is_over() -> None:
    """The mirror image."""
    queue = MixedQueue[str](1)
    queue.sync_q.put("first")
    lock = hooked(queue)
    for _ in range(2):
        lock.at("wanted", lambda: None)
    got: list[str] = []
    lock.at("wanted", lambda: got.append(queue.sync_q.get()))
    queue.sync_q.put("second", timeout=0)
    assert [*got, queue.sync_q.get()] == ["first", "second"]


def test_a_get_whose_time_is_over_passes_its_wake_up_on(
    place: Place, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Woken when its time is over, and somebody quicker has the item: the next is another's.

    1. A getter lines up, and another behind it.
    2. An item is put and wakes the first, whose time is over at this moment.
    3. The item is taken by somebody who never waited; a second one wakes the other.
    4. Whoever is first has the second item; a third is had by the other.
    """
    queue = MixedQueue[str]()
    waiting: list[Any] = []

    def wait_until_time_is_over(waiter: ThreadWaiter, timeout: float | None) -> bool:
        if timeout is None:
            return wait(waiter, timeout)
        waiting.append(place.get(queue))  # 1
        lines.wait_for_getters(queue, 2)
        queue.sync_q.put("a")  # 2
        assert queue.sync_q.get_nowait() == "a"  # 3
        queue.sync_q.put("b")
        return False

    wait = ThreadWaiter.wait
    monkeypatch.setattr(ThreadWaiter, "wait", wait_until_time_is_over)
    try:
        got = [queue.sync_q.get(timeout=1)]
        queue.sync_q.put("c")
    except janus.SyncQueueEmpty:
        got = []
    got.append(waiting[0].result(WITHIN))
    assert got in (["b", "c"], ["b"])
    assert not queue._buffer._getters


def test_the_lock_is_held_when_the_time_of_a_get_is_over() -> None:
    """Leaving the line is a request, which another carries out later.

    1. A getter lines up; its time is over at once.
    2. Another thread takes the lock; the getter cannot leave now.
    3. The other thread releases the lock, with an item in the buffer.
    """
    queue = MixedQueue[str]()
    lock = hooked(queue)
    holds, may_release = threading.Event(), threading.Event()

    def hold() -> None:
        with lock._lock:  # without a step of the test
            holds.set()
            may_release.wait(WITHIN)

    holder = threading.Thread(target=hold, daemon=True)

    def start_holder() -> None:
        holder.start()
        assert holds.wait(WITHIN)

    for _ in range(2):
        lock.at("wanted", lambda: None)
    lock.at("wanted", start_holder)  # 2: the getter wants to leave
    lock.at("wanted", may_release.set)  # 3: the getter's last attempt
    with pytest.raises(janus.SyncQueueEmpty):
        queue.sync_q.get(timeout=0)
    holder.join(WITHIN)
    assert not queue._buffer._getters
    queue.sync_q.put("item")
    assert queue.sync_q.get_nowait() == "item"


class _InterruptedError(BaseException):
    """What a signal handler raises."""


@pytest.mark.parametrize("end", ["get", "put"])
@pytest.mark.parametrize("is_woken", [False, True])
def test_a_signal_interrupts_a_thread_that_waits(
    end: str, is_woken: bool, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while waiting: the line has a dead waiter, or its wake-up is lost (promise 1).

    1. This thread, the main thread, lines up.  Another thread lines up behind it.
    2. Or not: something comes, and this thread is woken.
    3. A signal handler raises, before this thread has tried again.
    4. What came, or comes now, is the other thread's.
    """
    ends = Ends(end)
    wait = ThreadWaiter.wait
    waiting: list[Any] = []

    def wait_and_be_interrupted(waiter: ThreadWaiter, timeout: float | None) -> bool:
        if threading.current_thread() is threading.main_thread():
            waiting.append(
                Place("thread").start(lambda: ends.wait_in_thread("other"), lambda: NotImplemented)
            )
            lines.wait_for(ends.line, 2)
            if is_woken:
                ends.let_one_go_on()
            signal.raise_signal(signal.SIGUSR1)
        return wait(waiter, timeout)

    monkeypatch.setattr(ThreadWaiter, "wait", wait_and_be_interrupted)
    old = signal.signal(signal.SIGUSR1, handle_interrupt)
    try:
        with pytest.raises(_InterruptedError):
            ends.wait_in_thread("interrupted")
    finally:
        signal.signal(signal.SIGUSR1, old)
    if not is_woken:
        ends.let_one_go_on()
    assert waiting[0].result(WITHIN) == ends.went_on("other")
    ends.check_nothing_is_left("other")


def test_a_signal_wakes_a_thread_out_of_its_sleep(lines: Lines) -> None:
    """A wait without a timeout that Ctrl-C cannot end (promise 8)."""
    queue = MixedQueue[str]()

    def has_lined_up() -> None:
        lines.wait_for_getters(queue)

    with signals_when(has_lined_up, handle_interrupt), pytest.raises(_InterruptedError):
        queue.sync_q.get()
    assert not queue._buffer._getters


def test_a_putter_is_interrupted_before_it_has_woken_the_getter(
    place: Place, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The getter was called out of the line and sleeps on; not even the end wakes it (promise 3).

    1. A getter lines up.
    2. An item is put; Ctrl-C comes when the getter is out of the line and was not woken.
    3. The queue is shut down.
    """
    queue = MixedQueue[str]()
    got = place.get(queue)  # 1
    lines.wait_for_getters(queue)
    with monkeypatch.context() as patch, pytest.raises(_InterruptedError):
        patch.setattr(Buffer, "_wake", handle_interrupt)
        queue.sync_q.put("item")  # 2
    assert not queue._buffer._getters
    assert not got.done()
    queue.shutdown()  # 3
    assert got.result(WITHIN) == "item"


def handle_interrupt(*_: object) -> None:
    """Do what a handler of Ctrl-C does."""
    raise _InterruptedError


def test_a_wake_up_in_vain_is_not_passed_on(
    lines: Lines, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that gives up wakes the next, which finds nothing."""
    queue = MixedQueue[str]()
    others: list[Future[str]] = []

    def wait_until_time_is_over(waiter: ThreadWaiter, timeout: float | None) -> bool:
        if timeout is None:
            return wait(waiter, timeout)
        others.append(place.get(queue))
        lines.wait_for_getters(queue, 2)
        queue.sync_q.put("a")
        assert queue.sync_q.get_nowait() == "a"
        return False

    wait = ThreadWaiter.wait
    monkeypatch.setattr(ThreadWaiter, "wait", wait_until_time_is_over)
    with pytest.raises(janus.SyncQueueEmpty):
        queue.sync_q.get(timeout=1)
    assert len(queue._buffer._getters) == 1  # the other sleeps
    queue.sync_q.put("b")
    assert others[0].result(WITHIN) == "b"
