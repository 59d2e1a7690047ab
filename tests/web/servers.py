"""Servers in threads of their own: uvicorn, and hypercorn on asyncio and on trio."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import hypercorn.asyncio
import hypercorn.trio
import trio
import uvicorn
from hypercorn.config import Config

from tests.support.gates import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = ["SERVERS", "serving"]


def serving(app: Any, server: str = "uvicorn") -> AbstractContextManager[str]:
    """Serve an application meanwhile; its host and port."""
    return SERVERS[server](app)


@contextmanager
def _uvicorn(app: Any) -> Iterator[str]:
    config = uvicorn.Config(
        app, port=0, log_level="critical", lifespan="off", ws="websockets-sansio"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def _with_lifespan(app: Any) -> Any:
    """Hypercorn asks for it, and on trio takes no answer for a failure."""

    async def started(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    return started


def _config() -> tuple[Config, int]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = 0.2
    config.errorlog = None
    return config, port


@contextmanager
def _hypercorn(app: Any) -> Iterator[str]:
    config, port = _config()
    stop: list[Any] = []
    ready = threading.Event()

    async def run() -> None:
        over = asyncio.Event()
        stop.append(partial(asyncio.get_running_loop().call_soon_threadsafe, over.set))
        ready.set()
        await hypercorn.asyncio.serve(_with_lifespan(app), config, shutdown_trigger=over.wait)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    yield from _running(thread, ready, stop, port)


@contextmanager
def _hypercorn_on_trio(app: Any) -> Iterator[str]:
    config, port = _config()
    stop: list[Any] = []
    ready = threading.Event()

    async def run() -> None:
        over = trio.Event()
        token = trio.lowlevel.current_trio_token()
        stop.append(partial(token.run_sync_soon, over.set))
        ready.set()
        await hypercorn.trio.serve(_with_lifespan(app), config, shutdown_trigger=over.wait)

    thread = threading.Thread(target=trio.run, args=(run,))
    yield from _running(thread, ready, stop, port)


def _running(
    thread: threading.Thread, ready: threading.Event, stop: list[Any], port: int
) -> Iterator[str]:
    thread.start()
    assert ready.wait(5)
    try:
        yield f"127.0.0.1:{port}"  # the socket listens already
    finally:
        stop[0]()
        thread.join()


SERVERS = {
    "uvicorn": _uvicorn,
    "hypercorn": _hypercorn,
    "hypercorn on trio": _hypercorn_on_trio,
}
