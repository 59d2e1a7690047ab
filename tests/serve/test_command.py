"""``queuestream serve`` as a process: what it takes, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from queuestream.demo import PASSAGE
from tests.serve.conftest import ask, chunks_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serve.conftest import Served, Server

    Start = Callable[..., Server]

COMPLETIONS = "/v1/chat/completions"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
TARGET = "tests.serve.targets:model"


def test_it_serves_the_demo_model_on_loopback(start: Start) -> None:
    server = start()
    assert server.url.startswith("http://127.0.0.1:")
    assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"] == "demo"
    asked = ask(stream=True, stream_options={"include_usage": True}, model="demo")
    chunks = chunks_of(httpx.post(server.url + COMPLETIONS, json=asked, timeout=30).text)
    assert text_of(chunks) == PASSAGE
    assert chunks[-1]["usage"]["completion_tokens"] > 100
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.port), timeout=2)
    server.signal()
    assert server.end() == 0
    assert "Traceback" not in "".join(server.log)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_open_streams_and_the_process(start: Start, number: int) -> None:
    """Promise 8 for a server: clients are told, models stop, the process ends with 0."""
    server = start(TARGET)
    asked = ask("silent", stream=True)
    with httpx.stream("POST", server.url + COMPLETIONS, json=asked, timeout=20) as answer:
        server.wait_for("MODEL made 2")
        began = time.monotonic()
        server.signal(number)
        body = answer.read().decode()
    assert '"code":"shutting_down"' in body
    assert body.endswith("data: [DONE]\n\n")
    server.wait_for("MODEL left silent")
    assert server.end() == 0
    assert time.monotonic() - began < 5
    assert "Traceback" not in "".join(server.log)


def test_a_signal_before_the_first_token(start: Start) -> None:
    """A status then, streamed or not."""
    server = start(TARGET)
    with ExitStack() as stack:
        waiting: list[socket.socket] = []
        for is_streamed in (True, False):
            address = ("127.0.0.1", server.port)
            client = stack.enter_context(socket.create_connection(address, timeout=10))
            body = json.dumps(ask("mute", stream=is_streamed)).encode()
            client.sendall(HEAD % len(body) + body)
            server.wait_for("MODEL asked mute")
            waiting.append(client)
        server.signal()
        assert all(b" 503 " in client.recv(4096) for client in waiting)
    server.wait_for("MODEL left mute")
    assert server.end() == 0


@pytest.mark.parametrize("run_in", ["auto", "thread"])
def test_a_model_that_hears_of_no_stop_does_not_keep_the_process(start: Start, run_in: str) -> None:
    """It sits in a thread that nobody can reach."""
    server = start("tests.serve.targets:stubborn", f"--run-in={run_in}")
    with (
        httpx.Client(base_url=server.url, timeout=20) as client,
        client.stream("POST", COMPLETIONS, json=ask(stream=True)) as answer,
    ):
        server.wait_for("MODEL made 1")
        server.signal()
        answer.read()
    assert server.end() == 0


def test_a_client_that_takes_nothing_does_not_keep_the_process(start: Start) -> None:
    server = start(TARGET)
    body = json.dumps(ask("endless", stream=True)).encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with client:
        client.connect(("127.0.0.1", server.port))
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        )
        client.sendall(head % len(body) + body)
        server.wait_for("MODEL made 5")
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    assert time.monotonic() - began < 10


def test_it_listens_where_it_is_told_and_logs_what_is_wrong(start: Start) -> None:
    server = start("--host=localhost", "--name=a model", TARGET, "--verbose")
    url = f"http://localhost:{server.port}"
    assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "a model"
    httpx.post(url + COMPLETIONS, json=ask("hello"))
    assert "3 tokens, the first after" in server.wait_for("INFO POST '/v1/chat/completions'")
    httpx.post(url + COMPLETIONS, content=b"{")
    assert "was answered with 400: The body is no JSON" in server.wait_for("WARNING")
    httpx.post(url + COMPLETIONS, json=ask("fail"))
    server.wait_for("ConnectionError: the line went dead")


def test_an_open_address_without_a_token_is_warned_of(start: Start) -> None:
    start("--host=0.0.0.0").wait_for("WARNING whoever reaches this address")


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    from queuestream.cli import main  # noqa: PLC0415

    with socket.create_server(("127.0.0.1", 0)) as other:
        assert main(["serve", "--port", str(other.getsockname()[1])]) == 2
    said = capsys.readouterr().err
    assert said.startswith("queuestream: cannot listen on 127.0.0.1, port ")


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--port=70000"], "70000 is no port"),
        (["--port=x"], "--port"),
        (["--max-streams=0"], "0 is not 1 or more"),
        (["--token-timeout=-1"], "-1 is not a number of seconds"),
        (["--token="], "the token must be one word"),
        (["--input=words"], "described by messages, text"),
        (["no_such_module:x"], "no module 'no_such_module'"),
        (["--model", "openai:x", "a:b"], "either --model or a:b"),
        (["--model", "nobody:nothing"], "nobody"),
        (["--host=256.0.0.1"], "cannot listen on 256.0.0.1"),
        (["json:decoder"], "callbacks parameter"),
        (["--redis=localhost:6379"], "--redis: url must begin with redis://"),
        (["--redis=redis://127.0.0.1:9"], "--redis: Redis has been out of reach"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_named(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from queuestream.cli import main  # noqa: PLC0415

    try:
        code = main(["serve", *arguments])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    assert code == 2
    assert complaint in capsys.readouterr().err


def test_what_to_install_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from queuestream.cli import main  # noqa: PLC0415

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    said = capsys.readouterr().err
    assert "serve needs the package uvicorn" in said
    assert 'pip install "queuestream[web]"' in said


def test_what_to_install_for_redis_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from queuestream.cli import main  # noqa: PLC0415

    monkeypatch.setitem(sys.modules, "redis", None)
    for name in [name for name in sys.modules if name.startswith("queuestream.relay")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["serve", "--redis=redis://127.0.0.1"]) == 2
    assert 'pip install "queuestream[redis]"' in capsys.readouterr().err


def test_a_model_of_a_provider_is_served(serve: Callable[..., Served], start: Start) -> None:
    """One server's API is another's provider."""
    from tests.serve.targets import model  # noqa: PLC0415

    provider = serve(model, name="m")
    server = start("--model=openai:m", OPENAI_API_KEY="none", OPENAI_BASE_URL=f"{provider.url}/v1")
    answer: Any = httpx.post(server.url + COMPLETIONS, json=ask("hello"), timeout=20).json()
    assert answer["model"] == "openai:m"
    assert answer["choices"][0]["message"]["content"] == "You said **hello**."


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="an option of Linux")
def test_bytes_that_nobody_takes_are_not_kept() -> None:
    """Hazard: a connection whose run was stopped stays, because its last bytes cannot go."""
    import queuestream.web.serve.server as module  # noqa: PLC0415

    (listener,) = module.listen("127.0.0.1", 0)
    with listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                option: Any = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert option == module._UNSENT
