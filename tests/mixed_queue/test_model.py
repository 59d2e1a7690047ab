"""`MixedQueue` held against a plain deque, and `janus.Queue` under the same machine.

A Hypothesis state machine puts, gets, joins, waits, gives up, cancels and shuts down in any
order, on both faces, from tasks and from threads that sleep, and a model of forty lines says what
must come of it.  After each step all is run until nothing moves any more, so that there is one
right answer.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, get_args

import janus
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from queuestream import _buffer
from queuestream._wakeups import ThreadWaiter
from queuestream.mixed_queue import AsyncFace, MixedQueue, SyncFace
from tests.support.stage import How, SeenJanus, Stage, see_sleepers

if TYPE_CHECKING:
    import asyncio

    from queuestream._wakeups import Waiter

SETTINGS = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
"""The same examples each time; seconds, not minutes."""
FULL, EMPTY, SHUT = "full", "empty", "shut down"
ERRORS: dict[type[BaseException], object] = {
    janus.SyncQueueFull: FULL,
    janus.AsyncQueueFull: FULL,
    janus.SyncQueueEmpty: EMPTY,
    janus.AsyncQueueEmpty: EMPTY,
    janus.SyncQueueShutDown: SHUT,
    janus.AsyncQueueShutDown: SHUT,
    ValueError: "too many",
}
HOW = st.lists(st.sampled_from(get_args(How)), min_size=1, max_size=3)
"""Of some who come one after the other, or there would hardly ever be a line."""
TIMEOUT = st.sampled_from([0, 0.0005])
"""The second is slept through: it stands in line, and leaves it."""


@pytest.fixture(autouse=True)
def _sleepers_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    see_sleepers(monkeypatch)


class Waiting:
    """Somebody who waits, in the model, and the task or the thread that stands for it."""

    def __init__(self, how: How, item: int | None = None) -> None:
        self.how: How = how
        self.item = item
        self.outcome: object = None
        self.future: asyncio.Future[object]


class QueueMachine(RuleBasedStateMachine):
    """Each rule does one thing to both."""

    make: Any = MixedQueue
    cancels = True
    is_one_line = True  # of tasks and threads

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage(ERRORS)
        self.items: deque[int] = deque()
        self.getters: deque[Waiting] = deque()
        self.putters: deque[Waiting] = deque()
        self.joiners: deque[Waiting] = deque()
        self.everybody: list[Waiting] = []
        self.unfinished = 0
        self.is_shut = False
        self.number = 0

    @initialize(maxsize=st.integers(0, 3))
    def begin(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.queue = self.stage.run(self.made(maxsize))

    async def made(self, maxsize: int) -> Any:
        return type(self).make(maxsize)

    def outcome_of(self, operation: Any) -> object:
        async def on_the_loop() -> object:  # where janus wants its async face to be used
            return self.stage.here(operation)

        return self.stage.run(on_the_loop())

    def next_item(self) -> int:
        self.number += 1
        return self.number

    # The model.

    @property
    def is_full(self) -> bool:
        return 0 < self.maxsize <= len(self.items)

    def model_put(self, item: int) -> object:
        if self.is_shut:
            return SHUT
        if self.is_full:
            return FULL
        self.items.append(item)
        self.unfinished += 1
        if self.getters:
            self.getters.popleft().outcome = self.model_get()
        return None

    def model_get(self) -> object:
        if self.items:
            item = self.items.popleft()
            if self.putters and not self.is_full:
                first = self.putters.popleft()
                assert first.item is not None
                first.outcome = self.model_put(first.item) or "put"
            return item
        return SHUT if self.is_shut else EMPTY

    def let_joiners_go(self) -> None:
        if not self.unfinished:
            for waiting in self.joiners:
                waiting.outcome = "joined"
            self.joiners.clear()

    def like(self, line: deque[Waiting], how: How) -> How:
        """How one waits who may have to stand in a line."""
        return how if self.is_one_line or not line else line[0].how

    def begin_to_wait(self, waiting: Waiting, in_task: Any, in_thread: Any) -> None:
        self.everybody.append(waiting)
        if waiting.how == "task":
            waiting.future = self.stage.task(in_task)
        else:
            waiting.future = self.stage.thread(in_thread)
        self.is_the_same()

    # The rules.

    @rule(is_sync=st.booleans())
    def put_now(self, is_sync: bool) -> None:
        item = self.next_item()
        face = self.queue.sync_q if is_sync else self.queue.async_q
        expected = self.model_put(item)
        assert self.outcome_of(lambda: face.put_nowait(item)) == expected

    @rule(is_sync=st.booleans())
    def get_now(self, is_sync: bool) -> None:
        face = self.queue.sync_q if is_sync else self.queue.async_q
        expected = self.model_get()
        assert self.outcome_of(face.get_nowait) == expected

    @rule()
    def drain(self) -> None:
        while self.items:
            self.get_now(is_sync=True)
            self.is_the_same()

    @precondition(lambda self: self.maxsize and not self.is_shut)
    @rule()
    def fill(self) -> None:
        while not self.is_full:
            self.put_now(is_sync=True)
            self.is_the_same()

    @rule(timeout=TIMEOUT)
    def get_with_a_timeout(self, timeout: float) -> None:
        expected = self.model_get()
        assert self.stage.here(lambda: self.queue.sync_q.get(timeout=timeout)) == expected

    @rule(timeout=TIMEOUT)
    def put_with_a_timeout(self, timeout: float) -> None:
        item = self.next_item()
        expected = self.model_put(item)
        assert self.stage.here(lambda: self.queue.sync_q.put(item, timeout=timeout)) == expected

    @rule(hows=HOW)
    def get(self, hows: list[How]) -> None:
        for how in hows:
            self.get_in(how)

    def get_in(self, how: How) -> None:
        waiting = Waiting(self.like(self.getters, how))
        waiting.outcome = self.model_get()
        if waiting.outcome == EMPTY:
            waiting.outcome = None
            self.getters.append(waiting)
        self.begin_to_wait(waiting, self.queue.async_q.get, self.queue.sync_q.get)

    @rule(hows=HOW)
    def put(self, hows: list[How]) -> None:
        for how in hows:
            self.put_in(how)

    def put_in(self, how: How) -> None:
        item = self.next_item()
        waiting = Waiting(self.like(self.putters, how), item)
        waiting.outcome = self.model_put(item) or "put"
        if waiting.outcome == FULL:
            waiting.outcome = None
            self.putters.append(waiting)
        queue = self.queue
        self.begin_to_wait(waiting, lambda: queue.async_q.put(item), lambda: queue.sync_q.put(item))

    @precondition(lambda self: len(self.joiners) < 4)
    @rule(hows=HOW)
    def join(self, hows: list[How]) -> None:
        for how in hows:
            self.join_in(how)

    def join_in(self, how: How) -> None:
        waiting = Waiting(how)
        self.joiners.append(waiting)
        self.let_joiners_go()
        self.begin_to_wait(waiting, self.queue.async_q.join, self.queue.sync_q.join)

    def tasks(self) -> list[Waiting]:
        everybody = [*self.getters, *self.putters, *self.joiners]
        return [waiting for waiting in everybody if waiting.how == "task"]

    @precondition(lambda self: self.cancels and self.tasks())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiting = data.draw(st.sampled_from(self.tasks()))
        for line in (self.getters, self.putters, self.joiners):
            if waiting in line:
                line.remove(waiting)
        waiting.outcome = "cancelled"
        waiting.future.cancel()

    @rule(is_sync=st.booleans())
    def task_done(self, is_sync: bool) -> None:
        face = self.queue.sync_q if is_sync else self.queue.async_q
        expected = None if self.unfinished > 0 else "too many"
        self.unfinished = max(0, self.unfinished - 1)
        self.let_joiners_go()
        assert self.outcome_of(face.task_done) == expected

    @rule(immediate=st.booleans(), is_finished=st.booleans(), joining=HOW)
    @precondition(lambda self: self.number > 5)
    def shutdown(self, immediate: bool, is_finished: bool, joining: list[How]) -> None:
        if is_finished:
            self.put_now(is_sync=True)  # so that something is left, and dropped, or not
            self.is_the_same()
        while is_finished and self.unfinished > len(self.items):
            self.task_done(is_sync=True)
            self.is_the_same()
        self.join(hows=joining)
        self.is_shut = True
        if immediate:
            self.unfinished = max(0, self.unfinished - len(self.items))
            self.items.clear()
            self.let_joiners_go()
        for line in (self.getters, self.putters):
            for waiting in line:
                waiting.outcome = SHUT
            line.clear()
        self.queue.shutdown(immediate)

    # What is to be the same after each.

    @invariant()
    def is_the_same(self) -> None:
        if not hasattr(self, "queue"):
            return
        self.stage.settle(*(one.future for one in self.everybody if one.outcome is not None))
        for face in (self.queue.sync_q, self.queue.async_q):
            assert face.qsize() == len(self.items)
            assert face.empty() == (not self.items)
            assert face.full() == self.is_full
            assert face.unfinished_tasks == self.unfinished
        assert self.queue.closed == self.is_shut
        for waiting in self.everybody:
            future = waiting.future
            if waiting.outcome is None:
                assert not future.done(), f"it does not wait: {future}"
            elif waiting.outcome == "cancelled":
                assert future.cancelled()
            else:
                assert future.done(), f"it still waits, and not for {waiting.outcome}"
                nothing = "joined" if waiting.outcome == "joined" else "put"
                came = future.result()
                assert (nothing if came is None else came) == waiting.outcome
        self.everybody = [one for one in self.everybody if one.outcome is None]

    def teardown(self) -> None:
        try:
            if hasattr(self, "queue"):
                self.queue.close()
                self.stage.run(self.queue.wait_closed())
                while self.queue.sync_q.unfinished_tasks:
                    self.queue.sync_q.task_done()
                self.stage.settle(*(waiting.future for waiting in self.everybody))
        finally:
            self.stage.close()
            super().teardown()


class JanusMachine(QueueMachine):
    """The same over janus: whoever stands in for whom behaves alike.

    Without cancellations: on Python 3.13 a free slot may go to a ``put`` that was cancelled, and
    the next in line waits on.  And its tasks stand in one line and its threads in another, with no
    order between the two: so only one of them is stood in at a time.
    """

    make = SeenJanus
    cancels = False
    is_one_line = False


@pytest.mark.parametrize("machine", [QueueMachine, JanusMachine])
def test_it_does_what_a_deque_would(machine: type[QueueMachine]) -> None:
    run_state_machine_as_test(machine, settings=SETTINGS)


@pytest.mark.stress
@pytest.mark.parametrize("machine", [QueueMachine, JanusMachine])
def test_it_does_for_long_what_a_deque_would(machine: type[QueueMachine]) -> None:
    """As above: others, and longer ones."""
    run_state_machine_as_test(
        machine, settings=settings(SETTINGS, max_examples=20, stateful_step_count=80)
    )


class _ForgetsNobody(_buffer.Buffer[Any]):
    """Keeps one that was cancelled in line."""

    __slots__ = ()

    def _leave(self, waiter: Any) -> None:
        pass


class _Unjoined(_buffer.Buffer[Any]):
    """Lets nobody go who joins, when what they wait for is dropped."""

    __slots__ = ()

    def _wake_all_at_end(self, dropped: list[object]) -> list[Waiter]:
        joiners = [*self._joiners.waiters]
        return [one for one in super()._wake_all_at_end(dropped) if one not in joiners]


class _JoinedOnce(_buffer.Buffer[Any]):
    """Lets one go of those who join."""

    __slots__ = ()

    def task_done(self) -> None:
        waiters = self._joiners.waiters
        others, waiters[1:] = waiters[1:], []
        super().task_done()
        waiters += others


class _TasksFirst(_buffer.Buffer[Any]):
    """Calls tasks before threads."""

    __slots__ = ()

    class Line(_buffer._Line):
        __slots__ = ()

        def call(self, number: int) -> list[Waiter]:
            self.waiters.sort(key=lambda one: isinstance(one, ThreadWaiter))
            return super().call(number)

    def make_lock_and_lines(self) -> None:
        super().make_lock_and_lines()
        self._getters = self.Line()


class _TimedOutTakes(_buffer.Buffer[Any]):
    """Adds the item of a thread that gave up."""

    __slots__ = ()

    def wait_in_thread(self, attempt: Any, timeout: float | None, gave_up: Any) -> Any:
        try:
            return super().wait_in_thread(attempt, timeout, gave_up)
        except janus.SyncQueueFull:
            self.items.append(attempt.args[0])
            raise


@pytest.mark.parametrize(
    "planted", [_ForgetsNobody, _Unjoined, _JoinedOnce, _TasksFirst, _TimedOutTakes]
)
def test_a_planted_bug_is_found(planted: type[_buffer.Buffer[Any]]) -> None:
    """The canary."""

    class PlantedMachine(QueueMachine):
        def __init__(self) -> None:
            super().__init__()
            self.stage.within = 0.1  # who waits in vain

        @staticmethod
        def make(maxsize: int) -> Any:
            queue = MixedQueue[Any](maxsize)
            queue._buffer = planted(maxsize)
            queue._sync_face = SyncFace(queue._buffer)
            queue._async_face = AsyncFace(queue._buffer)
            return queue

    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            PlantedMachine,
            settings=settings(SETTINGS, phases=[Phase.generate], report_multiple_bugs=False),
        )
