"""What a wrong request gets: a status, an error as OpenAI's server says it, a line of the log, and
no run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from queuestream.demo import DemoChatModel
from queuestream.web.serve import create_app
from queuestream.web.serve import request as request_module
from tests.serve.conftest import ask
from tests.support.gates import eventually, eventually_async
from tests.support.models import ScriptedChatModel, silent_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.serve.conftest import Served

    Serve = Callable[..., Served]

COMPLETIONS = "/v1/chat/completions"
USER = {"role": "user", "content": "?"}


@pytest.fixture(scope="module")
def model() -> ScriptedChatModel:
    return ScriptedChatModel(tokens=["a"])


@pytest.fixture(scope="module")
def served(model: ScriptedChatModel) -> Iterator[Served]:
    from tests.serve.conftest import Served  # noqa: PLC0415 - needs what only tox -e web has

    served = Served(create_app(model, name="m", max_body=200_000))
    yield served
    served.stop()


def refused(answer: httpx.Response, status: int, message: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    return error


BODIES: list[tuple[Any, str, str | None]] = [
    (b"", "no JSON", None),
    (b"{", "no JSON", None),
    (b"\xff\xfe", "no UTF-8", None),
    (b"[]", "a JSON object", None),
    (b"[" * 150_000, "nested too deeply", None),
    (b'{"messages": NaN}', "NaN", None),
    ({}, "'messages' is missing", "messages"),
    ({"messages": None}, "'messages' is missing", "messages"),
    ({"messages": []}, "at least one message", "messages"),
    ({"messages": "hello"}, "must be an array", "messages"),
    ({"messages": ["hello"]}, "must be an object", "messages[0]"),
    ({"messages": [USER, {"content": "?"}]}, "must be one of system", "messages[1].role"),
    ({"messages": [{"role": "wizard", "content": "?"}]}, "user, assistant", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "string or an array", "messages[0].content"),
    ({"messages": [{"role": "user", "content": 3}]}, "string or an array", "messages[0].content"),
    ({"messages": [{"role": "user", "content": [3]}]}, "Each part", "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "'text'", None),
    ({"messages": [{"role": "tool", "content": "2"}]}, "no message as OpenAI", "messages[0]"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]},
        "no message as OpenAI",
        "messages[0]",
    ),
    (ask(model=3), "'model' must be a string", "model"),
    (ask(stream="yes"), "'stream' must be true or false", "stream"),
    (ask(stream_options=3), "'stream_options'", "stream_options"),
    (ask(stream_options={"include_usage": 1}), "'include_usage'", "stream_options"),
    (ask(n=2), "'n' must be 1", "n"),
    (ask(temperature="hot"), "'temperature' must be a number", "temperature"),
    (ask(max_tokens=True), "'max_tokens' must be a number", "max_tokens"),
    (ask(stop=3), "'stop' must be", "stop"),
    (ask(stop=[3]), "'stop' must be", "stop"),
    (ask(tools={"a": 1}), "'tools' must be an array", "tools"),
    (ask(tools=[{"type": "function"}]), "takes no tools", "tools"),
]


@pytest.mark.parametrize("case", BODIES, ids=lambda case: case[1])
def test_a_body_that_is_no_request(
    served: Served,
    model: ScriptedChatModel,
    caplog: pytest.LogCaptureFixture,
    case: tuple[Any, str, str | None],
) -> None:
    body, message, param = case
    calls = model.record.calls
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    error = refused(httpx.post(served.url + COMPLETIONS, content=content), 400, message)
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param
    (line,) = [r for r in caplog.records if r.name == "queuestream.web.serve"]
    assert line.levelno == logging.WARNING
    assert "answered with 400" in line.getMessage()
    served.wait_until_idle()
    assert model.record.calls == calls


def test_a_model_that_there_is_not(served: Served) -> None:
    answer = httpx.post(served.url + COMPLETIONS, json=ask(model="gpt-5"))
    error = refused(answer, 404, "There is no model 'gpt-5'; this server has 'm'.")
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    refused(httpx.get(f"{served.url}/v1/models/gpt-5"), 404, "There is no model 'gpt-5'")


@pytest.mark.parametrize(
    "method, path, allowed",
    [("GET", COMPLETIONS, "POST"), ("PUT", COMPLETIONS, "POST"), ("POST", "/v1/models", "GET")],
)
def test_a_wrong_method(served: Served, method: str, path: str, allowed: str) -> None:
    answer = httpx.request(method, served.url + path)
    refused(answer, 405, "does not know this method")
    assert allowed in answer.headers["allow"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/page/../serve/page.py", "/page/x", "/x%0ay"])
def test_an_address_that_there_is_not(
    served: Served, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And a line of the log stays one line, whatever the path is."""
    refused(httpx.get(served.url + path), 404, "nothing at this address")
    assert all("\n" not in record.getMessage() for record in caplog.records)


