"""What a client is told that asks for something it cannot have, in the shape of OpenAI's errors."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response

from queuestream.web.formats import openai_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

__all__ = ["HANDLERS", "Refused", "logger", "say_no", "who"]

logger: logging.Logger = logging.getLogger("queuestream.web.serve")

_PATIENCE = 2.0  # seconds
_MOST_THROWN_AWAY = 64 * 2**20  # bytes


class Refused(Exception):  # noqa: N818 - an answer, and no failure of ours
    """A request that is answered with an error.

    Args:
        status: The HTTP status.
        message: What the client reads; it holds nothing that the client did not send.
        param: The member of the request that is to blame.
        code: A word for programs.
        headers: More headers of the answer.
        leaves_a_body: Whether the client may still be sending; the connection ends then.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        leaves_a_body: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
        self.leaves_a_body = leaves_a_body
        self.body: dict[str, Any] = openai_error(message, status, code)
        self.body["error"]["param"] = param


def who(connection: HTTPConnection) -> str:
    """What the log calls a request: no byte of it can break the line."""
    client = connection.client
    peer = f"{client.host}:{client.port}" if client is not None else "somebody"
    return f"{connection.scope.get('method', '?')} {connection.url.path[:200]!r} of {peer}"


def _response(request: HTTPConnection, refused: Refused) -> Response:
    log = logger.error if refused.status >= 500 else logger.warning  # noqa: PLR2004 - HTTP's
    log("%s was answered with %d: %s", who(request), refused.status, refused.message)
    if refused.leaves_a_body:
        return _LastWords(refused.body, refused.status, headers=refused.headers)
    return JSONResponse(refused.body, refused.status, headers=refused.headers)


class _LastWords(JSONResponse):
    """An answer to a client that is still sending.

    A connection which is closed with unread bytes is reset, and then the client may never see
    the answer.  So a little more is read, and thrown away.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answer, and read on for a moment."""
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": [*self.raw_headers, (b"connection", b"close")],
            }
        )
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        read = 0
        with anyio.move_on_after(_PATIENCE):
            while read < _MOST_THROWN_AWAY:
                message = await receive()
                read += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    break
        await send({"type": "http.response.body", "body": b""})


async def say_no(scope: Scope, receive: Receive, send: Send, refused: Refused) -> None:
    """Answer with the error, and log it."""
    await _response(HTTPConnection(scope), refused)(scope, receive, send)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _response(request, error)


async def _refuse_as_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {
        404: "There is nothing at this address.",
        405: "This address does not know this method.",
    }
    message = messages.get(error.status_code, error.detail)
    return _response(request, Refused(error.status_code, message, headers=error.headers))


async def _fail(request: Request, error: Exception) -> Response:
    logger.error("%s failed with %s", who(request), type(error).__name__)  # the server says more
    return JSONResponse(openai_error("The server failed."), 500)


HANDLERS: Mapping[Any, Any] = {
    Refused: _refuse,
    HTTPException: _refuse_as_http,
    Exception: _fail,
}
"""For Starlette: what is raised while a request is answered, and what answers it."""
