"""Server-sent events, over real sockets and to real clients."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from ag_ui.core import Event
from langchain_core.messages import AIMessageChunk
from langchain_openai import ChatOpenAI
from playwright.sync_api import sync_playwright
from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route

from queuestream import stream
from queuestream.web import sse_response
from tests.support.models import ScriptedChatModel, usage
from tests.ui.conftest import CHROMIUM, FLAGS


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

    broken = ScriptedChatModel(tokens=["a", "b"], failure=ValueError("secret"), fail_at=1)
    body = httpx.get(f"http://{serve(app(broken, format='agui'))}/v1/chat/completions").text
    lines = [line[6:] for line in body.split("\n") if line.startswith("data: ")]
    kinds = [adapter.validate_json(line).type.value for line in lines]
    assert kinds[-2:] == ["TEXT_MESSAGE_END", "RUN_ERROR"]
    assert "secret" not in body


def test_failure_in_the_middle_is_told_in_band(serve: Any) -> None:
    host = serve(app(ScriptedChatModel(tokens=["a", "b"], failure=ValueError("secret"), fail_at=1)))
    body = httpx.get(f"http://{host}/v1/chat/completions").text
    assert '"error"' in body
    assert "secret" not in body
    assert body.endswith("data: [DONE]\n\n")


def numbered(after: str | None) -> Any:
    """As a relay's subscription: events with ids, and after an id those that follow it."""

    class Event:
        kind, chunk, run_id, attempt = "text", None, None, 1

        def __init__(self, number: int) -> None:
            self.id, self.text = f"1-{number}", f"t{number} \u2028\n"

    async def events() -> Any:
        for number in range(int(after.split("-")[1]) + 1 if after else 1, 7):
            yield Event(number)

    return events()


PAGE = """<!doctype html><script>
const told = { text: "", ids: [], opened: 0, over: false };
function listen(path) {
  const source = new EventSource(path);
  source.onopen = () => told.opened++;
  source.onmessage = (event) => {
    told.text += JSON.parse(event.data);
    told.ids.push(event.lastEventId);
  };
  source.addEventListener("error", (event) => { if (event.data) told.error = event.data; });
  source.addEventListener("end", () => { source.close(); told.over = true; });
}
</script>"""


@pytest.fixture(scope="module")
def browser() -> Any:
    """Chromium; its loop runs in this thread while a test waits."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


def test_a_browser_reads_and_resumes(serve: Any, browser: Any) -> None:
    """The text of an `EventSource`; one that is cut off and comes back; the default format.

    Hazards: a second answer is added to the first; nothing tells the browser that it is over.
    """
    came_with: list[str | None] = []
    raw: list[str] = []

    async def page(request: Any) -> Any:
        return HTMLResponse(PAGE)

    async def whole(request: Any) -> Any:
        return sse_response(stream(ScriptedChatModel(tokens=["a\n", "\u2028é", "b"]), "?"), "text")

    async def default(request: Any) -> Any:
        return sse_response(stream(ScriptedChatModel(tokens=["a\n", "\u2028é"]), "?"))

    async def broken(request: Any) -> Any:
        model = ScriptedChatModel(tokens=["a", "b"], failure=ValueError("secret"), fail_at=1)
        return sse_response(stream(model, "?"), "text")

    class Cut:
        """The connection breaks after two events of each answer."""

        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            bodies = 0

            async def send_some(message: Any) -> None:
                nonlocal bodies
                if message["type"] == "http.response.body":
                    bodies += 1
                    if bodies > 2:
                        raise ConnectionResetError
                await send(message)

            await self.app(scope, receive, send_some)

    async def resumed(scope: Any, receive: Any, send: Any) -> None:
        last = Headers(scope=scope).get("last-event-id")
        came_with.append(last)
        response = sse_response(numbered(last), "text")
        # At once, not after the browser's three seconds.
        await response(scope, receive, retry_at_once(send))

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/whole", whole),
            Route("/default", default),
            Route("/broken", broken),
            Mount("/resumed", Cut(resumed)),
        ]
    )
    host = serve(app)
    tab = browser.new_page()
    tab.goto(f"http://{host}/")

    tab.evaluate("listen('/whole')")
    tab.wait_for_function("told.over")
    told = tab.evaluate("told")
    assert (told["text"], told["opened"]) == ("a\n\u2028éb", 1)
    assert told["ids"] == ["1", "2", "3"]

    tab.reload()
    tab.evaluate("listen('/resumed/')")
    tab.wait_for_function("told.over")
    told = tab.evaluate("told")
    assert told["text"] == "".join(f"t{number} \u2028\n" for number in range(1, 7))
    assert told["ids"] == [f"1-{number}" for number in range(1, 7)]
    # Chromium may drop what it had just got when a connection broke, and asks for it again.
    assert came_with[0] is None
    assert came_with == sorted(came_with, key=lambda last: last or "")
    assert came_with[-1] in ("1-5", "1-6")

    tab.reload()
    tab.evaluate("listen('/broken')")
    tab.wait_for_function("told.over")
    told = tab.evaluate("told")
    assert told["text"] == "a"
    assert "secret" not in told["error"]

    raw = tab.evaluate(
        """() => new Promise((resolve) => {
            const data = [];
            const source = new EventSource('/default');
            source.onmessage = (event) => {
                data.push(event.data);
                if (event.data === '[DONE]') { source.close(); resolve(data); }
            };
        })"""
    )
    assert raw[-1] == "[DONE]"
    deltas = [json.loads(line)["choices"][0]["delta"] for line in raw[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == "a\n\u2028é"
    tab.close()


def retry_at_once(send: Any) -> Any:
    async def send_with_retry(message: Any) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b"retry: 1\n" + message["body"]}
        await send(message)

    return send_with_retry
