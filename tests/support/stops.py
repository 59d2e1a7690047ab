"""The ways in which a consumer can stop, each as one function to parametrise with.

Each makes a stream, takes some tokens, stops by its own means and returns those tokens.
When it returns, the stop has been asked for; the run may still have to notice.
"""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from queuestream.errors import StreamClosedError
from tests.support.consumers import Consumer, in_another_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Any

    from queuestream import TokenStream

    MakeStream = Callable[[], TokenStream[str]]

__all__ = ["STOPS", "Stop", "stopped_pairings"]


@dataclass(frozen=True)
class Stop:
    """A way to stop."""

    name: str
    after: Callable[[Consumer, MakeStream, int], Coroutine[Any, Any, list[str]]]
    """Take so many tokens of a new stream, and stop."""
    needs_task: bool = False
    """Whether only a consumer that is a task can do it."""

    def __str__(self) -> str:
        return self.name


async def _close_from_another_thread(consumer: Consumer, make: MakeStream, count: int) -> list[str]:
    async with consumer.entered(make()) as answer:
        taken = await consumer.take(answer, count)
        closer = in_another_thread(answer.close)
        with pytest.raises(StreamClosedError):
            while True:
                taken.append(await consumer.next(answer))
        await consumer.wait(closer.join)
    return taken


async def _close_by_itself(consumer: Consumer, make: MakeStream, count: int) -> list[str]:
    answer = make()
    taken = await consumer.take(answer, count)
    await consumer.close(answer)
    return taken


async def _break(consumer: Consumer, make: MakeStream, count: int) -> list[str]:
    taken: list[str] = []
    if consumer.is_async:
        async with make() as answer:
            async for token in answer:
                taken.append(token)
                if len(taken) == count:
                    break
    else:
        with make() as answer:
            for token in answer:
                taken.append(token)
                if len(taken) == count:
                    break
    return taken


async def _raise(consumer: Consumer, make: MakeStream, count: int) -> list[str]:
    taken: list[str] = []
    problem = RuntimeError("the consumer's own")
    with pytest.raises(RuntimeError) as raised:
        async with consumer.entered(make()) as answer:
            taken += await consumer.take(answer, count)
            raise problem
    assert raised.value is problem
    return taken


async def _drop(consumer: Consumer, make: MakeStream, count: int) -> list[str]:
    answer = make()
    taken = await consumer.take(answer, count)
    del answer
    gc.collect()
    return taken


async def _consume_until_cancelled(
    consumer: Consumer, make: MakeStream, taken: list[str], enough: anyio.Event, count: int
) -> None:
    async with consumer.entered(make()) as answer:
        taken += await consumer.take(answer, count)
        enough.set()
        taken.append(await consumer.next(answer))
        await anyio.sleep_forever()


async def _cancel_scope(consumer: Consumer, make: MakeStream, count: int) -> list[str]:
    taken: list[str] = []
    enough = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(_consume_until_cancelled, consumer, make, taken, enough, count)
        await enough.wait()
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    return taken


async def _cancel_task(consumer: Consumer, make: MakeStream, count: int) -> list[str]:
    if consumer.name == "trio":
        return await _cancel_scope(consumer, make, count)
    taken: list[str] = []
    enough = anyio.Event()
    task = asyncio.ensure_future(_consume_until_cancelled(consumer, make, taken, enough, count))
    await enough.wait()
    await anyio.lowlevel.checkpoint()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return taken


STOPS = [
    Stop("closed by itself", _close_by_itself),
    Stop("closed by another thread", _close_from_another_thread),
    Stop("break", _break),
    Stop("consumer raised", _raise),
    Stop("reference dropped", _drop),
    Stop("task cancelled", _cancel_task, needs_task=True),
    Stop("scope cancelled", _cancel_scope, needs_task=True),
]


def stopped_pairings(pairings: Iterable[Any]) -> list[Any]:
    """Return ``run_in, consumer, stop`` for each pairing and each way to stop it has."""
    return [
        pytest.param(run_in, consumer, stop, id=f"{run_in}-{consumer}-{stop}", marks=marks)
        for run_in, consumer, marks in ((*pairing.values, pairing.marks) for pairing in pairings)
        for stop in STOPS
        if consumer.is_async or not stop.needs_task
    ]
