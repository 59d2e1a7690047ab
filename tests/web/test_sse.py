"""Server-sent events, over real sockets and to real clients."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import httpx
import openai
import pytest
from ag_ui.core import Event
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from queuestream import stream
from queuestream.errors import StreamTimeoutError
from queuestream.web import sse_response, websocket_stream
from tests.support.gates import Gate
from tests.support.models import ScriptedChatModel, silent_model, usage

Serve = "Callable[[Any], str]"


def app(model: Any, *, select: Any = "event", **options: Any) -> Starlette:
    async def answer(request: Any) -> Any:
        return sse_response(stream(model, "?", select=select), **options)

    route = Route("/v1/chat/completions", answer, methods=["GET", "POST"])
    return Starlette(routes=[route], middleware=[Middleware(GZipMiddleware, minimum_size=1)])


def talkative() -> ScriptedChatModel:
    call: Any = {"name": "f", "args": '{"x": 1}', "id": "c1", "index": 0, "type": "tool_call_chunk"}
    return ScriptedChatModel(
        tokens=[
            AIMessageChunk(content="", additional_kwargs={"reasoning_content": "hm"}),
            "a\n",
            "\u2028é",
            AIMessageChunk(content="", tool_call_chunks=[call]),
            AIMessageChunk(content="", usage_metadata=usage(3, 4)),
        ]
    )


def test_the_openai_package_reads_all(serve: Any) -> None:
    host = serve(app(talkative()))
    client = openai.OpenAI(base_url=f"http://{host}/v1", api_key="none", max_retries=0)
    with client:
        chunks = list(client.chat.completions.create(model="m", messages=[], stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "a\n\u2028é"
    assert [c.function.name for d in deltas for c in d.tool_calls or () if c.function] == ["f"]
    assert "hm" in [getattr(delta, "reasoning_content", None) for delta in deltas]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 7


def test_chat_openai_reads_text_tool_calls_and_usage(serve: Any) -> None:
    host = serve(app(talkative()))
    model = ChatOpenAI(model="m", base_url=f"http://{host}/v1", api_key="none")  # type: ignore[arg-type]
    whole: Any = None
    for chunk in model.stream("?"):
        whole = chunk if whole is None else whole + chunk
    assert whole.content == "a\n\u2028é"
    assert whole.tool_calls[0]["args"] == {"x": 1}
    assert whole.usage_metadata["total_tokens"] == 7


def test_ag_ui_accepts_every_event(serve: Any) -> None:
    host = serve(app(talkative(), format="agui"))
    body = httpx.get(f"http://{host}/v1/chat/completions").text
    lines = [line[6:] for line in body.split("\n") if line.startswith("data: ")]
    adapter: Any = TypeAdapter(Event)
    kinds = [adapter.validate_json(line).type.value for line in lines]
    assert kinds[0] == "RUN_STARTED"
    assert kinds[-1] == "RUN_FINISHED"


@pytest.mark.parametrize(
    "error, status", [(ValueError("secret"), 500), (StreamTimeoutError("secret"), 504)]
)
def test_failure_before_the_first_token_is_a_status(serve: Any, error: Any, status: int) -> None:
    host = serve(app(ScriptedChatModel(tokens=["a"], failure=error, fail_at=0)))
    answer = httpx.get(f"http://{host}/v1/chat/completions")
    assert answer.status_code == status
    assert "secret" not in answer.text


def test_failure_in_the_middle_is_told_in_band(serve: Any) -> None:
    host = serve(app(ScriptedChatModel(tokens=["a", "b"], failure=ValueError("secret"), fail_at=1)))
    body = httpx.get(f"http://{host}/v1/chat/completions").text
    assert '"error"' in body
    assert "secret" not in body
    assert body.endswith("data: [DONE]\n\n")


def test_client_that_leaves_a_silent_model_stops_it(serve: Any) -> None:
    """Promise 4, before the first token: the status is out with the first ping."""
    model = silent_model()
    host = serve(app(model, ping=0.05))
    with httpx.stream("GET", f"http://{host}/v1/chat/completions") as answer:
        assert ": ping" in answer.iter_lines()
    model.record.wait_until_finalized()
    assert model.record.produced == 0


def test_tokens_arrive_one_by_one_though_gzip_is_on_and_stop_in_the_middle(serve: Any) -> None:
    """Promise 4, in the middle: no token is made after the client left."""
    model = ScriptedChatModel(tokens=["a", "b", "c"], gate=Gate(0))
    assert model.gate is not None
    host = serve(app(model, select="text", format="text"))
    model.gate.release()
    with httpx.stream("GET", f"http://{host}/v1/chat/completions") as answer:
        lines = answer.iter_lines()
        assert [next(lines), next(lines)] == ["id: 1", 'data: "a"']
        model.gate.release()
        assert [next(lines), next(lines), next(lines)] == ["", "id: 2", 'data: "b"']
    model.record.wait_until_finalized()
    assert model.record.produced == 2


@pytest.mark.parametrize(
    "sent, code", [('{"type": "stop"}', 1000), (b"\0", 1003), ("no", 1007), ("[]", 1008)]
)
def test_websocket_stops_a_silent_model(serve: Any, sent: Any, code: int) -> None:
    model = silent_model("a")

    async def socket(scope: Any, receive: Any, send: Any) -> None:
        await websocket_stream(WebSocket(scope, receive, send), stream(model, "?"))

    host = serve(socket)
    with connect(f"ws://{host}/", proxy=None) as client:
        assert client.recv() == '{"type":"token","text":"a"}'
        client.send(sent)
        rest: list[Any] = []
        with suppress(ConnectionClosedError):  # a code other than 1000
            rest.extend(client)
        assert (rest == ['{"type":"end","reason":"stopped"}']) == (code == 1000)
        assert client.close_code == code
    model.record.wait_until_finalized()
    assert model.record.produced == 1
