"""Servers on loopback.  Only `tox -e web` has the packages; elsewhere nothing here is collected."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.gates import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NEEDED = ("ag_ui", "fastapi", "hypercorn", "openai", "uvicorn", "websockets")
# The environments of the core have none of these, by intent.
collect_ignore_glob = ["test_*.py"] if any(find_spec(name) is None for name in _NEEDED) else []


@contextmanager
def _served(app: Any) -> Iterator[str]:
    import uvicorn  # noqa: PLC0415 - only tox -e web has it

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


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Serve an application with uvicorn; its host and port."""
    from contextlib import ExitStack  # noqa: PLC0415

    with ExitStack() as stack:
        yield lambda app: stack.enter_context(_served(app))
