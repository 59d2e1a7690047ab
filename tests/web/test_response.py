"""`sse_response` as an ASGI application: every schedule in which it may end."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import openai
import pytest
from langchain_core.messages import AIMessageChunk

from queuestream import stream
from queuestream.errors import RunCancelledError, StreamClosedError, StreamTimeoutError
from queuestream.web import sse_response
from tests.support.gates import eventually_async
from tests.support.models import ScriptedChatModel, silent_model, usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.anyio


class Exchange:
    """One request: what was sent, and the means to leave."""

    def __init__(self, method: str = "GET", headers: dict[str, str] | None = None) -> None:
        self.scope = {
            "type": "http",
            "method": method,
            "path": "/",
            "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
        }
        self.sent: list[Any] = []
        self.left = anyio.Event()
        self.on_send: Callable[[Any], Any] | None = None

    async def receive(self) -> Any:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        assert not self.is_over, "sent after the end"
        if self.on_send is not None:
            await self.on_send(message)
        self.sent.append(message)

    async def run(self, response: Any) -> Exchange:
        with anyio.fail_after(10):
            await response(self.scope, self.receive, self.send)
        return self

    @property
    def is_over(self) -> bool:
        return bool(self.sent) and "body" in self.sent[-1] and not self.sent[-1].get("more_body")

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> httpx.Headers:
        return httpx.Headers(self.sent[0]["headers"])

    @property
    def body(self) -> str:
        return b"".join(m["body"] for m in self.sent if "body" in m).decode()

    @property
    def ids(self) -> list[str]:
        return [line[3:].strip() for line in self.body.split("\n") if line.startswith("id:")]


def broken(error: BaseException, *before: str) -> ScriptedChatModel:
    return ScriptedChatModel(tokens=[*before, "z"], failure=error, fail_at=len(before))


class ProviderError(Exception):
    """As the clients of most providers raise it."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__("secret")
        self.status_code = status
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.response = httpx.Response(status, headers=headers)


REQUEST: Any = httpx.Request("POST", "http://secret")


def caused_by(cause: BaseException) -> Exception:
    error = ValueError("secret")
    error.__cause__ = cause
    return error


class ContextOverflowError(Exception):
    """LangChain's, of versions that have it."""


