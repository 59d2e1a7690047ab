"""Server-sent events from Django under ASGI, in one file: `python django_asgi.py [PORT]`.

A client that leaves ends the request's task, and so stops the model at once.
"""

import json
import sys
from collections.abc import AsyncIterator

import uvicorn
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, StreamingHttpResponse
from django.urls import path

from queuestream import stream
from queuestream.demo import DemoChatModel

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1", "localhost"])
model = DemoChatModel(pace=0.01)


async def events(question: str) -> AsyncIterator[str]:
    """Each token as an event; JSON, so that line breaks are safe."""
    async with stream(model, question) as tokens:
        async for token in tokens:
            yield f"data: {json.dumps(token)}\n\n"
    yield "event: end\ndata: {}\n\n"


async def answer(request: HttpRequest) -> StreamingHttpResponse:
    """Answer `?q=...`."""
    return StreamingHttpResponse(
        events(str(request.GET.get("q", "What is a stream?"))),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


urlpatterns = [path("", answer)]
application = get_asgi_application()

if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    uvicorn.run(application, host="127.0.0.1", port=port, lifespan="off")
