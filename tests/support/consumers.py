"""One test body for every way to consume a stream.

A test writes its scenario as a coroutine function with the verbs of a `Consumer`.  On an
event loop these await; in a plain thread they use ``with``, ``for`` and ``next`` and
never suspend, so that the scenario runs straight through without any loop.
"""

from __future__ import annotations

import sys
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import anyio
import anyio.to_thread
import pytest

from tests.support.backends import ASYNCIO, EAGER, TRIO, UVLOOP
from tests.support.gates import eventually, eventually_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from queuestream import TokenStream

__all__ = [
    "CONSUMERS",
    "IMPOSSIBLE",
    "PAIRINGS",
    "RUN_IN",
    "Consumer",
    "RunIn",
    "in_another_thread",
    "pairings",
]

T = TypeVar("T")
RunIn: TypeAlias = Literal["thread", "task", "background"]


@dataclass(frozen=True)
class Consumer:
    """A place to consume from: a plain thread, or an event loop."""

    name: str
    backend: tuple[str, dict[str, Any]] | None
    """The loop, for `anyio.run`; None is a plain thread."""

    @property
    def is_async(self) -> bool:
        """Whether it consumes with ``async for``."""
        return self.backend is not None

    def __str__(self) -> str:
        """Return the name, for test ids."""
        return self.name

    def run(self, scenario: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run the scenario there, to its end."""
        if self.backend is None:
            return _run_without_loop(scenario())
        backend, options = self.backend
        return anyio.run(scenario, backend=backend, backend_options=options)

    @asynccontextmanager
    async def entered(self, stream: TokenStream[T]) -> AsyncIterator[TokenStream[T]]:
        """Do ``with stream`` or ``async with stream``."""
        if self.is_async:
            async with stream as tokens:
                yield tokens
        else:
            with stream as tokens:
                yield tokens

    async def next(self, stream: TokenStream[T]) -> T:
        """Do ``next(stream)`` or ``await anext(stream)``; both ends raise StopAsyncIteration."""
        if self.is_async:
            return await stream.__anext__()
        try:
            return next(stream)
        except StopIteration:
            raise StopAsyncIteration from None

    async def take(self, stream: TokenStream[T], count: int) -> list[T]:
        """Take exactly `count` items."""
        return [await self.next(stream) for _ in range(count)]

    async def iterate(self, stream: TokenStream[T]) -> AsyncIterator[T]:
        """Do ``for`` or ``async for``, to the end."""
        if self.is_async:
            async for item in stream:
                yield item
        else:
            for item in stream:
                yield item

    async def collect(self, stream: TokenStream[T]) -> list[T]:
        """Take all items."""
        return [item async for item in self.iterate(stream)]

    async def close(self, stream: TokenStream[T]) -> None:
        """Do ``close`` or ``await aclose``."""
        if self.is_async:
            await stream.aclose()
        else:
            stream.close()

    async def wait(self, blocking: Callable[[], T]) -> T:
        """Call a function that blocks, with the event loop running on meanwhile."""
        if self.is_async:
            return await anyio.to_thread.run_sync(blocking)
        return blocking()

    async def eventually(self, condition: Callable[[], object], within: float = 5.0) -> None:
        """Wait for a condition, with the event loop running on meanwhile."""
        if self.is_async:
            await eventually_async(condition, within)
        else:
            eventually(condition, within)


def in_another_thread(function: Callable[[], object]) -> threading.Thread:
    """Start a function in a daemon thread and return the thread."""
    thread = threading.Thread(target=function, name="test helper", daemon=True)
    thread.start()
    return thread


def _run_without_loop(scenario: Coroutine[Any, Any, T]) -> T:
    try:
        scenario.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    scenario.close()
    msg = "the scenario awaited something that needs an event loop"
    raise AssertionError(msg)


CONSUMERS = [
    Consumer("for", None),
    Consumer("asyncio", ASYNCIO),
    Consumer("uvloop", UVLOOP),
    Consumer("eager", EAGER),
    Consumer("trio", TRIO),
]
RUN_IN: list[RunIn] = ["thread", "task", "background"]
IMPOSSIBLE = {
    ("task", "for"): "a task needs the consumer's own asyncio loop; a plain thread has none",
    ("task", "trio"): "LangChain's async side is asyncio only: trio cannot run its tasks",
}
"""Pairings of `run_in` and consumer that `stream()` refuses, and why."""


def _marks(consumer: Consumer) -> list[pytest.MarkDecorator]:
    if consumer.name == "eager":
        old = sys.version_info < (3, 12)
        return [pytest.mark.skipif(old, reason="eager tasks came with Python 3.12")]
    if consumer.name == "uvloop":
        return [pytest.mark.skipif(sys.platform == "win32", reason="uvloop is for Unix")]
    return []


def pairings(*names: str) -> list[Any]:
    """Return each possible ``(run_in, consumer)``; for the named consumers only, if any are."""
    return [
        pytest.param(run_in, consumer, id=f"{run_in}-{consumer}", marks=_marks(consumer))
        for run_in in RUN_IN
        for consumer in CONSUMERS
        if (run_in, consumer.name) not in IMPOSSIBLE and (not names or consumer.name in names)
    ]


PAIRINGS = pairings()
"""For ``@pytest.mark.parametrize("run_in, consumer", PAIRINGS)``."""
