"""A FastAPI application that answers over a WebSocket, one question after the other.

pip install "queuestream[web]" fastapi "uvicorn[standard]", then:
uvicorn fastapi_websocket:app --app-dir examples

A client sends {"question": "..."}, gets {"type": "token", "text": "..."} for each token and
{"type": "end", ...} at last, and may send {"type": "stop"} meanwhile.
"""

from __future__ import annotations

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from langchain_core.language_models import FakeListChatModel

from queuestream import stream
from queuestream.web import websocket_stream

model = FakeListChatModel(responses=["Rivers run to the sea."])
app = FastAPI()


@app.websocket("/talk")
async def talk(websocket: WebSocket) -> None:
    """Answer questions until the client leaves."""
    await websocket.accept()
    outcome = ""
    while outcome != "gone":
        try:
            message = await websocket.receive_json()
        except (WebSocketDisconnect, ValueError):  # the client has left, or sent no JSON
            return
        if not isinstance(message, dict) or "question" not in message:
            continue  # a stop that came too late, say
        tokens = stream(model, str(message["question"]))
        outcome = await websocket_stream(websocket, tokens, close=False)
