"""Promise 4 on another server, over HTTP/2, and with a client that takes nothing."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest
from hypercorn.asyncio import serve
from hypercorn.config import Config

from queuestream import stream
from queuestream.web import sse_response
from tests.support.gates import eventually_async
from tests.support.models import ScriptedChatModel, silent_model

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.mark.anyio
@pytest.mark.parametrize("http2", [False, True])
async def test_twenty_clients_leave_hypercorn(*, http2: bool) -> None:
    """Twenty streams, over one connection with HTTP/2: all runs stop, none makes a token more."""
    models = [silent_model("a") for _ in range(20)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        model = models[int(scope["path"][1:])]
        await sse_response(stream(model, "?"), "text")(scope, receive, send)

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    over = asyncio.Event()
    server = asyncio.create_task(serve(app, config, shutdown_trigger=over.wait))
    leave = asyncio.Event()
    here = 0

    async def visit(client: httpx.AsyncClient, number: int) -> None:
        nonlocal here
        async with client.stream("GET", f"http://127.0.0.1:{port}/{number}") as answer:
            assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
            async for line in answer.aiter_lines():
                if line == 'data: "a"':
                    here += 1
                    await leave.wait()
                    break

    async with httpx.AsyncClient(http1=not http2, http2=http2, timeout=20) as client:
        visits = [asyncio.create_task(visit(client, number)) for number in range(20)]
        await eventually_async(lambda: here == 20, 15)
        leave.set()
        await asyncio.gather(*visits)
    # httpx sends no RST_STREAM: over HTTP/2 the clients have left when the connection closes
    await eventually_async(lambda: not any(model.record.open for model in models))
    assert [model.record.produced for model in models] == [1] * 20
    over.set()
    await server


@pytest.mark.anyio
async def test_frozen_client_is_given_up() -> None:
    """A send that never ends is cut off after `send_timeout`; the run stops."""
    model = ScriptedChatModel(tokens=["a"] * 1000)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message.get("body"):
            await asyncio.Event().wait()

    response = sse_response(stream(model, "?", maxsize=4), "text", send_timeout=0.05)
    await response({"type": "http"}, receive, send)
    assert model.record.open == 0
    assert model.record.produced <= 6
