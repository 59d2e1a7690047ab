"""A loop that is closed while somebody waits on it takes nobody else along."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from janus import SyncQueueShutDown

from queuestream.mixed_queue import MixedQueue
from tests.mixed_queue.places import WITHIN, Lines, Place
from tests.support.backends import eager_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [
    asyncio.new_event_loop,
    eager_loop,
    uvloop.new_event_loop,
]
OTHERS = pytest.mark.parametrize("place", ["thread", "trio"], indirect=True)


class Stopped:
    """A loop that stands still, with tasks that wait on it."""

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.loop = new_loop()
        self.tasks: list[asyncio.Task[Any]] = []

    def wait_for(self, *waits: Coroutine[Any, Any, Any]) -> None:
        """Let coroutines run until they wait."""
        self.tasks += map(self.loop.create_task, waits)
        self.run(asyncio.sleep(0))
        assert not any(task.done() for task in self.tasks)
        for task in self.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    def run(self, first: Coroutine[Any, Any, Any]) -> None:
        self.loop.run_until_complete(first)

    def close(self) -> None:
        self.loop.close()


@pytest.fixture(params=LOOPS, ids=["asyncio", "eager", "uvloop"])
def gone(request: pytest.FixtureRequest) -> Iterator[Stopped]:
    """Return a loop that a test closes, in the way of each kind."""
    stopped = Stopped(request.param)
    yield stopped
    stopped.close()


@OTHERS
def test_closed_before_the_item_came(gone: Stopped, lines: Lines, place: Place) -> None:
    """The first in line cannot be woken: its loop is closed, and says so."""
    queue = MixedQueue[str]()
    gone.wait_for(queue.async_q.get())
    waiting = place.get(queue)
    lines.wait_for_getters(queue, 2)
    gone.close()
    queue.sync_q.put("item")
    assert waiting.result(WITHIN) == "item"


@OTHERS
def test_closed_before_the_slot_came(gone: Stopped, lines: Lines, place: Place) -> None:
    """The same for a free slot."""
    queue = MixedQueue[str](1)
    queue.sync_q.put("first")
    gone.wait_for(queue.async_q.put("never"))
    waiting = place.put(queue, "second")
    lines.wait_for_putters(queue, 2)
    gone.close()
    assert queue.sync_q.get() == "first"
    waiting.result(WITHIN)
    assert queue.sync_q.get() == "second"


@OTHERS
def test_closed_before_the_end_of_join(gone: Stopped, lines: Lines, place: Place) -> None:
    """The same for a join."""
    queue = MixedQueue[str]()
    queue.sync_q.put("item")
    gone.wait_for(queue.async_q.join())
    waiting = place.join(queue)
    lines.wait_for_joiners(queue, 2)
    gone.close()
    queue.sync_q.get()
    queue.sync_q.task_done()
    waiting.result(WITHIN)


@OTHERS
def test_closed_between_ring_and_answer(gone: Stopped, lines: Lines, place: Place) -> None:
    """The bell was rung, and the loop is closed before it answers; its tasks are still held."""
    queue = MixedQueue[str]()
    gone.wait_for(queue.async_q.get())
    waiting = place.get(queue)
    lines.wait_for_getters(queue, 2)
    queue.sync_q.put("item")
    assert not waiting.done()
    gone.close()
    assert waiting.result(WITHIN) == "item"


@OTHERS
def test_many_rings_and_no_answer(gone: Stopped, lines: Lines, place: Place) -> None:
    """One ring stands for many wake-ups; all of them pass on when there is no answer."""
    queue = MixedQueue[int]()
    gone.wait_for(*(queue.async_q.get() for _ in range(3)))
    waiting = [place.get(queue) for _ in range(3)]
    lines.wait_for_getters(queue, 6)
    for item in range(3):
        queue.sync_q.put(item)
    gone.close()
    assert sorted(one.result(WITHIN) for one in waiting) == [0, 1, 2]


def test_a_thousand_waiters_on_a_closed_loop(gone: Stopped, lines: Lines) -> None:
    """Each passes the wake-up on to the next, which must not be a recursion."""
    queue = MixedQueue[str]()
    gone.wait_for(*(queue.async_q.get() for _ in range(1_000)))
    gone.close()
    queue.sync_q.put("item")
    assert not queue._buffer._getters
    assert queue.sync_q.get_nowait() == "item"


def test_closed_between_many_rings_and_the_answer_to_one(
    gone: Stopped,
) -> None:
    """The same, where the answer is what is dropped."""
    queue = MixedQueue[str]()
    gone.wait_for(*(queue.async_q.get() for _ in range(1_000)))
    queue.sync_q.put("item")
    gone.close()
    assert not queue._buffer._getters
    assert queue.sync_q.get_nowait() == "item"


class ClosesWhileItIsCalled:
    """Puts itself before a loop's `call_soon_threadsafe`; takes a step there, once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loop = loop
        self._call: Callable[..., Any] = loop.call_soon_threadsafe
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None
        monkeypatch.setattr(loop, "call_soon_threadsafe", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.before()
        result = self._call(*args, **kwargs)
        self.after()
        return result


@OTHERS
def test_closed_while_one_rings_and_another_relies_on_it(
    gone: Stopped,
    lines: Lines,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second wake-up finds the bell rung, but that ring meets a closed loop."""
    queue = MixedQueue[str]()
    gone.wait_for(queue.async_q.get(), queue.async_q.get())
    waiting = [place.get(queue) for _ in range(2)]
    lines.wait_for_getters(queue, 4)
    call = ClosesWhileItIsCalled(gone.loop, monkeypatch)

    def others() -> None:
        call.before = lambda: None
        queue.sync_q.put("second")  # 2: joins the ring
        gone.close()  # 3

    call.before = others
    queue.sync_q.put("first")  # 1: rings
    assert {one.result(WITHIN) for one in waiting} == {"first", "second"}


@OTHERS
def test_closed_behind_the_back_of_the_one_that_rings(
    gone: Stopped,
    lines: Lines,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`call_soon_threadsafe` succeeds, and whether it did so in time is not said."""
    queue = MixedQueue[str]()
    gone.wait_for(queue.async_q.get())
    waiting = place.get(queue)
    lines.wait_for_getters(queue, 2)
    call = ClosesWhileItIsCalled(gone.loop, monkeypatch)
    call.after = gone.close
    queue.sync_q.put("item")
    assert waiting.result(WITHIN) == "item"


@OTHERS
def test_closed_before_the_call_that_its_loop_accepted(
    gone: Stopped, lines: Lines, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop looks whether it is closed, is closed, and keeps the call that it never makes."""
    queue = MixedQueue[str]()
    gone.wait_for(queue.async_q.get())
    waiting = place.get(queue)
    lines.wait_for_getters(queue, 2)
    kept: list[object] = []

    def keep(callback: object) -> None:
        gone.close()
        kept.append(callback)

    monkeypatch.setattr(gone.loop, "call_soon_threadsafe", keep)
    queue.sync_q.put("item")
    assert waiting.result(WITHIN) == "item"
    assert kept


@OTHERS
def test_closed_after_its_own_thread_woke_a_task(gone: Stopped, lines: Lines, place: Place) -> None:
    """The wake-up of a task that never runs again passes on when the task is collected."""
    queue = MixedQueue[str]()
    gone.wait_for(queue.async_q.get())
    waiting = place.get(queue)
    lines.wait_for_getters(queue, 2)

    async def put_and_stop() -> None:
        queue.async_q.put_nowait("item")
        gone.loop.stop()
        await asyncio.Event().wait()

    last = gone.loop.create_task(put_and_stop())
    last._log_destroy_pending = False  # type: ignore[attr-defined]
    del last
    gone.loop.run_forever()
    gone.close()
    if gone.tasks[0].done():
        pytest.skip("uvloop takes another turn, in which the task has its item")
    gone.tasks.clear()
    gc.collect()
    assert waiting.result(WITHIN) == "item"


@OTHERS
def test_a_dropped_coroutine_leaves_the_line(gone: Stopped, lines: Lines, place: Place) -> None:
    """What nobody holds any more stands in no line."""
    queue = MixedQueue[str]()
    coroutine = queue.async_q.get()

    async def drive() -> None:
        while not queue._buffer._getters:
            coroutine.send(None)

    gone.run(drive())
    waiting = place.get(queue)
    lines.wait_for_getters(queue, 2)
    coroutine.close()  # as the collector does
    assert len(queue._buffer._getters) == 1
    queue.sync_q.put("item")
    assert waiting.result(WITHIN) == "item"


@OTHERS
def test_a_dropped_coroutine_passes_its_wake_up_on(
    gone: Stopped, lines: Lines, place: Place
) -> None:
    """It was woken, but its loop did not run again before it was dropped."""
    queue = MixedQueue[str]()
    coroutine = queue.async_q.get()

    async def drive() -> None:
        while not queue._buffer._getters:
            coroutine.send(None)

    gone.run(drive())
    waiting = place.get(queue)
    lines.wait_for_getters(queue, 2)
    queue.sync_q.put("item")
    coroutine.close()
    assert waiting.result(WITHIN) == "item"


@OTHERS
def test_shutdown_with_waiters_on_a_closed_loop(gone: Stopped, lines: Lines, place: Place) -> None:
    """The end goes to those who can hear it (promise 3)."""
    queue = MixedQueue[str]()
    gone.wait_for(queue.async_q.get(), queue.async_q.get())
    waiting = place.get(queue)
    lines.wait_for_getters(queue, 3)
    gone.close()
    queue.shutdown()
    with pytest.raises(place.shut_down):
        waiting.result(WITHIN)
    with pytest.raises(SyncQueueShutDown):
        queue.sync_q.get_nowait()


def test_a_loop_that_was_stopped_goes_on(gone: Stopped, lines: Lines) -> None:
    """Standing still is not closed: the wake-up keeps until the loop runs again."""
    queue = MixedQueue[str]()
    gone.wait_for(queue.async_q.get())
    queue.sync_q.put("item")
    gone.loop.run_until_complete(gone.tasks[0])
    assert gone.tasks[0].result() == "item"
