"""Server-sent events from Django under WSGI, in one file: `python django_wsgi.py [PORT]`.

Each open answer holds one of the server's threads.  Under WSGI a server hears that the client
has left when it writes to it: at the next token.  `django_asgi.py` has neither limit.
"""

import json
import sys
from collections.abc import Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, StreamingHttpResponse
from django.urls import path

from queuestream import stream
from queuestream.demo import DemoChatModel

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1", "localhost"])
model = DemoChatModel(pace=0.01)


def events(question: str) -> Iterator[str]:
    """Each token as an event; JSON, so that line breaks are safe."""
    with stream(model, question) as tokens:
        for token in tokens:
            yield f"data: {json.dumps(token)}\n\n"
    yield "event: end\ndata: {}\n\n"


def answer(request: HttpRequest) -> StreamingHttpResponse:
    """Answer `?q=...`."""
    return StreamingHttpResponse(
        events(str(request.GET.get("q", "What is a stream?"))),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


urlpatterns = [path("", answer)]
application: Any = get_wsgi_application()


class Server(ThreadingMixIn, WSGIServer):
    """The standard library's, with a thread for each request."""

    daemon_threads = True


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    make_server("127.0.0.1", port, application, Server).serve_forever()
