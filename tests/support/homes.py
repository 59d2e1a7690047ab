"""Event loops for handlers to be at home on, and what such a handler has heard."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

__all__ = ["Heard", "LoopThread", "loop_thread"]

T = TypeVar("T")


class Heard:
    """What ``on_token`` heard, and on which threads and loops."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.threads: set[int] = set()
        self.loops: set[asyncio.AbstractEventLoop] = set()

    def on_token(self, token: str) -> None:
        """Note a token."""
        self.tokens.append(token)
        self.threads.add(threading.get_ident())

    async def on_token_async(self, token: str) -> None:
        """Note a token after a turn of the loop."""
        await asyncio.sleep(0)
        self.on_token(token)
        self.loops.add(asyncio.get_running_loop())


class LoopThread:
    """A loop that runs in a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Any:
        """Begin a coroutine there; return its future."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there to its end."""
        return self.submit(coroutine).result(10)  # type: ignore[no-any-return]

    def call(self, function: Callable[[], T]) -> T:
        """Call a function there."""

        async def call() -> T:
            return function()

        return self.run(call())


@contextmanager
def loop_thread(
    make: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> Iterator[LoopThread]:
    """A loop that runs in a thread for the length of the block."""
    loop = asyncio.new_event_loop() if make is None else make()

    def live() -> None:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=live, name="a loop of the test", daemon=True)
    thread.start()
    try:
        yield LoopThread(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