def raw(served: Served, *parts: bytes) -> str:
    """Send bytes, and read until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        for part in parts:
            client.sendall(part)
        answer = b""
        while more := client.recv(65536):
            answer += more
    return answer.decode()


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"


class TestTooLarge:
    """413, whatever the request says of its size, and the answer arrives."""

    def test_a_body(self, served: Served) -> None:
        large = json.dumps(ask("x" * 300_000)).encode()
        answer = httpx.post(served.url + COMPLETIONS, content=large)
        assert refused(answer, 413, "larger than 200000")["code"] == "request_too_large"

    def test_a_body_of_twenty_megabytes(self, served: Served) -> None:
        """Hazard: a connection that is reset before the client has read the answer."""
        answer = httpx.post(served.url + COMPLETIONS, content=b"x" * 20_000_000)
        refused(answer, 413, "larger than 200000")

    def test_a_body_in_chunks(self, served: Served) -> None:
        answer = httpx.post(served.url + COMPLETIONS, content=iter([b"x" * 1000] * 1000))
        refused(answer, 413, "larger than 200000")

    @pytest.mark.parametrize("said", [b"99999999999", b"9" * 40])
    def test_a_length_alone(self, served: Served, said: bytes) -> None:
        """No byte of it is waited for, where the client waits for a word."""
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
            client.sendall(HEAD + b"Content-Length: " + said + b"\r\n\r\n")
            assert b" 413 " in client.recv(4096) or len(said) > 20

    def test_chunks_that_say_nothing_of_their_end(self, served: Served) -> None:
        chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
        answer = raw(served, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk * 300)
        assert answer.startswith("HTTP/1.1 413 ")

    def test_a_body_that_is_longer_than_it_says(self, served: Served) -> None:
        """What lies beyond is no body, and the next request at most."""
        answer = raw(served, HEAD + b"Content-Length: 2\r\nConnection: close\r\n\r\n", b"{}" * 2000)
        assert answer.startswith("HTTP/1.1 400 ")


def test_a_body_that_does_not_come(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends one byte a minute holds nothing for long."""
    monkeypatch.setattr(request_module, "_BODY_TIMEOUT", 0.1)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        assert b" 408 " in client.recv(4096)


