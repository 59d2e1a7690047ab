"""The examples of the web surface run."""

from __future__ import annotations

from typing import Any

import httpx

from examples.fastapi_sse import app


def test_fastapi_sse(serve: Any) -> None:
    body = httpx.get(f"http://{serve(app)}/ask?question=why").text
    assert 'data: "R"' in body
    assert body.rstrip().endswith("data: {}")
