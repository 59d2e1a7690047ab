"""Thirty-two producers and thirty-two consumers, in threads, on two asyncio loops and on trio.

The counts are fixed and what each worker does is seeded; the interleaving is the machine's,
with a switch interval that has it change threads all the time.  Conservation is checked:
nothing lost, doubled or reordered.  The canary is the same over a queue with a planted bug.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from concurrent.futures import wait
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import janus
import pytest

from queuestream._buffer import BLOCKED, Buffer
from queuestream.mixed_queue import AsyncFace, MixedQueue, SyncFace
from tests.mixed_queue.places import Place
from tests.support.haste import Meeting, hasty

if TYPE_CHECKING:
    from concurrent.futures import Future

WORKERS = 32
"""Producers, and as many consumers."""
PLACES = ["asyncio", "uvloop", "trio", "eager"] if sys.version_info >= (3, 12) else []
PLACES = PLACES or ["asyncio", "uvloop", "trio"]
"""Loops that every fourth worker is on; the others have threads of their own."""
Item = tuple[int, int]


class Worker:
    """A producer or a consumer."""

    def __init__(self, queue: MixedQueue[Item], number: int, seed: int, count: int) -> None:
        self.queue = queue
        self.number = number
        self.count = count
        self.random = random.Random(f"{seed} {number}")
        self.got: list[Item] = []
        self.most = 0

    def produce(self) -> None:
        for item in range(self.count):
            while True:
                try:
                    self.queue.sync_q.put(
                        (self.number, item), timeout=self.random.choice([None, None, 0, 1e-5])
                    )
                    break
                except janus.SyncQueueFull:
                    continue

    async def aproduce(self) -> None:
        for item in range(self.count):
            await self.queue.async_q.put((self.number, item))

    def consume(self) -> None:
        while True:
            try:
                self.note(self.queue.sync_q.get(timeout=self.random.choice([None, None, 0, 1e-5])))
            except janus.SyncQueueEmpty:  # noqa: PERF203 - it tries again
                continue
            except janus.SyncQueueShutDown:
                return

    async def aconsume(self) -> None:
        while True:
            try:
                self.note(await self.queue.async_q.get())
            except janus.AsyncQueueShutDown:  # noqa: PERF203 - the end
                return

    def note(self, item: Item) -> None:
        self.got.append(item)
        self.most = max(self.most, self.queue.sync_q.qsize())
        self.queue.sync_q.task_done()


def conserves(buffer: Buffer[Any], seed: int, count: int, within: float) -> None:
    """Move all items from all producers to all consumers, and look at what has come."""
    print(f"seed {seed}: {WORKERS} x {WORKERS}, {count} items each, maxsize {buffer.maxsize}")
    queue = MixedQueue[Item](buffer.maxsize)
    queue._buffer = buffer
    queue._sync_face, queue._async_face = SyncFace(buffer), AsyncFace(buffer)
    producers = [Worker(queue, number, seed, count) for number in range(WORKERS)]
    consumers = [Worker(queue, WORKERS + number, seed, count) for number in range(WORKERS)]
    with ExitStack() as stack:
        stack.enter_context(hasty())
        loops = [stack.enter_context(Place(name)) for name in PLACES]
        here = Place("thread")
        put: list[Future[None]] = []
        taken: list[Future[None]] = []
        for number in range(WORKERS):
            place = loops[number // 4 % len(loops)] if number % 4 else here
            one, other = producers[number], consumers[number]
            put.append(place.start(one.produce, one.aproduce))
            taken.append(place.start(other.consume, other.aconsume))
        try:
            assert not wait(put, within).not_done, "producers hang"
            assert not wait([here.join(queue)], within).not_done, "not all are declared done"
            queue.shutdown()
            assert not wait(taken, within).not_done, "consumers hang"
        finally:
            queue.close()
        for each in put + taken:
            if (error := each.exception()) is not None:
                raise AssertionError(f"a worker failed: {error!r}") from error
    came = Counter(item for consumer in consumers for item in consumer.got)
    put_in = Counter((n, item) for n in range(WORKERS) for item in range(count))
    assert not (more := came - put_in), f"doubled: {more}"
    assert not (fewer := put_in - came), f"lost: {fewer}"
    for consumer in consumers:
        of_each: dict[int, list[int]] = {}
        for number, item in consumer.got:
            of_each.setdefault(number, []).append(item)
        assert all(items == sorted(items) for items in of_each.values()), "out of order"
        assert consumer.most <= buffer.maxsize, "past maxsize"
    assert not buffer._getters
    assert not buffer._putters


def test_thirty_two_and_thirty_two() -> None:
    """Promises 1 and 2: a few items; more of them in `tox -e stress`."""
    conserves(Buffer(5), seed=1, count=10, within=20.0)


@pytest.mark.stress
@pytest.mark.timeout(300)
@pytest.mark.parametrize("maxsize, low", [(1, None), (7, None), (16, 8)])
def test_thirty_two_and_thirty_two_for_long(maxsize: int, low: int | None) -> None:
    """As above, with more."""
    for seed in range(100, 103):
        conserves(Buffer(maxsize, low), seed, count=100, within=60.0)


class WakesNoPutter(Buffer[Any]):
    __slots__ = ()

    def _putters_for_free_slot(self) -> Any:
        return []


class ServesTheLastFirst(Buffer[Any]):
    __slots__ = ()

    def put_now(self, item: Any) -> bool:
        return False

    def _append(self, item: Any) -> Any:
        woken = super()._append(item)
        self.items.rotate(1)
        return woken


class CountsAnItemTwice(Buffer[Any]):
    __slots__ = ()

    def put_now(self, item: Any) -> bool:
        is_last = item[1] == 3 and not super().is_shutdown
        return super().put_now(item) and (not is_last or super().put_now(item) or True)


class LosesAnItem(Buffer[Any]):
    __slots__ = ()

    def put_now(self, item: Any) -> bool:
        return item == (0, 3) or super().put_now(item)


class TakesInTwoSteps(Buffer[Any]):
    """Takes without the lock, as is done, but by a look and a removal: two may see the same."""

    __slots__ = ("meeting",)

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize)
        self._needs_lock = False
        self.meeting = Meeting()

    def get_now(self) -> Any:
        try:
            item = self.items[0]
        except IndexError:
            return BLOCKED
        self.meeting.attend()
        super().get_now()
        return item


@pytest.mark.parametrize(
    "planted, maxsize, complaint",
    [
        (WakesNoPutter, 1, "producers hang"),
        (ServesTheLastFirst, 5, "out of order"),
        (CountsAnItemTwice, 5, "doubled"),
        (LosesAnItem, 5, "lost"),
        (TakesInTwoSteps, 5, r"doubled|task_done\(\) called too many times"),
    ],
)
def test_a_planted_bug_is_noticed(planted: type[Buffer[Any]], maxsize: int, complaint: str) -> None:
    """The canary: a harness that notices nothing proves nothing.

    The sound queue does the same beside it, and says how long that takes on this machine now:
    who is given ten times as long, and no less than a second, does not merely lag.
    """
    begun = time.monotonic()
    conserves(Buffer(maxsize), seed=0, count=20, within=20.0)
    enough = max(1.0, 10 * (time.monotonic() - begun))
    with pytest.raises(AssertionError, match=complaint):
        for seed in range(9):
            conserves(planted(maxsize), seed, count=20, within=enough)