def test_a_request_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a connection stay for which there is no whole head of a request, ever."""
    import uvicorn  # noqa: PLC0415

    from queuestream.web.serve import server as module  # noqa: PLC0415

    monkeypatch.setattr(module, "_IDLE_TICKS", 2)

    async def wait_for_the_end() -> None:
        app = create_app(DemoChatModel(pace=0))
        config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_keep_alive=60)
        server = module._Server(config, lambda: None, lambda: None)
        (listener,) = module.listen("127.0.0.1", 0)
        serving = asyncio.create_task(server.serve([listener]))
        for sent in (b"", b"POST / HT", b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\nGET /"):
            await eventually_async(lambda: server.started)
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(sent)
            answer = await asyncio.wait_for(reader.read(), 10)
            assert bool(answer) == (sent[:3] == b"GET")
            writer.close()
        server.should_exit = True
        await serving

    asyncio.run(wait_for_the_end())


def test_a_client_that_leaves_before_its_request_is_there(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
    eventually(lambda: "left before the request" in caplog.text)


class TestHowMany:
    def test_one_too_many(self, serve: Serve) -> None:
        """429, and room again when one has gone; an answer that is not streamed counts, too."""
        model = silent_model("a")
        served = serve(model, max_streams=1)
        asked = ask(stream=True)
        with httpx.stream("POST", served.url + COMPLETIONS, json=asked) as first:
            lines = first.iter_lines()
            next(lines)
            for is_streamed in (True, False):
                answer = httpx.post(served.url + COMPLETIONS, json=ask(stream=is_streamed))
                error = refused(answer, 429, "1 answers are being streamed")
                assert error["type"] == "rate_limit_error"
                assert answer.headers["retry-after"] == "1"
        served.wait_until_idle()
        assert model.gate is not None
        model.gate.open()
        assert httpx.post(served.url + COMPLETIONS, json=ask()).status_code == 200
        assert model.record.calls == 2

    def test_a_failure_gives_its_place_back(self, serve: Serve) -> None:
        model = ScriptedChatModel(tokens=["a"], failure=ValueError("x"), fail_at=0)
        served = serve(model, max_streams=1)
        for is_streamed in (True, False, True):
            answer = httpx.post(served.url + COMPLETIONS, json=ask(stream=is_streamed))
            assert answer.status_code == 500


class TestToken:
    @pytest.mark.parametrize(
        "header",
        [None, "", "Bearer", "Bearer sesam", "Bearer sesame2", "Basic sesame", "sesame"],
    )
    def test_without_it(self, serve: Serve, header: str | None) -> None:
        headers = {} if header is None else {"Authorization": header}
        served = serve(DemoChatModel(pace=0), token="sesame")
        for answer in (
            httpx.post(served.url + COMPLETIONS, json=ask(), headers=headers),
            httpx.get(f"{served.url}/v1/models", headers=headers),
            httpx.get(f"{served.url}/v1/nothing", headers=headers),
        ):
            refused(answer, 401, "Authorization: Bearer TOKEN")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert httpx.get(served.url).status_code == 200  # the page asks for it

    @pytest.mark.parametrize("root_path", ["", "/", "/v", "/v1", "/elsewhere"])
    def test_without_it_where_the_server_lets_the_client_say_where_it_is_mounted(
        self, root_path: str
    ) -> None:
        """Hazard: what the guard takes for the path is not what the router takes for it."""

        async def main() -> None:
            app = create_app(DemoChatModel(pace=0), token="sesame")
            transport = httpx.ASGITransport(app, root_path=root_path)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://127.0.0.1"
            ) as client:
                answers = [
                    await client.post(COMPLETIONS, json=ask()),
                    await client.get("/v1/models"),
                ]
            assert [answer.status_code for answer in answers] == [401, 401]

        asyncio.run(main())

    def test_with_it(self, serve: Serve) -> None:
        served = serve(DemoChatModel(pace=0), token="sesame")
        headers = {"Authorization": "bearer sesame", "Host": "any.name"}
        answer = httpx.post(served.url + COMPLETIONS, json=ask(), headers=headers)
        assert answer.status_code == 200

    def test_it_is_compared_in_constant_time(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By `hmac.compare_digest`, of two values of the same length."""
        import hmac  # noqa: PLC0415

        compared: list[tuple[Any, Any]] = []
        real = hmac.compare_digest

        def compare(given: Any, wanted: Any) -> bool:
            compared.append((given, wanted))
            return real(given, wanted)

        monkeypatch.setattr(hmac, "compare_digest", compare)
        served = serve(DemoChatModel(pace=0), token="sesame")
        httpx.get(f"{served.url}/v1/models", headers={"Authorization": "Bearer x"})
        ((given, wanted),) = compared
        assert len(given) == len(wanted) == 32


