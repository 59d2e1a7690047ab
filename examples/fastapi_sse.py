"""A FastAPI application that answers with server-sent events.

pip install "queuestream[web]" fastapi uvicorn, then: uvicorn fastapi_sse:app --app-dir examples
"""

from __future__ import annotations

from fastapi import FastAPI, Response
from langchain_core.language_models import FakeListChatModel

from queuestream import stream
from queuestream.web import sse_response

model = FakeListChatModel(responses=["Rivers run to the sea."])
app = FastAPI()


@app.get("/ask")
async def ask(question: str) -> Response:
    """Answer for a browser's EventSource."""
    return sse_response(stream(model, question), format="text")
