"""`MixedQueue` held against a plain deque, and `janus.Queue` under the same machine.

A Hypothesis state machine puts, gets, waits, cancels and shuts down in any order, on both faces,
and a model of thirty lines says what must come of it.  The loop is run until nothing moves any
more after each step, so that there is one right answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import janus
import pytest
from hypothesis import HealthCheck, settings
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
from queuestream.mixed_queue import AsyncFace, MixedQueue, SyncFace

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
ERRORS = {
    janus.SyncQueueFull: FULL,
    janus.AsyncQueueFull: FULL,
    janus.SyncQueueEmpty: EMPTY,
    janus.AsyncQueueEmpty: EMPTY,
    janus.SyncQueueShutDown: SHUT,
    janus.AsyncQueueShutDown: SHUT,
    ValueError: "too many",
}


class Waiting:
    """Somebody who waits, in the model, and the task that stands for it."""

    def __init__(self, item: int | None) -> None:
        self.item = item
        self.outcome: object = None
        self.task: asyncio.Task[Any] | None = None


class QueueMachine(RuleBasedStateMachine):
    """Each rule does one thing to both."""

    make: Any = MixedQueue
    cancels = True

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.items: deque[int] = deque()
        self.getters: deque[Waiting] = deque()
        self.putters: deque[Waiting] = deque()
        self.everybody: list[Waiting] = []
        self.unfinished = 0
        self.is_shut = False
        self.number = 0

    @initialize(maxsize=st.integers(0, 3))
    def begin(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.queue = self.run(self.made(maxsize))

    async def made(self, maxsize: int) -> Any:
        return type(self).make(maxsize)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def settle(self) -> None:
        async def turns() -> None:
            for _ in range(20):
                await asyncio.sleep(0)

        self.run(turns())

    def outcome_of(self, operation: Any) -> object:
        async def on_the_loop() -> object:  # where janus wants its async face to be used
            try:
                return operation()
            except tuple(ERRORS) as error:
                return ERRORS[type(error)]

        return self.run(on_the_loop())

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
    def get_with_a_timeout(self) -> None:
        expected = self.model_get()
        assert self.outcome_of(lambda: self.queue.sync_q.get(timeout=0)) == expected

    @rule()
    def get(self) -> None:
        waiting = Waiting(None)
        self.everybody.append(waiting)
        waiting.outcome = self.model_get()
        if waiting.outcome == EMPTY:
            waiting.outcome = None
            self.getters.append(waiting)
        waiting.task = self.loop.create_task(self.queue.async_q.get())

    @rule()
    def put(self) -> None:
        waiting = Waiting(self.next_item())
        self.everybody.append(waiting)
        assert waiting.item is not None
        waiting.outcome = self.model_put(waiting.item) or "put"
        if waiting.outcome == FULL:
            waiting.outcome = None
            self.putters.append(waiting)
        waiting.task = self.loop.create_task(self.queue.async_q.put(waiting.item))

    @precondition(lambda self: self.cancels and (self.getters or self.putters))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiting = data.draw(st.sampled_from([*self.getters, *self.putters]))
        for line in (self.getters, self.putters):
            if waiting in line:
                line.remove(waiting)
        waiting.outcome = "cancelled"
        assert waiting.task is not None
        waiting.task.cancel()

    @rule()
    def task_done(self) -> None:
        expected = None if self.unfinished > 0 else "too many"
        self.unfinished = max(0, self.unfinished - 1)
        assert self.outcome_of(self.queue.sync_q.task_done) == expected

    @rule(immediate=st.booleans())
    @precondition(lambda self: self.number > 5)
    def shutdown(self, immediate: bool) -> None:
        self.is_shut = True
        if immediate:
            self.unfinished = max(0, self.unfinished - len(self.items))
            self.items.clear()
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
        self.settle()
        for face in (self.queue.sync_q, self.queue.async_q):
            assert face.qsize() == len(self.items)
            assert face.empty() == (not self.items)
            assert face.full() == self.is_full
            assert face.unfinished_tasks == self.unfinished
        assert self.queue.closed == self.is_shut
        for waiting in self.everybody:
            assert waiting.task is not None
            if waiting.outcome is None:
                assert not waiting.task.done()
            elif waiting.outcome == "cancelled":
                assert waiting.task.cancelled()
            else:
                came = self.outcome_of(waiting.task.result)
                assert (came or "put") == waiting.outcome
        self.everybody = [one for one in self.everybody if one.outcome is None]

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()
            self.run(self.queue.wait_closed())
            self.settle()
            for waiting in self.everybody:
                assert waiting.task is not None
                self.outcome_of(waiting.task.result)
        self.loop.close()
        super().teardown()


class JanusMachine(QueueMachine):
    """The same over janus: whoever stands in for whom behaves alike.

    Without cancellations: on Python 3.13 a free slot may go to a ``put`` that was cancelled, and
    the next in line waits on.
    """

    make = janus.Queue
    cancels = False


@pytest.mark.parametrize("machine", [QueueMachine, JanusMachine])
def test_it_does_what_a_deque_would(machine: type[QueueMachine]) -> None:
    run_state_machine_as_test(machine, settings=SETTINGS)


class _ForgetsNobody(_buffer.Buffer[Any]):
    __slots__ = ()

    def _leave(self, waiter: Any) -> None:
        pass


class PlantedMachine(QueueMachine):
    """Over a queue that keeps one that was cancelled in line."""

    @staticmethod
    def make(maxsize: int) -> Any:
        queue = MixedQueue[Any](maxsize)
        queue._buffer = _ForgetsNobody(maxsize)
        queue._sync_face = SyncFace(queue._buffer)
        queue._async_face = AsyncFace(queue._buffer)
        return queue


def test_a_planted_bug_is_found() -> None:
    """The canary."""
    with pytest.raises(AssertionError):
        run_state_machine_as_test(PlantedMachine, settings=SETTINGS)
