"""The examples of the web surface run."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_fastapi_sse(serve: Any) -> None:
    app = runpy.run_path(str(EXAMPLES / "fastapi_sse.py"))["app"]
    body = httpx.get(f"http://{serve(app)}/ask?question=why").text
    assert 'data: "R"' in body
    assert body.rstrip().endswith('data: {"finish_reason":"stop"}')


def test_fastapi_websocket(serve: Any) -> None:
    """Two questions over one socket, and a stop that came too late."""
    app = runpy.run_path(str(EXAMPLES / "fastapi_websocket.py"))["app"]
    with connect(f"ws://{serve(app)}/talk", proxy=None) as client:
        for _ in range(2):
            client.send('{"type": "stop"}')
            client.send('{"question": "why"}')
            told: list[Any] = [{}]
            while told[-1].get("type") != "end":
                told.append(json.loads(client.recv()))
            assert "".join(m.get("text", "") for m in told) == "Rivers run to the sea."
            assert told[-1]["reason"] == "done"
