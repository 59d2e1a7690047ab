"""The format `vercel`, read by the npm package `ai` as its `useChat` reads it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.messages import AIMessageChunk

from queuestream import stream
from queuestream.web import sse_response
from tests.support.models import ScriptedChatModel, usage

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent / "ai"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def read() -> Callable[..., Any]:
    """What the AI SDK makes of URLs; installed once for each version."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("the npm package `ai` needs node and npm, and they are not installed")
    manifest = (HERE / "package.json").read_bytes()
    home = ROOT / ".tox" / f"npm-{hashlib.sha256(manifest).hexdigest()[:12]}"
    if not (home / "node_modules" / "ai" / "package.json").exists():
        home.mkdir(parents=True, exist_ok=True)
        (home / "package.json").write_bytes(manifest)
        install = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock"]
        done = subprocess.run(
            install, cwd=home, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            shutil.rmtree(home, ignore_errors=True)
            reason = f"the npm package `ai` cannot be installed: {done.stderr[-500:]}"
            if os.environ.get("TOX_ENV_NAME") == "web":
                pytest.fail(reason)
            pytest.skip(reason)
    program = home / "read.mjs"  # beside the packages that it imports
    shutil.copyfile(HERE / "read.mjs", program)

    def run(*urls: str) -> Any:
        done = subprocess.run(
            [node, str(program), *urls], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def app_of(models: dict[str, Any]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        answer = stream(models[scope["path"]], "?", select="event")
        await sse_response(answer, "vercel", ping=0.01)(scope, receive, send)

    return app


def call(call_id: str, name: str | None, args: str) -> AIMessageChunk:
    chunk: Any = {"id": call_id, "name": name, "args": args, "index": 0, "type": "tool_call_chunk"}
    return AIMessageChunk(content="", tool_call_chunks=[chunk])


def reasoning(text: str) -> AIMessageChunk:
    return AIMessageChunk(content="", additional_kwargs={"reasoning_content": text})


@pytest.mark.timeout(150)  # npm may have to install
def test_the_ai_sdk_reads_all(serve: Any, read: Callable[..., Any]) -> None:
    """Hazards: a part of a name or form that the SDK does not know ends its stream."""
    whole = ScriptedChatModel(
        tokens=[
            reasoning("h"),
            reasoning("m"),
            "a\n",
            "\u2028é",
            call("c1", "look", '{"x"'),
            call("c1", None, ": 1}"),
            call("c2", "broken", '{"x"'),
            AIMessageChunk(content="", usage_metadata=usage(3, 4)),
            AIMessageChunk(content="", response_metadata={"finish_reason": "length"}),
        ]
    )
    broken = ScriptedChatModel(tokens=["a", "b"], failure=ValueError("secret"), fail_at=1)
    failing = ScriptedChatModel(tokens=["a", "b"], failure=ValueError("x"), fail_at=1, fail_calls=1)
    models = {
        "/whole": whole,
        "/broken": broken,
        "/restart": failing.with_retry(wait_exponential_jitter=False),
    }
    host = serve(app_of(models))
    told, cut, again = read(*(f"http://{host}{path}" for path in models))

    assert told["errors"] == []
    assert told["headers"]["x-vercel-ai-ui-message-stream"] == "v1"
    assert told["headers"]["content-type"].startswith("text/event-stream")
    assert told["reason"] == "length"
    message = told["versions"][-1]
    assert message["role"] == "assistant"
    assert message["metadata"]["usage"]["total_tokens"] == 7
    step, thought, text, look, torn = message["parts"]
    assert step == {"type": "step-start"}
    assert (thought["type"], thought["text"], thought["state"]) == ("reasoning", "hm", "done")
    assert (text["type"], text["text"], text["state"]) == ("text", "a\n\u2028é", "done")
    assert (look["type"], look["state"]) == ("tool-look", "input-available")
    assert (look["toolCallId"], look["input"]) == ("c1", {"x": 1})
    assert (torn["type"], torn["state"]) == ("tool-broken", "output-error")
    texts = [
        "".join(part.get("text", "") for part in version["parts"] if part["type"] == "text")
        for version in told["versions"]
    ]
    assert "a\n" in texts  # it grew

    assert [part["text"] for part in cut["versions"][-1]["parts"] if "text" in part] == ["a"]
    assert cut["errors"] == ["Error: The run failed."]
    assert cut["kinds"][-1] == "error"

    assert again["errors"] == []
    texts = [part["text"] for part in again["versions"][-1]["parts"] if part["type"] == "text"]
    assert texts == ["a", "ab"]
    assert "data-restart" in again["kinds"]
