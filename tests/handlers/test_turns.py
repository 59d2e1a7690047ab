"""`Turns`: one delivery at a time, among threads and tasks."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import weakref

import pytest

from queuestream.handlers._turns import Turns, without_turns
from tests.support.gates import Gate, eventually, eventually_async


def can_be_had(turns: Turns) -> bool:
    """Whether another thread gets the turn."""
    had = threading.Event()

    def take() -> None:
        with turns.in_thread():
            had.set()

    threading.Thread(target=take, daemon=True).start()
    return had.wait(5)


def test_threads_and_tasks_wait_for_each_other() -> None:
    """Hazard: two at once."""
    turns = Turns()
    gate = Gate()
    steps: list[str] = []

    def thread() -> None:
        with turns.in_thread():
            steps.append("thread begins")
            gate.wait()
            steps.append("thread ends")

    async def main() -> None:
        running = threading.Thread(target=thread)
        running.start()
        await eventually_async(lambda: gate.waiting)

        async def task(name: str) -> None:
            async with turns.in_task():
                steps.append(f"{name} begins")
                await asyncio.sleep(0)
                steps.append(f"{name} ends")

        tasks = [asyncio.create_task(task(name)) for name in ("one", "other")]
        await asyncio.sleep(0)
        gate.open()
        await asyncio.gather(*tasks)
        running.join(5)

    asyncio.run(main())
    assert [step.split()[1] for step in steps] == ["begins", "ends"] * 3
    assert steps[0] == "thread begins"


def test_who_has_the_turn_has_it_again() -> None:
    """Hazard: an ``on_token`` that calls its handler waits for itself, or gives the turn away."""
    turns = Turns()

    async def main() -> None:
        async with turns.in_task():
            async with turns.in_task():
                with turns.in_thread():
                    pass
            await asyncio.to_thread(lambda: turns.in_thread().__enter__())
            asked = asyncio.create_task(asyncio.to_thread(without_turns().run, can_be_had, turns))
            await asyncio.sleep(0)
            assert not asked.done()
        assert await asked

    asyncio.run(main())


def test_what_goes_on_after_a_turn_has_none() -> None:
    """Hazard: a timer that was set in a turn takes itself for one that has it."""
    turns = Turns()
    had: list[bool] = []

    def late() -> None:
        with turns.in_thread():
            had.append(True)

    with turns.in_thread():
        context = without_turns()
        thread = threading.Thread(target=context.run, args=(late,))
        thread.start()
        thread.join(0.01)  # at most too short to see it
        assert had == []
    thread.join(5)
    assert had == [True]


def test_a_task_that_was_begun_in_a_turn_and_outlives_it() -> None:
    """Hazard: it takes itself for one that has the turn, while another has it."""
    turns = Turns()
    steps: list[str] = []

    async def main() -> None:
        is_over = asyncio.Event()

        async def late() -> None:
            await is_over.wait()
            async with turns.in_task():
                steps.append("late")

        async with turns.in_task():
            task = asyncio.create_task(late())
        async with turns.in_task():
            is_over.set()
            for _ in range(3):
                await asyncio.sleep(0)
            steps.append("another")
        await task

    asyncio.run(main())
    assert steps == ["another", "late"]


def test_a_task_that_was_begun_in_a_turn_keeps_nothing_of_it() -> None:
    """Promise 9.  Hazard: it keeps the whole context of whoever had the turn."""
    turns = Turns()
    value: contextvars.ContextVar[object] = contextvars.ContextVar("value")

    class Value:
        """What was in that context."""

    async def main() -> None:
        is_over = asyncio.Event()
        late: list[asyncio.Task[object]] = []

        async def has_a_turn() -> weakref.ref[Value]:
            async with turns.in_task():
                late.append(asyncio.create_task(is_over.wait()))
            one = Value()
            value.set(one)
            return weakref.ref(one)

        reference = await asyncio.create_task(has_a_turn())
        await asyncio.sleep(0)
        gc.collect()
        assert reference() is None
        is_over.set()
        await late[0]

    asyncio.run(main())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_another_thread_has_the_turn_at_a_fork() -> None:
    """Promise 8.  Hazard: nobody gives it back in the child."""
    done = subprocess.run([sys.executable, "-c", _FORK], timeout=40, check=False)
    assert done.returncode == 0


_FORK = """
import os, signal, sys, threading, warnings
from queuestream.handlers._turns import Turns

warnings.simplefilter("ignore")  # a fork while threads run, which is what this is about
turns, is_inside, go_on = Turns(), threading.Event(), threading.Event()

def has():
    with turns.in_thread():
        is_inside.set()
        go_on.wait()

threading.Thread(target=has).start()
is_inside.wait()
with Turns().in_thread():
    pid = os.fork()
if not pid:
    signal.alarm(20)
    for _ in range(2):
        with turns.in_thread():
            pass
    os._exit(0)
_, status = os.waitpid(pid, 0)
go_on.set()
sys.exit(abs(os.waitstatus_to_exitcode(status)))
"""


@pytest.mark.parametrize("where", ["waiting", "inside"])
def test_cancelled(where: str) -> None:
    """Hazard: the turn goes with the task."""
    turns = Turns()

    async def main() -> None:
        async def task() -> None:
            async with turns.in_task():
                await asyncio.Event().wait()

        first = asyncio.create_task(task())
        await asyncio.sleep(0)
        second = asyncio.create_task(contextvars.copy_context().run(task))
        await asyncio.sleep(0)
        for each in (second, first) if where == "waiting" else (first, second):
            each.cancel()
            await asyncio.wait([each])
        assert await asyncio.to_thread(can_be_had, turns)

    asyncio.run(main())


def test_dropped_half_way() -> None:
    """Hazard: a task whose loop was closed is finalized, elsewhere, and keeps the turn for ever."""
    turns = Turns()

    async def task() -> None:
        async with turns.in_task():
            await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    coroutine = task()
    with pytest.raises(asyncio.TimeoutError):
        loop.run_until_complete(_begin(coroutine))
    loop.close()
    coroutine.close()
    assert can_be_had(turns)


async def _begin(coroutine: object) -> None:
    """Take the first step of a coroutine, in a context that ends with this one's."""
    contextvars.copy_context().run(coroutine.send, None)  # type: ignore[attr-defined]
    raise asyncio.TimeoutError


def test_who_must_not_wait_goes_on() -> None:
    """Hazard: it gives back a turn that it has not had."""
    turns = Turns()
    gate = Gate()

    def thread() -> None:
        with turns.in_thread():
            gate.wait()

    running = threading.Thread(target=thread)
    running.start()
    eventually(lambda: gate.waiting)
    with turns.in_thread(waits=False):
        pass

    async def main() -> None:
        async with turns.in_task(waits=False):
            pass

    asyncio.run(main())
    waiting = threading.Thread(target=can_be_had, args=(turns,))
    waiting.start()
    assert turns._free.sync_q.qsize() == 0
    gate.open()
    for each in (running, waiting):
        each.join(5)
    with turns.in_thread(waits=False):
        assert turns._free.sync_q.qsize() == 0
    assert turns._free.sync_q.qsize() == 1