class Failing:
    """An iterator that raises at once."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __aiter__(self) -> Failing:
        return self

    async def __anext__(self) -> str:
        raise self.error


@pytest.mark.parametrize(
    "error, status",
    [
        (ValueError("secret"), 500),
        (SystemExit("secret"), 500),
        (KeyboardInterrupt("secret"), 500),
        (ProviderError(429), 429),
        (ProviderError(401), 502),
        (ProviderError(500), 502),
        (ProviderError(529), 503),
        (caused_by(ProviderError(429)), 429),
        (ContextOverflowError("secret"), 400),
        (httpx.HTTPStatusError("secret", request=REQUEST, response=httpx.Response(403)), 502),
        (httpx.ConnectError("secret"), 502),
        (httpx.ReadTimeout("secret"), 504),
        (openai.APIConnectionError(message="secret", request=REQUEST), 502),
        (openai.APITimeoutError(REQUEST), 504),
        (openai.APIError("secret", REQUEST, body=None), 502),
        (ConnectionResetError("secret"), 502),
        (StreamTimeoutError("secret"), 504),
        (RunCancelledError("secret"), 503),
        (StreamClosedError("secret"), 503),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_failure_before_the_first_token_is_a_status(error: Any, status: int) -> None:
    """Hazard: a traceback, a key, an address of the provider reaches the client."""
    told = await Exchange().run(sse_response(Failing(error), headers={"X-Mine": "1"}))
    assert told.status == status
    assert told.headers["content-type"] == "application/json"
    assert told.headers["cache-control"] == "no-store"
    assert told.headers["x-mine"] == "1"
    message = json.loads(told.body)["error"]["message"]
    assert "secret" not in told.body + str(told.headers)
    assert message
    assert told.is_over


@pytest.mark.parametrize("select", ["text", "message", "event"])
async def test_first_chunks_without_words_do_not_make_a_failure_a_200(select: Any) -> None:
    """Hazard: providers send a role or the usage of the prompt before they fail."""
    before = [AIMessageChunk(content=""), AIMessageChunk(content="", usage_metadata=usage(3, 0))]
    model = ScriptedChatModel(tokens=[*before, "a"], failure=ProviderError(429), fail_at=2)
    told = await Exchange().run(sse_response(stream(model, "?", select=select)))
    assert told.status == 429


@pytest.mark.parametrize(
    "told, passed_on",
    [("7", "7"), ("0.2", "1"), ("-1", None), ("999999999", None), ("Fri, 31 Dec", None)],
)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_retry_after_is_passed_on(told: str, passed_on: str | None) -> None:
    model = broken(ProviderError(429, retry_after=told))
    answer = await Exchange().run(sse_response(stream(model, "?")))
    assert answer.headers.get("retry-after") == passed_on


async def test_failure_after_a_ping_is_told_in_band() -> None:
    model = broken(ValueError("secret"))
    model.gate = silent_model().gate
    exchange = Exchange()

    async def release(message: Any) -> None:
        if b": ping" in message.get("body", b""):
            assert model.gate is not None
            model.gate.release()

    exchange.on_send = release
    await exchange.run(sse_response(stream(model, "?"), "text", ping=0.01))
    assert exchange.status == 200
    assert "event: error" in exchange.body
    assert "secret" not in exchange.body
    assert exchange.body.split("\n")[-3].startswith("data: ")
    assert "event: end" in exchange.body


async def test_ping_that_waited_for_its_turn_is_not_sent_after_the_end() -> None:
    """Hazard: the server takes that for a broken application (`Exchange.send` does, too).

    1. The last event is being sent, and the server is slow.
    2. A ping is due, and waits for its turn.
    3. The last event is sent; the turn is the ping's.
    """
    response = sse_response(stream(ScriptedChatModel(tokens=["a"]), "?"), "text", ping=0.001)
    exchange = Exchange()

    async def slow(message: Any) -> None:
        if message.get("more_body") is False:
            await anyio.sleep(0.02)  # the ping has come by then, or else nothing is shown

    exchange.on_send = slow
    await exchange.run(response)
    assert exchange.is_over


@pytest.mark.parametrize("when", ["start", "body", "last"])
@pytest.mark.parametrize("error", [ConnectionResetError("gone"), ValueError("middleware")])
async def test_send_that_fails_closes_the_stream(when: str, error: Exception) -> None:
    """A client that is gone is no error; what else goes wrong is raised as it is."""
    model = ScriptedChatModel(tokens=["a", "b"]) if when == "last" else silent_model("a")
    exchange = Exchange()

    async def fail(message: Any) -> None:
        kind = "start" if "status" in message else "body" if message["more_body"] else "last"
        if kind == when:
            raise error

    exchange.on_send = fail
    response = sse_response(stream(model, "?"), "text")
    if isinstance(error, OSError):
        await exchange.run(response)
    else:
        with pytest.raises(ValueError, match="middleware"):
            await exchange.run(response)
    await eventually_async(lambda: not model.record.open)


@pytest.mark.parametrize("before", [(), ("a",)])
async def test_disconnect_stops_a_silent_model(before: tuple[str, ...]) -> None:
    model = silent_model(*before)
    exchange = Exchange()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run, sse_response(stream(model, "?"), "text"))
        await eventually_async(lambda: model.gate is not None and model.gate.waiting)
        exchange.left.set()
    await eventually_async(lambda: not model.record.open)
    assert model.record.produced == len(before)


async def test_request_that_is_cancelled_closes_the_stream() -> None:
    """By the server that stops, or by a timeout around the application."""
    model = silent_model("a")
    with anyio.move_on_after(10) as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Exchange().run, sse_response(stream(model, "?"), "text"))
            await eventually_async(lambda: model.gate is not None and model.gate.waiting)
            tasks.cancel_scope.cancel()
    assert not scope.cancelled_caught
    await eventually_async(lambda: not model.record.open)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_task_that_is_cancelled_by_asyncio_ends_cancelled() -> None:
    """Hazard: the cancellation is swallowed, or becomes a group of exceptions."""
    model = silent_model("a")
    task = asyncio.ensure_future(Exchange().run(sse_response(stream(model, "?"), "text")))
    await eventually_async(lambda: model.gate is not None and model.gate.waiting)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.record.open == 0


@pytest.mark.parametrize("where", ["send", "ping"])
async def test_frozen_client_is_given_up(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """A send that never ends is cut off after `send_timeout`; the run stops."""
    model = silent_model() if where == "ping" else ScriptedChatModel(tokens=["a"] * 1000)
    exchange = Exchange()

    async def freeze(message: Any) -> None:
        if message.get("body"):
            await anyio.sleep_forever()

    exchange.on_send = freeze
    with caplog.at_level(logging.WARNING, "queuestream.web"):
        tokens = stream(model, "?", maxsize=4)
        await exchange.run(sse_response(tokens, "text", ping=0.01, send_timeout=0.05))
    await eventually_async(lambda: not model.record.open)
    assert model.record.produced <= 6
    assert "a client took nothing for 0.05 seconds" in caplog.text


async def test_run_stops_though_the_server_lets_nobody_cancel_its_send() -> None:
    """Hazard: hypercorn's sends are shielded on trio."""
    model = ScriptedChatModel(tokens=["a"] * 1000)
    exchange = Exchange()
    thawed = anyio.Event()

    async def freeze(message: Any) -> None:
        if message.get("body"):
            with anyio.CancelScope(shield=True):
                await thawed.wait()

    exchange.on_send = freeze
    async with anyio.create_task_group() as tasks:
        tokens = stream(model, "?", maxsize=4)
        response = sse_response(tokens, "text", ping=0.01, send_timeout=0.05)
        tasks.start_soon(exchange.run, response)
        await eventually_async(lambda: model.record.calls and not model.record.open)
        assert model.record.produced <= 6
        thawed.set()


