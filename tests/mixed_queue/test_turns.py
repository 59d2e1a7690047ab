"""Who runs, and how often: other tasks between ours, and nothing at all while we wait."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.lowlevel

from queuestream._wakeups import ThreadWaiter, current_loop
from queuestream.mixed_queue import MixedQueue
from tests.mixed_queue.places import WITHIN, Lines, Place, lined_up

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.anyio

TURN = 64
"""So many operations without waiting are one turn, as the docstrings of get and put say."""
BOUND = 2 * TURN
"""And so many come between two turns of another task, because trio shuffles those who can run."""


class Bystander:
    """A task that runs in each turn of the loop."""

    def __init__(self) -> None:
        self.turns = 0

    async def run(self) -> None:
        while True:
            self.turns += 1
            await anyio.lowlevel.checkpoint()


async def longest_run(operation: Callable[[], Awaitable[object]], count: int) -> int:
    """Do something so often; return how often at most it was done in one turn of the loop."""
    bystander = Bystander()
    runs: list[int] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bystander.run)
        await anyio.lowlevel.checkpoint()
        run, turns = 0, bystander.turns
        for _ in range(count):
            await operation()
            if bystander.turns != turns:
                runs.append(run)
                run, turns = 0, bystander.turns
            run += 1
        tasks.cancel_scope.cancel()
    return max(runs, default=count)


async def test_get_from_a_queue_that_is_never_empty_lets_others_run() -> None:
    """A consumer that is always behind holds up its loop (promise 5)."""
    queue = MixedQueue[int]()
    for item in range(1_000):
        queue.sync_q.put(item)
    assert await longest_run(queue.async_q.get, 1_000) <= BOUND


async def test_put_into_a_queue_that_is_never_full_lets_others_run() -> None:
    """A producer that is never held up holds up its loop (promise 5)."""
    queue = MixedQueue[int]()
    assert await longest_run(lambda: queue.async_q.put(1), 1_000) <= BOUND


async def test_put_and_get_in_turn_let_others_run() -> None:
    """Neither alone comes to the end of its turn."""
    queue = MixedQueue[int](1)

    async def put_and_get() -> None:
        await queue.async_q.put(1)
        await queue.async_q.get()

    assert await longest_run(put_and_get, 500) <= BOUND


async def test_many_queues_share_a_turn() -> None:
    """Each queue, or each task, has a turn of its own: together they are as long as they like."""
    queues = [MixedQueue[int]() for _ in range(100)]

    async def put_into_all() -> None:
        for queue in queues:
            await queue.async_q.put(1)

    bystander = Bystander()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bystander.run)
        await anyio.lowlevel.checkpoint()
        before = bystander.turns
        await put_into_all()
        await put_into_all()
        assert bystander.turns - before >= 200 // TURN - 1
        tasks.cancel_scope.cancel()


async def test_a_turn_that_does_not_end_is_not_paid_for() -> None:
    """A turn of the loop for each item costs ten times what an item costs."""
    queue = MixedQueue[int]()
    bystander = Bystander()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bystander.run)
        await anyio.lowlevel.checkpoint()
        before = bystander.turns
        for item in range(640):
            await queue.async_q.put(item)
        assert bystander.turns - before <= 640 // TURN + 2
        tasks.cancel_scope.cancel()


# -- promise 10 --------------------------------------------------------------------------------


class SelectsOfAsyncio:
    """Counts how often the loop looks for events, and how long it means to wait for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, asleep: threading.Event) -> None:
        loop: Any = asyncio.get_running_loop()
        self.timeouts: list[float | None] = []
        select = loop._selector.select

        def count(timeout: float | None = None) -> Any:
            self.timeouts.append(timeout)
            if timeout != 0:
                asleep.set()
            return select(timeout)

        monkeypatch.setattr(loop._selector, "select", count)
        monkeypatch.setattr(loop, "call_at", self.refuse)
        monkeypatch.setattr(loop, "call_later", self.refuse)

    def refuse(self, *_: object, **__: object) -> None:
        raise AssertionError("a timer")


class SelectsOfTrio(trio.abc.Instrument):
    """The same for trio, which says so itself."""

    def __init__(self, asleep: threading.Event) -> None:
        self.timeouts: list[float] = []
        self.asleep = asleep

    def before_io_wait(self, timeout: float) -> None:
        self.timeouts.append(timeout)
        if timeout:
            self.asleep.set()


async def test_a_loop_that_waits_in_a_queue_sleeps(
    anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that wakes up to look whether there is something (promise 10).

    While a getter, a putter and a joiner wait, the loop looks for events once: without a
    timeout, until another thread has something for them.
    """
    loop = current_loop()
    empty, full = MixedQueue[int](), MixedQueue[int](1)
    full.sync_q.put(1)
    selects: Any = None
    asleep = threading.Event()

    def serve_all() -> None:
        assert asleep.wait(WITHIN)
        empty.sync_q.put(1)
        full.sync_q.get()
        full.sync_q.task_done()
        full.sync_q.get(timeout=WITHIN)
        full.sync_q.task_done()

    server = threading.Thread(target=serve_all)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(empty.async_q.get)
        tasks.start_soon(full.async_q.put, 2)
        tasks.start_soon(full.async_q.join)
        await lined_up(empty._buffer._getters)
        await lined_up(full._buffer._putters)
        await lined_up(full._buffer._joiners)
        if anyio_backend_name == "trio":
            selects = SelectsOfTrio(asleep)
            trio.lowlevel.add_instrument(selects)
        elif hasattr(loop, "_selector"):
            selects = SelectsOfAsyncio(monkeypatch, asleep)
        else:
            pytest.skip("uvloop does not say when it looks")
        server.start()
    looks = [timeout for timeout in selects.timeouts if timeout != 0]
    # One for each time that it was woken at most, and the one in which it slept.
    assert len(looks) <= 4
    assert all(timeout is None or timeout > 10_000 for timeout in looks)
    server.join(WITHIN)


def test_a_thread_that_waits_in_a_queue_sleeps(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that wakes up to look whether there is something (promise 10)."""
    sleeps: list[float | None] = []
    wait = ThreadWaiter.wait

    def count(waiter: ThreadWaiter, timeout: float | None) -> bool:
        sleeps.append(timeout)
        return wait(waiter, timeout)

    monkeypatch.setattr(ThreadWaiter, "wait", count)
    queue = MixedQueue[int](1)
    got = Place("thread").get(queue)
    lines.wait_for_getters(queue)
    queue.sync_q.put(1)
    assert got.result(WITHIN) == 1
    assert sleeps == [None]


async def test_no_task_and_no_thread_of_its_own() -> None:
    """A queue that has helpers has to be closed, or leaks them (promise 10)."""
    threads = set(threading.enumerate())
    queue = MixedQueue[int](1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.async_q.get)
        await lined_up(queue._buffer._getters)
        before = {task.id for task in anyio.get_running_tasks()}
        queue.sync_q.put(1)
        assert {task.id for task in anyio.get_running_tasks()} <= before
        await queue.async_q.put(2)
        queue.sync_q.task_done()
        assert {task.id for task in anyio.get_running_tasks()} <= before
        assert set(threading.enumerate()) == threads
