"""`websocket_stream` over real sockets: what comes out, what may come in, and every way to end."""

from __future__ import annotations

import json
import logging
import socket
import threading
from contextlib import suppress
from typing import Any

import pytest
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from queuestream import stream
from queuestream.web import websocket_stream
from tests.support.gates import eventually
from tests.support.models import ScriptedChatModel, silent_model, usage

OTHERS = ["hypercorn", "hypercorn on trio"]
SERVERS = pytest.mark.parametrize("server", ["uvicorn", *OTHERS])


class App:
    """Serves one stream after the other, each with the next model."""

    def __init__(self, *models: ScriptedChatModel, **options: Any) -> None:
        self.models = models
        self.options = options
        self.outcomes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        websocket = WebSocket(scope, receive, send)
        for model in self.models:
            tokens = stream(model, "?", select="event", maxsize=4)
            self.outcomes.append(await websocket_stream(websocket, tokens, **self.options))


def rest_of(client: Any) -> list[Any]:
    """What still comes; the end of the connection is no error."""
    rest: list[Any] = []
    with suppress(ConnectionClosed):  # a code other than 1000
        rest.extend(json.loads(message) for message in client)
    return rest


def test_what_is_sent(serve: Any) -> None:
    from langchain_core.messages import AIMessageChunk  # noqa: PLC0415

    call: Any = {"name": "f", "args": "{}", "id": "c1", "index": 0, "type": "tool_call_chunk"}
    model = ScriptedChatModel(
        tokens=[
            AIMessageChunk(content="", additional_kwargs={"reasoning_content": "hm"}),
            "a\n\u2028",
            AIMessageChunk(content="", tool_call_chunks=[call]),
            AIMessageChunk(content="", usage_metadata=usage(3, 4)),
            AIMessageChunk(content="", response_metadata={"finish_reason": "length"}),
        ]
    )
    app = App(model)
    with connect(f"ws://{serve(app)}/", proxy=None) as client:
        told = rest_of(client)
        assert client.close_code == 1000
    counted = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    assert told == [
        {"type": "reasoning", "text": "hm"},
        {"type": "token", "text": "a\n\u2028"},
        {"type": "tool_call", "index": 0, "id": "c1", "name": "f", "arguments": "{}"},
        {"type": "usage", **counted},
        {"type": "end", "reason": "done", "finish_reason": "length", "usage": counted},
    ]
    assert app.outcomes == ["done"]


WORDS = [
    ('{"type": "stop"}', 1000),
    (b"\0", 1003),
    ("no", 1007),
    ("[" * 100_000, 1007),
    ("[]", 1008),
    ('{"type": "go"}', 1008),
]
"""What a client may send, and the code that it gets."""


@pytest.mark.parametrize(
    "server, before, sent, code",
    [
        *(("uvicorn", ("a",), *word) for word in WORDS),
        *(("uvicorn", (), *word) for word in WORDS[:2]),
        *((server, (), *word) for server in OTHERS for word in WORDS[:2]),
    ],
)
def test_message_stops_a_silent_model(
    serve: Any, server: str, before: tuple[str, ...], sent: Any, code: int
) -> None:
    model = silent_model(*before)
    app = App(model)
    with connect(f"ws://{serve(app, server)}/", proxy=None) as client:
        for token in before:
            assert json.loads(client.recv()) == {"type": "token", "text": token}
        eventually(lambda: model.gate and model.gate.waiting)
        client.send(sent)
        told = rest_of(client)
        assert client.close_code == code
    assert told == ([{"type": "end", "reason": "stopped"}] if code == 1000 else [])
    model.record.wait_until_finalized()
    assert model.record.produced == len(before)
    eventually(lambda: app.outcomes == ["stopped" if code == 1000 else "gone"])


@SERVERS
@pytest.mark.parametrize("how", ["close", "cut"])
def test_disconnect_stops_a_silent_model(serve: Any, server: str, how: str) -> None:
    """With a closing handshake, and without one."""
    model = silent_model("a")
    app = App(model)
    with connect(f"ws://{serve(app, server)}/", proxy=None) as client:
        client.recv()
        if how == "cut":
            client.socket.shutdown(socket.SHUT_RDWR)
    model.record.wait_until_finalized()
    assert model.record.produced == 1
    eventually(lambda: app.outcomes == ["gone"])


@SERVERS
def test_failure_is_told_without_its_secrets(serve: Any, server: str) -> None:
    model = ScriptedChatModel(tokens=["a", "b"], failure=ValueError("secret"), fail_at=1)
    app = App(model)
    with connect(f"ws://{serve(app, server)}/", proxy=None) as client:
        told = rest_of(client)
        assert (client.close_code, client.close_reason) == (1011, "The run failed.")
    assert told == [
        {"type": "token", "text": "a"},
        {"type": "error", "message": "The run failed."},
        {"type": "end", "reason": "error"},
    ]
    assert app.outcomes == ["error"]


def test_socket_that_stays_open_serves_the_next_stream(serve: Any) -> None:
    """After a stop, after a failure, after an end."""
    failing = ScriptedChatModel(tokens=["a"], failure=ValueError("secret"), fail_at=0)
    app = App(silent_model("a"), failing, ScriptedChatModel(tokens=["b"]), close=False)
    with connect(f"ws://{serve(app)}/", proxy=None) as client:
        client.recv()
        client.send('{"type": "stop"}')
        told = rest_of(client)
    assert [m["reason"] for m in told if m["type"] == "end"] == ["stopped", "error", "done"]
    assert app.outcomes == ["stopped", "error", "done"]


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
def test_frozen_client_is_given_up(
    serve: Any, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = ScriptedChatModel(tokens=["x" * 65_536] * 300)
    app = App(model, send_timeout=0.1)
    name, port = serve(app, server).split(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((name, int(port)))
    with raw, caplog.at_level(logging.WARNING, "queuestream.web"):
        raw.sendall(
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        while not (model.record.calls and not model.record.open):
            threading.Event().wait(0.01)
        eventually(lambda: app.outcomes == ["gone"])
    assert model.record.produced < 150
    assert "a client took nothing for 0.1 seconds" in caplog.text


@pytest.mark.anyio
async def test_socket_that_is_gone_before_it_is_accepted_runs_nothing() -> None:
    model = ScriptedChatModel(tokens=["a"])

    async def receive() -> Any:
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: Any) -> None:
        raise OSError

    websocket = WebSocket({"type": "websocket", "headers": [], "path": "/"}, receive, send)
    assert await websocket_stream(websocket, stream(model, "?")) == "gone"
    assert await websocket_stream(websocket, stream(model, "?")) == "gone"
    assert model.record.calls == 0


@pytest.mark.anyio
async def test_bad_arguments() -> None:
    tokens = stream(ScriptedChatModel(), "?")
    websocket: Any = WebSocket({"type": "websocket"}, Any, Any)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="websocket must be a Starlette WebSocket, not str"):
        await websocket_stream("ws", tokens)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"stream must be a TokenStream .* not list"):
        await websocket_stream(websocket, [])  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="send_timeout must be more than 0 seconds"):
        await websocket_stream(websocket, tokens, send_timeout=0)
