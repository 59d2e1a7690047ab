"""The server process: sockets, uvicorn, and an end that comes soon whatever goes on.

At SIGINT or SIGTERM nothing new is accepted, every run is stopped, and every client that
streams is told so; who does not take that within a few seconds is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import uvicorn

from queuestream._background import use_daemon_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from starlette.types import ASGIApp

__all__ = ["listen", "run_server"]

_GRACE = 3  # seconds that clients have to take the end of their answers
_CLEAN_UP = 2.0  # seconds that runs have to clean up after that
_UNSENT = 60_000  # milliseconds that bytes may wait for a client to take them
_IDLE_TICKS = 100  # of uvicorn, which has ten a second
_BACKLOG = 2048  # connections that wait to be accepted


def listen(host: str, port: int) -> list[socket.socket]:
    """Bind a socket for each address that a name has.

    Raises:
        OSError: If there is no such host, or none of its addresses can be bound.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        listener = socket.socket(family, kind, protocol)
        try:
            _prepare(listener, family)
            # What the system picked for the first address goes for the others.
            picked = sockets[0].getsockname()[1] if sockets and not port else port
            listener.bind((address[0], picked, *address[2:]))
        except OSError as error:
            listener.close()
            failure = error
        else:
            sockets.append(listener)
    if not sockets:
        assert failure is not None
        raise failure
    return sockets


def _prepare(listener: socket.socket, family: int) -> None:
    if hasattr(socket, "SO_REUSEPORT"):  # POSIX; on Windows the option means something else
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    # A connection inherits it: without it, what was sent to a client that takes nothing is
    # held for as long as that client likes, though its run was stopped.
    if option := getattr(socket, "TCP_USER_TIMEOUT", None):
        listener.setsockopt(socket.IPPROTO_TCP, option, _UNSENT)


class _Server(uvicorn.Server):
    """uvicorn, which says when it begins and ends, and waits for no request for ever."""

    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[], object], on_stop: Callable[[], object]
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_stop = on_stop
        self._idle: dict[Any, object] = {}  # connections without a request, and what was before

    async def on_tick(self, counter: int) -> bool:
        if counter % _IDLE_TICKS == 0:
            self._close_idle()
        return await super().on_tick(counter)

    def _close_idle(self) -> None:
        """Close who was without a request at the last look, and still is.

        uvicorn has a limit for the time between two requests, but none for the first, nor for
        one whose headers come byte by byte.
        """
        idle: dict[Any, object] = {}
        for connection in self.server_state.connections:
            cycle: Any = getattr(connection, "cycle", self)
            if cycle is None or getattr(cycle, "response_complete", False):
                idle[connection] = cycle
        for connection, cycle in idle.items():
            if self._idle.get(connection, self) is cycle:
                connection.transport.close()  # what is still to be sent goes out
        self._idle = idle

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)


def run_server(
    app: ASGIApp,
    sockets: list[socket.socket],
    *,
    on_ready: Callable[[], object],
    on_stop: Callable[[], object],
) -> None:
    """Serve until SIGINT or SIGTERM, then end within seconds.

    The threads of synchronous runs are not waited for.

    Args:
        app: What is served.
        sockets: Where; they are closed at the end.
        on_ready: Called when connections are accepted.
        on_stop: Called when the server is told to stop: stops the runs.
    """
    config = uvicorn.Config(
        app,
        access_log=False,
        backlog=_BACKLOG,
        lifespan="off",
        log_config=None,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
        ws="none",
    )
    server = _Server(config, on_ready, on_stop)
    loop = asyncio.new_event_loop()
    # Synchronous steps of many runs at once may wait there.
    use_daemon_threads(loop)
    try:
        with _quiet_signals():
            loop.run_until_complete(server.serve(sockets))
            _clear(loop)
    finally:
        for listener in sockets:
            listener.close()
        loop.close()


def _clear(loop: asyncio.AbstractEventLoop) -> None:
    if left := asyncio.all_tasks(loop):
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left, timeout=_CLEAN_UP))
    with contextlib.suppress(asyncio.TimeoutError):
        loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), _CLEAN_UP))


@contextlib.contextmanager
def _quiet_signals() -> Generator[None, None, None]:
    """Being told to stop is how a server ends: uvicorn raises the signal again afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def nothing(*_signal_and_frame: Any) -> None:
        pass

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [(number, signal.signal(number, nothing)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
