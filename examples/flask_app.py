"""Server-sent events from Flask: `python flask_app.py [PORT]`, then `curl -N localhost:5000/`.

A WSGI server hears that the client has left when it writes to it: at the next token.
"""

import json
import sys
from collections.abc import Iterator

from flask import Flask, Response, request

from queuestream import stream
from queuestream.demo import DemoChatModel

app = Flask(__name__)
model = DemoChatModel(pace=0.01)


def events(question: str) -> Iterator[str]:
    """Each token as an event; JSON, so that line breaks are safe."""
    with stream(model, question) as tokens:
        for token in tokens:
            yield f"data: {json.dumps(token)}\n\n"
    yield "event: end\ndata: {}\n\n"


@app.get("/")
def answer() -> Response:
    """Answer `?q=...`; nothing starts before the server asks for the first event."""
    return Response(
        events(request.args.get("q", "What is a stream?")),
        mimetype="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]) if len(sys.argv) > 1 else 5000, threaded=True)
