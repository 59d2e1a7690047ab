"""Servers and relays; without redis-py, a server and the example's packages nothing is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.relay.servers import MISSING, RedisServer, relays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Elsewhere than in `tox -e relay` the tests are not collected, and test_left_out.py says why.
if MISSING:
    collect_ignore_glob = ["test_[!l]*.py"]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that all tests share which do nothing to it."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def durable_server(tmp_path: Any) -> Iterator[RedisServer]:
    """A server with an append-only file, for a test that kills it."""
    with RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
def make_relay(redis_server: RedisServer) -> Iterator[Callable[..., Any]]:
    """Make relays whose keys are this test's own; they are closed at its end."""
    with relays(redis_server.url) as make:
        yield make


class Program:
    """One of `tests.relay.programs` in a process of its own."""

    def __init__(self, what: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.relay.programs", what, *arguments],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def line(self) -> str:
        """Return the next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def go(self) -> None:
        """Let it go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Let nothing of it be left."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def run_program(redis_server: RedisServer, make_relay: Any) -> Iterator[Callable[..., Program]]:
    """Start programs that use the same server and the same keys as the test."""
    programs: list[Program] = []

    def run(what: str, *arguments: str, url: str | None = None) -> Program:
        program = Program(what, url or redis_server.url, make_relay.prefix, *arguments)
        programs.append(program)
        return program

    yield run
    for program in programs:
        program.end()


@pytest.fixture
def relay(make_relay: Callable[..., Any]) -> Any:
    """Make a relay as it is by default."""
    return make_relay()
