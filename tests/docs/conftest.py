"""The servers that pages speak of, at their addresses or as good as there."""

from __future__ import annotations

import importlib.util
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from queuestream.demo import DemoChatModel
from tests.docs.pages import SERVERS
from tests.relay.servers import RedisServer, find_server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start those that can be had here."""
    with ExitStack() as stack:
        if importlib.util.find_spec("redis") and find_server():
            server = stack.enter_context(RedisServer(tmp_path_factory.mktemp("redis")))
            SERVERS["redis://localhost:6379"] = server.url
        if importlib.util.find_spec("uvicorn") and importlib.util.find_spec("starlette"):
            from queuestream.web.serve import create_app  # noqa: PLC0415 - an extra
            from tests.serve.conftest import Served  # noqa: PLC0415 - needs the same

            served = Served(create_app(DemoChatModel(pace=0), name="demo"))
            stack.callback(served.stop)
            SERVERS["http://127.0.0.1:8000"] = served.url
        yield
        SERVERS.clear()