@pytest.mark.parametrize("kind", ["stream", "generator"])
async def test_frozen_ping_that_nobody_can_cancel_stops_a_silent_run(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazards: the group waits for the ping; a generator is closed while it runs.

    1. The model is silent, and somebody waits for its item.
    2. A ping is sent, and never taken; the server lets nobody cancel it.
    3. The one who waits is cancelled, and closes, though the ping goes on.
    """
    model = silent_model()
    exchange = Exchange()
    thawed = anyio.Event()

    async def freeze(message: Any) -> None:
        if message.get("body"):
            with anyio.CancelScope(shield=True):
                await thawed.wait()

    async def generator() -> AsyncIterator[str]:
        async with stream(model, "?") as tokens:
            async for token in tokens:
                yield token

    exchange.on_send = freeze
    items = stream(model, "?") if kind == "stream" else generator()
    async with anyio.create_task_group() as tasks:
        response = sse_response(items, "text", ping=0.01, send_timeout=0.05)
        tasks.start_soon(exchange.run, response)
        await eventually_async(lambda: model.record.calls and not model.record.open)
        thawed.set()
    assert model.record.produced == 0
    assert {record.levelname for record in caplog.records if "web" in record.name} == {"WARNING"}


async def test_client_that_is_gone_at_a_ping_is_no_failure_of_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Hazard: the stream is closed under the one who waits for it, who takes that for an error."""
    model = silent_model()
    exchange = Exchange()

    async def fail(message: Any) -> None:
        if message.get("body"):
            raise ConnectionResetError

    exchange.on_send = fail
    await exchange.run(sse_response(stream(model, "?"), "text", ping=0.01))
    await eventually_async(lambda: not model.record.open)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_iterator_that_cannot_be_closed_does_not_spoil_its_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Items(Failing):
        async def __anext__(self) -> str:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            raise self.error

    told = await Exchange().run(sse_response(Items(ValueError("secret")), "text"))
    assert told.status == 200
    assert "could not be closed" in caplog.text


async def test_head_runs_nothing() -> None:
    model = ScriptedChatModel(tokens=["a"])
    told = await Exchange("HEAD").run(sse_response(stream(model, "?"), "text"))
    assert (told.status, told.body, told.is_over) == (200, "", True)
    assert told.headers["content-type"].startswith("text/event-stream")
    assert model.record.calls == 0


async def test_stream_that_is_closed_already_is_refused_and_closed_twice() -> None:
    tokens = stream(ScriptedChatModel(tokens=["a"]), "?")
    tokens.close()
    told = await Exchange().run(sse_response(tokens))
    assert told.status == 503
    await tokens.aclose()


async def test_response_that_is_never_sent_runs_nothing() -> None:
    """Hazard of a generator: fact 14."""
    model = ScriptedChatModel(tokens=["a"])
    response: Any = sse_response(stream(model, "?"))
    assert response is not None
    response = None
    gc.collect()
    assert model.record.calls == 0


async def test_background_task_runs_after_the_end() -> None:
    from starlette.background import BackgroundTask  # noqa: PLC0415

    ran: list[bool] = []
    exchange = Exchange()
    response = sse_response(stream(ScriptedChatModel(tokens=["a"]), "?"))
    response.background = BackgroundTask(lambda: ran.append(exchange.is_over))
    await exchange.run(response)
    assert ran == [True]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_headers() -> None:
    model = ScriptedChatModel(tokens=["a"])
    mine = {"cache-control": "private", "X-Mine": "1", "Content-Length": "3"}
    response = sse_response(stream(model, "?"), "vercel", headers=mine)
    told = await Exchange().run(response)
    names = [name for name, _ in told.sent[0]["headers"]]
    assert len(names) == len(set(names))
    assert told.headers["cache-control"] == "private"
    assert told.headers["x-accel-buffering"] == "no"
    assert told.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert "content-length" not in told.headers


# -- items that have ids of their own --------------------------------------------------------


class Numbered:
    """As an event of a relay: an event with an id."""

    chunk = None
    run_id = None
    attempt = 1

    def __init__(self, event_id: str, text: str, kind: str = "text") -> None:
        self.id = event_id
        self.text = text
        self.kind = kind


async def numbered(after: str | None = None) -> AsyncIterator[Numbered]:
    for number in range(int(after.split("-")[1]) + 1 if after else 1, 4):
        yield Numbered(f"1-{number}", f"t{number}")


@pytest.mark.parametrize("wire", ["text", "openai", "vercel", "agui"])
async def test_items_keep_their_ids(wire: str) -> None:
    """What comes first sends a client back for all: its id is empty; what comes last, for none."""
    told = await Exchange().run(sse_response(numbered(), wire))
    ids = told.ids
    assert [event_id for event_id in dict.fromkeys(ids) if event_id] == ["1-1", "1-2", "1-3"]
    starts = {"text": 0, "openai": 1, "vercel": 2, "agui": 1}[wire]
    assert ids[:starts] == [""] * starts
    assert ids[-1] == "1-3"
    assert len(ids) == told.body.count("data: ")


async def test_client_that_comes_back_keeps_its_id_until_it_gets_more() -> None:
    exchange = Exchange(headers={"Last-Event-ID": "1-2"})
    told = await exchange.run(sse_response(numbered("1-2"), "openai"))
    assert list(dict.fromkeys(told.ids)) == ["1-2", "1-3"]


async def test_ids_cannot_break_out_of_their_line() -> None:
    async def items() -> AsyncIterator[Numbered]:
        yield Numbered("1\r\nevent: x\0", "a")

    told = await Exchange().run(sse_response(items(), "text"))
    assert told.ids[0] == "1event: x"


@pytest.mark.parametrize("wire", ["text", "openai", "vercel", "agui"])
async def test_every_event_of_a_stream_has_a_number(wire: str) -> None:
    model = ScriptedChatModel(tokens=["a", "b"])
    told = await Exchange().run(sse_response(stream(model, "?"), wire, ping=0.01))
    assert told.ids == [str(number + 1) for number in range(told.body.count("data: "))]


async def test_iterator_that_is_left_is_closed() -> None:
    closed: list[str] = []

    async def items() -> AsyncIterator[str]:
        try:
            yield "a"
            await anyio.sleep_forever()
        finally:
            closed.append("closed")

    exchange = Exchange()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run, sse_response(items(), "text"))
        await eventually_async(lambda: exchange.body)
        exchange.left.set()
    assert closed == ["closed"]


async def test_item_of_another_type_is_a_failure() -> None:
    async def items() -> AsyncIterator[Any]:
        yield 1

    assert (await Exchange().run(sse_response(items()))).status == 500


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_bad_arguments() -> None:
    tokens = stream(ScriptedChatModel(), "?")
    with pytest.raises(TypeError, match=r"stream must be a TokenStream .* not list"):
        sse_response([])  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"must be one of 'openai', .* got 'opnai'"):
        sse_response(tokens, "opnai")
    with pytest.raises(TypeError, match="format must be a name or a Format, not 3"):
        sse_response(tokens, 3)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="ping must be more than 0 seconds"):
        sse_response(tokens, ping=0)
    with pytest.raises(TypeError, match="send_timeout must be a number of seconds"):
        sse_response(tokens, send_timeout="1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
