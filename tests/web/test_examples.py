"""The examples of the web surface run."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import httpx


def test_fastapi_sse(serve: Any) -> None:
    program = Path(__file__).parents[2] / "examples" / "fastapi_sse.py"
    app = runpy.run_path(str(program))["app"]
    body = httpx.get(f"http://{serve(app)}/ask?question=why").text
    assert 'data: "R"' in body
    assert body.rstrip().endswith('data: {"finish_reason":"stop"}')
