"""Waking one waiter: the doorbell of a loop, the latch, and signals."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import janus
import pytest
import trio
import trio.lowlevel

from queuestream import _wakeups
from queuestream._doorbell import Doorbell
from queuestream._wakeups import (
    Latch,
    ThreadWaiter,
    async_waiter,
    current_loop,
)
from queuestream.mixed_queue import MixedQueue
from tests.mixed_queue.places import WITHIN, Lines, Place, lined_up
from tests.support.backends import ALL_BACKENDS, ASYNCIO_BACKENDS
from tests.support.signals import signals_when

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream._wakeups import AsyncWaiter

pytestmark = pytest.mark.anyio
ALL_BACKENDS_OF_RUN = [
    pytest.param(*backend.values[0], id=backend.id, marks=backend.marks)  # type: ignore[misc]
    for backend in ALL_BACKENDS
]
on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS)


class Calls:
    """Counts how often somebody from elsewhere calls into the running loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        loop = current_loop()
        if isinstance(loop, asyncio.AbstractEventLoop):
            self._call: Callable[..., Any] = loop.call_soon_threadsafe
            monkeypatch.setattr(loop, "call_soon_threadsafe", self)
        else:
            self._call = trio.lowlevel.TrioToken.run_sync_soon
            calls = self

            def run_sync_soon(token: Any, *args: Any, **kwargs: Any) -> None:
                calls(token, *args, **kwargs)

            monkeypatch.setattr(trio.lowlevel.TrioToken, "run_sync_soon", run_sync_soon)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        return self._call(*args, **kwargs)


def in_another_thread(do: Callable[[], object]) -> None:
    """Do something elsewhere, while this loop stands still."""
    thread = threading.Thread(target=do)
    thread.start()
    thread.join(WITHIN)
    assert not thread.is_alive()


async def test_the_doorbell_joins_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system call for each wake-up: a burst of items costs more to announce than to move."""
    queues = [MixedQueue[int]() for _ in range(50)]
    got: list[int] = []

    async def get(queue: MixedQueue[int]) -> None:
        got.append(await queue.async_q.get())

    def put_all() -> None:
        for number, queue in enumerate(queues):
            queue.sync_q.put(number)

    async with anyio.create_task_group() as tasks:
        for queue in queues:
            tasks.start_soon(get, queue)
        for queue in queues:
            await lined_up(queue._buffer._getters)
        calls = Calls(monkeypatch)
        in_another_thread(put_all)
        assert calls.count == 1
    assert sorted(got) == list(range(50))


async def test_the_doorbell_rings_again_after_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bell that was rung once stays silent for ever."""
    queue = MixedQueue[int]()
    calls = Calls(monkeypatch)
    got: list[int] = []

    async def get() -> None:
        while len(got) < 3:
            got.append(await queue.async_q.get())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get)
        for number in range(3):
            await lined_up(queue._buffer._getters)
            in_another_thread(lambda item=number: queue.sync_q.put(item))  # type: ignore[misc]
            assert calls.count == number + 1
    assert got == [0, 1, 2]


@on_asyncio
async def test_a_task_is_woken_without_the_doorbell_by_its_own_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A system call, and a turn of the loop, between two tasks of one loop."""
    queue = MixedQueue[int]()
    getter = asyncio.create_task(queue.async_q.get())
    await lined_up(queue._buffer._getters)
    calls = Calls(monkeypatch)
    queue.async_q.put_nowait(1)
    assert await getter == 1
    assert calls.count == 0


@on_asyncio
async def test_a_ring_that_is_interrupted_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when the bell counts as rung and the loop was not called: nobody rings again."""
    first, second = MixedQueue[int](), MixedQueue[int]()
    waiting = [asyncio.create_task(queue.async_q.get()) for queue in (first, second)]
    await lined_up(first._buffer._getters)
    await lined_up(second._buffer._getters)
    loop = asyncio.get_running_loop()
    call = loop.call_soon_threadsafe
    interrupts = [KeyboardInterrupt()]

    def call_soon_threadsafe(*args: Any, **kwargs: Any) -> Any:
        if interrupts:
            raise interrupts.pop()
        return call(*args, **kwargs)

    def put_both() -> None:
        with pytest.raises(KeyboardInterrupt):
            first.sync_q.put(1)
        second.sync_q.put(2)

    monkeypatch.setattr(loop, "call_soon_threadsafe", call_soon_threadsafe)
    in_another_thread(put_both)
    assert await asyncio.wait_for(asyncio.gather(*waiting), WITHIN) == [1, 2]