class TestOtherPages:
    """What a web page of somebody else's can do to a server on loopback: nothing."""

    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil"]
    )
    def test_a_name_that_is_pointed_here(self, served: Served, host: str) -> None:
        answer = httpx.get(f"{served.url}/v1/models", headers={"Host": host})
        assert refused(answer, 421, "--allow-host")["code"] == "unknown_host"
        assert httpx.get(served.url, headers={"Host": host}).status_code == 421

    @pytest.mark.parametrize(
        "host", ["localhost", "LOCALHOST:80", "a.localhost.", "127.0.0.1:1", "[::1]:1", "10.0.0.7"]
    )
    def test_names_that_cannot_be(self, served: Served, host: str) -> None:
        assert httpx.get(f"{served.url}/v1/models", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize("allowed", ["chat.example", "*"])
    def test_a_name_that_is_allowed(self, serve: Serve, allowed: str) -> None:
        served = serve(DemoChatModel(pace=0), allow_hosts=[allowed])
        answer = httpx.get(f"{served.url}/v1/models", headers={"Host": "chat.example:80"})
        assert answer.status_code == 200

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
    def test_another_origin(self, served: Served, model: Any, origin: str) -> None:
        calls = model.record.calls
        headers = {"Origin": origin, "Content-Type": "text/plain"}  # needs no preflight
        answer = httpx.post(served.url + COMPLETIONS, content=json.dumps(ask()), headers=headers)
        assert refused(answer, 403, "--allow-origin")["code"] == "origin_not_allowed"
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert model.record.calls == calls

    def test_its_own_origin(self, served: Served) -> None:
        headers = {"Origin": served.url}
        answer = httpx.post(served.url + COMPLETIONS, json=ask(), headers=headers)
        assert answer.status_code == 200

    def test_an_origin_that_is_allowed(self, serve: Serve) -> None:
        """With its preflight, and also where the answer is an error."""
        origin = "https://app.example"
        served = serve(DemoChatModel(pace=0), allow_origins=[origin], token="sesame")
        preflight = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        allowed = httpx.options(served.url + COMPLETIONS, headers=preflight)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == origin
        answer = httpx.post(served.url + COMPLETIONS, json=ask(), headers={"Origin": origin})
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == origin
        other = httpx.options(
            served.url + COMPLETIONS, headers={**preflight, "Origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("path", ["/", "/page/chat.js", "/v1/models", "/nothing"])
def test_headers_that_keep_a_browser_safe(served: Served, path: str) -> None:
    headers = httpx.get(served.url + path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"max_body": 0}, ValueError, "max_body must be 1 or more"),
        ({"max_streams": True}, TypeError, "max_streams must be an int"),
        ({"ping": 0}, ValueError, "ping"),
        ({"send_timeout": -1}, ValueError, "send_timeout"),
        ({"token": ""}, ValueError, "token"),
        ({"token": "two words"}, ValueError, "token"),
        ({"token": 3}, TypeError, "token"),
        ({"allow_hosts": "a"}, TypeError, "allow_hosts"),
        ({"allow_origins": "a"}, TypeError, "allow_origins"),
        ({"select": "text"}, TypeError, "select"),
        ({"queue": None}, TypeError, "queue"),
        ({"max_size": 3}, TypeError, "maxsize"),
        ({"relay": "redis://localhost"}, TypeError, "relay must be a queuestream.relay.RedisRelay"),
        ({"run_in": "nowhere"}, ValueError, "run_in"),
    ],
    ids=str,
)
def test_options_of_the_application_that_cannot_be(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        create_app(DemoChatModel(), **options)
    assert "two words" not in str(raised.value)
