"""The queue alone, without LangChain: one producer, one consumer, items that are numbers.

Each number is the wall time from the start of the producer to the last item, divided by the
items.  All queues are bounded to 64, but for the one that has no bound.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import janus

from benchmarks.harness import Case, Series, Sizes, Stopwatch, import_quietly, measure
from queuestream import MixedQueue

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run"]

MAXSIZE = 64


def run(sizes: Sizes, rounds: int) -> list[Series]:
    """Measure each queue in each pair of places."""
    count = sizes.queue_items
    rounds *= sizes.rounds_of_short_parts
    return measure(cases(count), rounds=rounds, units=count, unit="us an item")


def cases(count: int) -> list[Case]:
    """Return all cases, for so many items."""

    def case(
        name: str,
        run: Callable[[int, Stopwatch], Any],
        place: Literal["thread", "asyncio", "trio"],
        needs: str = "",
    ) -> Case:
        return Case(name, partial(run, count), list(range(count)), place, needs)

    mixed = partial(MixedQueue[int], MAXSIZE)
    to_loop = partial(_thread_to_task, mixed)
    return [
        case("thread -> asyncio: MixedQueue", to_loop, "asyncio"),
        case("thread -> asyncio: janus", partial(_thread_to_task, _janus), "asyncio"),
        case(
            "thread -> asyncio: culsans", partial(_thread_to_task, _culsans), "asyncio", "culsans"
        ),
        case("thread -> asyncio: call_soon_threadsafe, unbounded", _by_call_soon, "asyncio"),
        case("thread -> thread: MixedQueue", partial(_thread_to_thread, _mixed_sync_q), "thread"),
        case("thread -> thread: queue.Queue", partial(_thread_to_thread, _plain), "thread"),
        case("task -> task: MixedQueue", partial(_task_to_task, _mixed_async_q), "asyncio"),
        case("task -> task: asyncio.Queue", partial(_task_to_task, _asyncio), "asyncio"),
        case("thread -> trio: MixedQueue", to_loop, "trio"),
        case("thread -> trio: culsans", partial(_thread_to_task, _culsans), "trio", "culsans"),
    ]


def _janus() -> Any:
    return janus.Queue[int](MAXSIZE)


def _culsans() -> Any:
    return import_quietly("culsans").Queue(MAXSIZE)


def _plain() -> Any:
    return queue.Queue[int](MAXSIZE)


def _asyncio() -> Any:
    return asyncio.Queue[int](MAXSIZE)


def _mixed_sync_q() -> Any:
    return MixedQueue[int](MAXSIZE).sync_q


def _mixed_async_q() -> Any:
    return MixedQueue[int](MAXSIZE).async_q


def _put_all(put: Callable[[int], object], count: int) -> None:
    for item in range(count):
        put(item)


async def _thread_to_task(make: Callable[[], Any], count: int, watch: Stopwatch) -> list[int]:
    items = make()
    received: list[int] = []
    producer = threading.Thread(target=_put_all, args=(items.sync_q.put, count))
    get = items.async_q.get
    with watch:
        producer.start()
        for _ in range(count):
            received.append(await get())
    producer.join()
    if not isinstance(items, MixedQueue):
        await items.aclose()
    return received


async def _by_call_soon(count: int, watch: Stopwatch) -> list[int]:
    items: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def put(item: int) -> None:
        loop.call_soon_threadsafe(items.put_nowait, item)

    received: list[int] = []
    producer = threading.Thread(target=_put_all, args=(put, count))
    with watch:
        producer.start()
        for _ in range(count):
            received.append(await items.get())
    producer.join()
    return received


def _thread_to_thread(make: Callable[[], Any], count: int, watch: Stopwatch) -> list[int]:
    items = make()
    received: list[int] = []
    producer = threading.Thread(target=_put_all, args=(items.put, count))
    with watch:
        producer.start()
        for _ in range(count):
            received.append(items.get())
    producer.join()
    return received


async def _task_to_task(make: Callable[[], Any], count: int, watch: Stopwatch) -> list[int]:
    items = make()
    received: list[int] = []

    async def produce() -> None:
        for item in range(count):
            await items.put(item)

    with watch:
        producer = asyncio.create_task(produce())
        for _ in range(count):
            received.append(await items.get())
    await producer
    return received