def test_a_ring_that_is_interrupted_while_its_loop_is_closed() -> None:
    """Ctrl-C is told, and not that there is no loop; and at once that its waiter is lost, once."""
    loop = asyncio.new_event_loop()
    call = loop.call_soon_threadsafe
    calls: list[object] = []
    lost: list[object] = []

    def call_soon_threadsafe(answer: Any) -> Any:
        calls.append(None)
        if len(calls) > 1:
            return call(answer)
        loop.close()
        raise KeyboardInterrupt

    loop.call_soon_threadsafe = call_soon_threadsafe  # type: ignore[method-assign, assignment]
    wish: Any = SimpleNamespace(on_lost=lost.append)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        Doorbell(loop).ring(wish)
    assert len(calls) == 2
    assert lost == [wish]
    del interrupted  # which has kept the ring's own variables till here


@on_asyncio
async def test_a_ring_in_the_middle_of_a_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finalizer rings where the same thread is about to; one of the two is not heard."""
    first, second = MixedQueue[int](), MixedQueue[int]()
    waiting = [asyncio.create_task(queue.async_q.get()) for queue in (first, second)]
    await lined_up(first._buffer._getters)
    await lined_up(second._buffer._getters)
    loop = asyncio.get_running_loop()
    call = loop.call_soon_threadsafe
    finalizers: list[Callable[[], object]] = [lambda: second.sync_q.put(2)]

    def call_soon_threadsafe(*args: Any, **kwargs: Any) -> Any:
        if finalizers:
            finalizers.pop()()
        return call(*args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", call_soon_threadsafe)
    in_another_thread(lambda: first.sync_q.put(1))
    assert await asyncio.wait_for(asyncio.gather(*waiting), WITHIN) == [1, 2]


def test_a_loop_that_has_gone_is_not_kept() -> None:
    """The bell of a thread keeps the last loop that ran there, with all that it holds."""

    async def wait() -> None:
        async_waiter()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(wait())
    loop.close()
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert gone() is None


def test_each_loop_of_a_thread_has_a_bell_of_its_own() -> None:
    """The second loop's wake-ups go to the first."""
    queue = MixedQueue[int]()

    async def get_from_a_thread() -> int:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put_when_lined_up)
            return await queue.async_q.get()
        raise AssertionError

    async def put_when_lined_up() -> None:
        await lined_up(queue._buffer._getters)
        in_another_thread(lambda: queue.sync_q.put(1))

    for backend in ("asyncio", "trio", "asyncio", "trio"):
        assert anyio.run(get_from_a_thread, backend=backend) == 1


def test_trio_as_a_guest_of_asyncio(lines: Lines) -> None:
    """Two loops take turns in one thread: each is to be woken in its own way."""
    queue = MixedQueue[str]()
    got: list[str] = []

    async def get(name: str) -> None:
        got.append(f"{name} {await queue.async_q.get()}")

    async def host() -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()
        guest = asyncio.create_task(get("host"))
        await lined_up(queue._buffer._getters, 1)
        trio.lowlevel.start_guest_run(
            get,
            "guest",
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=ended.set_result,
        )
        await lined_up(queue._buffer._getters, 2)
        in_another_thread(lambda: queue.sync_q.put("1"))
        await guest
        in_another_thread(lambda: queue.sync_q.put("2"))
        (await ended).unwrap()

    asyncio.run(asyncio.wait_for(host(), WITHIN))
    assert got == ["host 1", "guest 2"]


def test_no_loop_runs_here() -> None:
    """An error of some library's own, in place of None or a RuntimeError."""
    assert current_loop() is None
    with pytest.raises(RuntimeError):
        async_waiter()


async def test_the_running_loop() -> None:
    """A loop is taken for another's."""
    loop = current_loop()
    if isinstance(loop, asyncio.AbstractEventLoop):
        assert loop is asyncio.get_running_loop()
    else:
        assert loop is trio.lowlevel.current_trio_token()


# -- the thread's waiter -----------------------------------------------------------------------


def test_a_thread_that_was_woken_before_it_sleeps() -> None:
    """A wake-up that comes early is lost, and the thread sleeps for ever."""
    waiter = ThreadWaiter()
    waiter.arm()
    assert waiter.wake()
    assert waiter.wait(None)
    assert not waiter.wait(0)  # each wake-up ends one sleep


