"""Several loops and threads at the same time, on both ends, with some that give up.

The counts are fixed and what each worker does is seeded; the interleaving is not, which is
why the forced ones come first (`test_interleavings`, `test_schedules`).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from concurrent.futures import Future, wait
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import janus
import pytest

from queuestream._buffer import Buffer
from queuestream._turns import running_asyncio_loop
from queuestream.mixed_queue import AsyncFace, MixedQueue, SyncFace
from tests.mixed_queue.places import Place

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from queuestream._wakeups import Waiter

PRODUCERS = ["thread", "thread", "asyncio", "asyncio", "trio"]
CONSUMERS = ["thread", "uvloop", "asyncio", "trio"]
"""Each with a loop of its own."""
ITEMS = 60
"""Of each producer."""
Item = tuple[int, int]
SEEDS = range(1, 9)


class Producer:
    """Puts numbered items, in order; each until it has succeeded."""

    def __init__(self, queue: MixedQueue[Item], number: int, seed: int) -> None:
        self._queue = queue
        self._items = [(number, item) for item in range(ITEMS)]
        self._random = random.Random(f"{seed} producer {number}")

    def in_thread(self) -> None:
        for item in self._items:
            while not self._put(item):
                pass

    def _put(self, item: Item) -> bool:
        try:
            self._queue.sync_q.put(item, timeout=self._random.choice([None, None, 0, 1e-5]))
        except janus.SyncQueueFull:
            return False
        return True

    async def in_task(self) -> None:
        for item in self._items:
            put = partial(self._put_async, item)
            while not await perhaps_cancelled(put, self._random):
                pass

    async def _put_async(self, item: Item) -> bool:
        await self._queue.async_q.put(item)
        return True


class Consumer:
    """Gets items until the end."""

    def __init__(self, queue: MixedQueue[Item], number: int, seed: int) -> None:
        self._queue = queue
        self._random = random.Random(f"{seed} consumer {number}")
        self.got: list[Item] = []
        self.most = 0

    def in_thread(self) -> None:
        while True:
            try:
                item = self._queue.sync_q.get(timeout=self._random.choice([None, None, 0, 1e-5]))
            except janus.SyncQueueEmpty:
                continue
            except janus.SyncQueueShutDown:
                return
            self._note(item)

    async def in_task(self) -> None:
        try:
            while True:
                item = await perhaps_cancelled(self._queue.async_q.get, self._random)
                if item is not None:
                    self._note(item)
        except janus.AsyncQueueShutDown:
            pass

    def _note(self, item: Item) -> None:
        self.got.append(item)
        self.most = max(self.most, self._queue.sync_q.qsize())
        self._queue.sync_q.task_done()


async def perhaps_cancelled(
    operation: Callable[[], Awaitable[Any]], randomness: random.Random
) -> Any:
    """Do something, and cancel it after some turns of the loop; None if that was in time."""
    how = randomness.choice(["not", "not", "scope", "task"])
    turns = randomness.randrange(4)
    if how == "not":
        return await operation()
    if how == "task" and running_asyncio_loop() is not None:
        task = asyncio.ensure_future(operation())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return None
    outcome: list[Any] = []
    errors: list[Exception] = []

    async def run() -> None:
        try:
            outcome.append(await operation())
        except janus.AsyncQueueShutDown as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    if errors:
        raise errors[0]
    return outcome[0] if outcome else None


def conserves(buffer: Buffer[Any], seed: int, within: float) -> None:
    """Move all items from all producers to all consumers, and look at what has come."""
    print(f"seed {seed}, maxsize {buffer.maxsize}")
    queue = MixedQueue[Item](buffer.maxsize)
    queue._buffer = buffer
    queue._sync_face, queue._async_face = SyncFace(buffer), AsyncFace(buffer)
    producers = [Producer(queue, number, seed) for number, _ in enumerate(PRODUCERS)]
    consumers = [Consumer(queue, number, seed) for number, _ in enumerate(CONSUMERS)]
    with ExitStack() as stack:
        places = [stack.enter_context(Place(name)) for name in PRODUCERS + CONSUMERS]
        running: list[Future[None]] = []
        workers: list[Producer | Consumer] = [*producers, *consumers]
        for place, worker in zip(places, workers, strict=True):
            running.append(place.start(worker.in_thread, worker.in_task))
        try:
            put = running[: len(producers)]
            assert not wait(put, within).not_done, "producers hang"
            join = Place("thread").join(queue)
            join.result(within)
            queue.shutdown()
            assert not wait(running, within).not_done, "consumers hang"
        finally:
            queue.close()
        for one in running:
            one.result()
    came = Counter(item for consumer in consumers for item in consumer.got)
    assert came == Counter((p, item) for p, _ in enumerate(PRODUCERS) for item in range(ITEMS))
    for consumer in consumers:
        for number, _ in enumerate(PRODUCERS):
            of_one = [item for producer, item in consumer.got if producer == number]
            assert of_one == sorted(of_one), "out of order"
        assert consumer.most <= buffer.maxsize, "past maxsize"
    assert not buffer.items
    assert not buffer._getters
    assert not buffer._putters


@pytest.mark.parametrize("maxsize, low", [(1, None), (3, None), (4, 2)])
@pytest.mark.parametrize("seed", SEEDS[:2])
def test_nothing_is_lost_or_doubled_or_reordered(maxsize: int, low: int | None, seed: int) -> None:
    """Four kinds of waiters in one line, of which some give up (promises 1 and 2)."""
    conserves(Buffer(maxsize, low), seed, within=10.0)


@pytest.mark.stress
@pytest.mark.timeout(600)
@pytest.mark.parametrize("maxsize, low", [(1, None), (2, None), (7, None), (4, 2)])
def test_nothing_is_lost_or_doubled_or_reordered_for_long(maxsize: int, low: int | None) -> None:
    """As above, with more."""
    for seed in range(100, 150):
        conserves(Buffer(maxsize, low), seed, within=20.0)


class WakesNoPutter(Buffer[Any]):
    __slots__ = ()

    def _putters_for_free_slot(self) -> list[Waiter]:
        return []


class LosesTheItemOfOneThatGivesUp(Buffer[Any]):
    __slots__ = ()

    def _replace(self, waiter: Waiter, _: list[object]) -> list[Waiter]:
        if not waiter.lined_up and waiter.place is self._getters and self.items:
            self.items.popleft()
            self.unfinished -= 1
        return super()._replace(waiter, _)


class ServesTheLastFirst(Buffer[Any]):
    __slots__ = ()

    def _append(self, item: Any) -> Any:
        woken = super()._append(item)
        self.items.rotate(1)
        return woken


@pytest.mark.parametrize(
    "planted",
    [WakesNoPutter, LosesTheItemOfOneThatGivesUp, ServesTheLastFirst],
)
def test_a_planted_bug_is_noticed(planted: type[Buffer[Any]]) -> None:
    """The canary: a harness that notices nothing proves nothing.

    A wake-up that is lost by one that gives up is not noticed here, because that one tries
    again at once; `test_cancellation` and `test_schedules` are for that.
    """
    with pytest.raises(AssertionError):
        for seed in SEEDS:
            conserves(planted(3), seed, within=1.0)
