"""Promise 4 over HTTP: a client that leaves, or takes nothing, stops the run."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.serve.conftest import ask
from tests.support.gates import eventually
from tests.support.models import ScriptedChatModel, silent_model, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serve.conftest import Served

    Serve = Callable[..., Served]

COMPLETIONS = "/v1/chat/completions"


@pytest.mark.parametrize("before", [(), ("a",)], ids=["before the first token", "in the middle"])
@pytest.mark.parametrize("run_in", ["auto", "background"])
@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_leaves_a_silent_model(
    serve: Serve, before: tuple[str, ...], run_in: str, is_streamed: bool
) -> None:
    model = silent_model(*before)
    served = serve(model, run_in=run_in)
    body = json.dumps(ask(stream=is_streamed)).encode()
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        )
        client.sendall(head % len(body) + body)
        assert model.gate is not None
        eventually(lambda: model.gate and model.gate.waiting == 1)
    model.record.wait_until_finalized()
    served.wait_until_idle()
    assert model.record.produced == len(before)


@pytest.mark.parametrize("pause", [False, True], ids=["frozen", "a byte now and then"])
def test_a_client_that_takes_nothing(serve: Serve, pause: bool) -> None:
    """Its run makes what fits into the buffers on the way, and not more; then it is given up."""
    model = ScriptedChatModel(tokens=tokens(60_000))
    served = serve(model, send_timeout=0.3)
    body = json.dumps(ask(stream=True)).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with client:
        client.connect(("127.0.0.1", served.port))
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        )
        client.sendall(head % len(body) + body)
        deadline = time.monotonic() + 20
        while not model.record.produced or len(served.app.state.runs):
            assert time.monotonic() < deadline
            assert not pause or client.recv(1)
            time.sleep(0.05)  # how slow this client is
    assert model.record.open == 0
    assert model.record.produced < 60_000


def test_a_reader_that_is_slow_slows_the_model_down(serve: Serve) -> None:
    """Backpressure goes all the way: nothing is lost, and nothing piles up."""
    model = ScriptedChatModel(tokens=tokens(20_000))
    served = serve(model, maxsize=16)
    asked = ask(stream=True)
    with httpx.stream("POST", served.url + COMPLETIONS, json=asked, timeout=20) as answer:
        lines = answer.iter_lines()
        next(lines)
        eventually(lambda: model.record.produced > 100)
        made = -1
        while made != model.record.produced:  # until the buffers on the way are full
            made = model.record.produced
            time.sleep(0.3)  # the system's buffers tell nobody when they are full
        assert made < 20_000
        rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in rest)
    assert said == "".join(tokens(20_000))