def test_a_thread_sleeps_no_longer_than_it_said() -> None:
    """A time that is over already is taken for none at all."""
    waiter = ThreadWaiter()
    assert not waiter.wait(-1)
    assert not waiter.wait(0)
    assert not waiter.wait(1e-6)


# -- signals -----------------------------------------------------------------------------------


class Select:
    """Tells when asyncio is in a select() that only an event can end."""

    def __init__(self, loop: Any) -> None:
        self.entered = threading.Event()
        self._selector = loop._selector
        self._select = self._selector.select
        self._selector.select = self.select

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            self.entered.set()
        return self._select(timeout)


@pytest.mark.parametrize("backend, options", ALL_BACKENDS_OF_RUN)
def test_a_signal_handler_wakes_the_loop_out_of_its_select(
    backend: str, options: dict[str, Any], lines: Lines
) -> None:
    """A future that is set in a handler does not end the select() it interrupted (promise 7).

    The handler is Python's, not the loop's: it runs in the middle of whatever the loop does.
    There is no timer that would end the select(); the test would hang.
    """
    queue = MixedQueue[int]()
    selects: list[Select] = []

    async def wait() -> None:
        loop = current_loop()
        if hasattr(loop, "_selector"):
            selects.append(Select(loop))
        with pytest.raises(janus.AsyncQueueShutDown):
            await queue.async_q.get()

    def in_select() -> None:
        lines.wait_for_getters(queue)
        for select in selects:
            assert select.entered.wait(WITHIN)

    with signals_when(in_select, lambda *_: queue.shutdown()):
        anyio.run(wait, backend=backend, backend_options=options)


def test_a_signal_handler_sets_a_latch_of_the_loop_it_interrupted(lines: Lines) -> None:
    """The same for the latch."""
    latch = Latch()
    selects: list[Select] = []
    waits = threading.Event()

    async def wait() -> None:
        selects.append(Select(asyncio.get_running_loop()))
        waits.set()
        await latch.wait()

    def in_select() -> None:
        assert waits.wait(WITHIN)
        assert selects[0].entered.wait(WITHIN)

    with signals_when(in_select, lambda *_: latch.set()):
        asyncio.run(wait())


# -- the latch ---------------------------------------------------------------------------------


async def test_a_latch_wakes_all_who_wait(place: Place) -> None:
    """Only the first is woken, or only those of one loop."""
    latch = Latch()
    done: list[int] = []

    async def set_here() -> None:
        latch.set()

    async def wait(number: int) -> None:
        await latch.wait()
        done.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(wait, number)
        while len(latch._waiters) < 3:
            await anyio.lowlevel.checkpoint()
        in_another_thread(lambda: place.start(latch.set, set_here).result(WITHIN))
    assert sorted(done) == [0, 1, 2]


async def test_a_latch_that_is_set_lets_everybody_through() -> None:
    """Whoever comes after the setter waits for another one."""
    latch = Latch()
    latch.set()
    latch.set()
    with anyio.fail_after(WITHIN):
        await latch.wait()
        await latch.wait()


async def test_a_latch_that_is_set_between_the_look_and_the_sleep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Set when a waiter is not in sight yet, and has looked already."""
    latch = Latch()

    def set_meanwhile() -> AsyncWaiter:
        waiter = async_waiter()
        latch.set()
        return waiter

    monkeypatch.setattr(_wakeups, "async_waiter", set_meanwhile)
    with anyio.fail_after(WITHIN):
        await latch.wait()


async def test_a_latch_keeps_nobody_who_has_gone() -> None:
    """Those who were cancelled, or came after it was set, are kept as long as it is (promise 9)."""
    latch = Latch()
    for _ in range(5):
        with anyio.move_on_after(0):
            await latch.wait()
    assert not latch._waiters
    latch.set()
    await latch.wait()
    assert not latch._waiters


def test_a_latch_is_set_while_a_waiters_loop_is_closed() -> None:
    """A closed loop among the waiters: the others are not woken."""
    latch = Latch()
    loop = asyncio.new_event_loop()
    waiting = loop.create_task(latch.wait())
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    async def wait_and_set() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(latch.wait)
            while len(latch._waiters) < 2:
                await anyio.lowlevel.checkpoint()
            latch.set()

    asyncio.run(asyncio.wait_for(wait_and_set(), WITHIN))
