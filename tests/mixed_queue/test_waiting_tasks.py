"""A task of asyncio asleep on a waiter: a future by its protocol (`queuestream._wakeups`)."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING, Any

import pytest

from queuestream._wakeups import async_waiter
from queuestream.mixed_queue import MixedQueue
from tests.mixed_queue.places import WITHIN, lined_up
from tests.support.backends import ASYNCIO_BACKENDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream._wakeups import AsyncWaiter

pytestmark = pytest.mark.anyio
on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS)


def in_another_thread(do: Callable[[], object]) -> None:
    """Do something elsewhere, while this loop stands still."""
    thread = threading.Thread(target=do)
    thread.start()
    thread.join(WITHIN)
    assert not thread.is_alive()


async def armed(waiters: list[AsyncWaiter]) -> AsyncWaiter:
    waiter = async_waiter()
    waiter.arm()
    waiters.append(waiter)
    return waiter


@on_asyncio
async def test_it_goes_on_in_the_answer_of_the_bell() -> None:
    """One more turn of the loop for each token that comes from a thread."""
    queue = MixedQueue[int]()
    order: list[object] = []

    async def get() -> None:
        order.append(await queue.async_q.get())

    getter = asyncio.create_task(get())
    await lined_up(queue._buffer._getters)
    in_another_thread(lambda: queue.sync_q.put(1))
    asyncio.get_running_loop().call_soon(order.append, "what came later")
    await getter
    assert order == [1, "what came later"]


@on_asyncio
async def test_an_answer_has_an_end() -> None:
    """Who is woken again while the bell answers is served in the same answer, and so on for ever.

    A quick producer in a thread would hold up the loop (promise 5).
    """
    order: list[object] = []
    waiters: list[AsyncWaiter] = []

    async def wait_twice() -> None:
        waiter = await armed(waiters)
        await waiter.wait()
        order.append("first")
        waiter.arm()
        in_another_thread(waiter.wake)
        await waiter.wait()
        order.append("second")

    task = asyncio.create_task(wait_twice())
    await asyncio.sleep(0)
    in_another_thread(waiters[0].wake)
    asyncio.get_running_loop().call_soon(order.append, "another task")
    await asyncio.wait_for(task, WITHIN)
    assert order == ["first", "another task", "second"]


@on_asyncio
async def test_it_goes_on_in_its_own_context() -> None:
    """In that of the thread that rang the bell."""
    name = contextvars.ContextVar("name", default="nobody's")
    queue = MixedQueue[int]()

    async def get() -> str:
        name.set("the task's")
        await queue.async_q.get()
        return name.get()

    def put() -> None:
        name.set("the thread's")
        queue.sync_q.put(1)

    getter = asyncio.create_task(get())
    await lined_up(queue._buffer._getters)
    in_another_thread(put)
    assert await getter == "the task's"
    assert name.get() == "nobody's"


@on_asyncio
async def test_where_a_task_runs_the_loop_it_waits_for_its_turn() -> None:
    """Some programs run the loop inside a task (a notebook's); a second one may not go on there."""
    queue = MixedQueue[int]()
    loop: Any = asyncio.get_running_loop()
    if not hasattr(loop, "_run_once"):
        pytest.skip("uvloop cannot be run one turn at a time")
    getter = asyncio.create_task(queue.async_q.get())
    await lined_up(queue._buffer._getters)
    in_another_thread(lambda: queue.sync_q.put(1))
    loop._run_once()  # this task is the current one meanwhile
    assert not getter.done()
    assert await asyncio.wait_for(getter, WITHIN) == 1


@on_asyncio
async def test_a_cancellation_keeps_its_message() -> None:
    queue = MixedQueue[int]()
    messages: list[object] = []

    async def get() -> None:  # before Python 3.11 whoever awaits the task is not told
        try:
            await queue.async_q.get()
        except asyncio.CancelledError as cancelled:
            messages.extend(cancelled.args)
            raise

    getter = asyncio.create_task(get())
    await lined_up(queue._buffer._getters)
    getter.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await getter
    assert messages == ["enough"]


@on_asyncio
async def test_a_cancellation_that_comes_with_the_answer_takes_nothing() -> None:
    """The item is gone with the task that was to have it (promise 1)."""
    queue = MixedQueue[int]()
    getter = asyncio.create_task(queue.async_q.get())
    await lined_up(queue._buffer._getters)
    in_another_thread(lambda: queue.sync_q.put(1))
    getter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getter
    assert queue.async_q.get_nowait() == 1


@on_asyncio
async def test_a_cancellation_that_comes_after_the_wake_up_takes_nothing() -> None:
    """The same where the wake-up was another task's, and the getter has not run yet."""
    queue = MixedQueue[int]()
    getter = asyncio.create_task(queue.async_q.get())
    await lined_up(queue._buffer._getters)
    queue.async_q.put_nowait(1)
    getter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getter
    assert queue.async_q.get_nowait() == 1


@on_asyncio
async def test_it_does_not_wait_if_it_was_woken_before() -> None:
    """The wake-up comes between the line and the sleep."""
    waiter = await armed([])
    assert waiter.wake()
    await asyncio.wait_for(_wait(waiter), WITHIN)


async def _wait(waiter: AsyncWaiter) -> None:
    await waiter.wait()


@on_asyncio
async def test_it_is_woken_while_its_task_falls_asleep() -> None:
    """By a finalizer, after the task has said that it waits and before it can be called."""
    waiter: Any = await armed([])
    called: list[object] = []
    waiter.wake()
    waiter.add_done_callback(called.append)
    assert called == []  # never at once: the task is still falling asleep
    await asyncio.sleep(0)
    assert called == [waiter]


@on_asyncio
async def test_what_it_tells_a_task() -> None:
    """A future of another loop is refused by the task; a second cancellation is none."""
    waiter: Any = await armed([])
    assert asyncio.isfuture(waiter)
    assert waiter.get_loop() is asyncio.get_running_loop()
    assert not waiter.done()
    assert waiter.cancel()
    assert waiter.done()
    assert not waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        waiter.result()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_task_that_ends_the_loop_leaves_the_others_their_wake_up(
    error: BaseException,
) -> None:
    """Those behind it in the same answer are never woken."""
    loop = asyncio.new_event_loop()
    queues = [MixedQueue[int](), MixedQueue[int]()]

    async def get_and_raise() -> None:
        await queues[0].async_q.get()
        raise error

    async def start() -> tuple[asyncio.Task[None], asyncio.Task[int]]:
        tasks = asyncio.create_task(get_and_raise()), asyncio.create_task(queues[1].async_q.get())
        for queue in queues:
            await lined_up(queue._buffer._getters)
        return tasks

    def put() -> None:
        for queue in queues:
            queue.sync_q.put(1)

    try:
        raises, gets = loop.run_until_complete(start())
        in_another_thread(put)
        with pytest.raises(type(error)):
            loop.run_until_complete(gets)
        assert raises.exception() is error
        assert not gets.done()
        assert loop.run_until_complete(asyncio.wait_for(gets, WITHIN)) == 1
    finally:
        loop.close()
