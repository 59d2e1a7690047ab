"""Tokens over HTTP: server-sent events and WebSockets, for Starlette and FastAPI.

Needs the extra ``web``, but for `queuestream.web.formats`, which needs nothing::

    from queuestream import stream
    from queuestream.web import sse_response


    @app.post("/ask")
    async def ask(question: str) -> Response:
        return sse_response(stream(chain, question))

``sse`` answers a request, ``websocket`` serves a socket; what goes over the wire is made in
``formats``.  ``serve`` is a whole server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from queuestream._lazy import lazy

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream.web.sse import sse_response
    from queuestream.web.websocket import websocket_stream

__all__ = ["sse_response", "websocket_stream"]

__dir__: Callable[[], list[str]]
_get, __dir__ = lazy(
    __name__,
    {
        "sse_response": "sse",
        "websocket_stream": "websocket",
        "formats": None,
        "serve": None,
        "sse": None,
        "websocket": None,
    },
)


def __getattr__(name: str) -> object:
    try:
        return _get(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "starlette":
            raise
        raise ImportError(
            f"queuestream.web.{name} needs starlette, which is not installed: "
            'pip install "queuestream[web]"'
        ) from error
