"""Fixtures for every test: the event loops, the provider on loopback, and gates left shut."""

from __future__ import annotations

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.backends import ALL_BACKENDS
from tests.support.gates import open_all_gates
from tests.support.server import ReplayServer

if TYPE_CHECKING:
    from collections.abc import Iterator

pytest_plugins = ["pytester", "tests.support.figures", "tests.support.thinning"]


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> None:
    """Spare the collector what lives as long as the process: half of what the suite takes.

    LangChain's modules and eleven thousand tests are a million objects, and many a test calls
    ``gc.collect()``.  For each module anew, because some import more, and the benchmarks'
    harness unfreezes what it froze.
    """
    import_module("hypothesis")  # it looks at who refers to what, so it comes before the freeze
    gc.collect()
    gc.freeze()


@pytest.fixture(params=ALL_BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run an async test on asyncio, uvloop, asyncio with eager tasks, and trio.

    A test for asyncio alone says ``@pytest.mark.parametrize("anyio_backend",
    ASYNCIO_BACKENDS)`` (from `tests.support.backends`), or names one of them.
    """
    return request.param


@pytest.fixture(autouse=True)
def _no_gate_stays_shut() -> Iterator[None]:
    """Free the producers that a test has left at a gate, whether it passed or failed."""
    yield
    open_all_gates()


@pytest.fixture(scope="session")
def server() -> Iterator[ReplayServer]:
    """Return the model provider on loopback; each test asks it for a scenario of its own."""
    with ReplayServer() as running:
        yield running
