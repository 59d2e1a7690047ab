"""A stream over a WebSocket: tokens go out, and a stop comes in.

What is sent are JSON objects, each with a ``type``: ``token``, ``reasoning``, ``tool_call``,
``usage``, ``restart``, ``error``, and ``end``, which is the last of every stream.  What may
come in is ``{"type": "stop"}``.  Anything else closes the socket, and stops the run.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import anyio
from starlette.websockets import WebSocketDisconnect, WebSocketState

from queuestream.web.formats import TextFormat, safe_message, to_json
from queuestream.web.sse import close_stream, seconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

    from starlette.websockets import WebSocket

__all__ = ["websocket_stream"]

_logger = logging.getLogger(__name__)

_UNSUPPORTED, _NO_JSON, _NOT_ALLOWED, _FAILED = 1003, 1007, 1008, 1011


async def websocket_stream(
    websocket: WebSocket,
    stream: AsyncIterable[object],
    *,
    send_timeout: float | None = 30.0,
    close: bool = True,
) -> None:
    """Send the tokens of a stream over a WebSocket; stop the run when the client says so.

    Accepts the socket, unless it is accepted already.  A ``{"type": "stop"}`` message or a
    disconnect stops the run at once, also while the model is silent.  The last message is
    ``{"type": "end", "reason": ...}``: ``done``, ``stopped`` or ``error``.  The socket is then
    closed with 1000, after an error with 1011.  A client that breaks the rules is told so by
    the code: 1003 for a binary frame, 1007 for a text that is no JSON, 1008 for another
    message.  It gets no ``end``.

    Args:
        websocket: Starlette's or FastAPI's.
        stream: As for `sse_response`.
        send_timeout: Seconds that one send may last before the client is given up; None for
            no limit.
        close: Whether to close the socket at the end.  If not, it can serve the next
            stream, but is closed nevertheless where a client broke the rules.

    Raises:
        TypeError: If ``stream`` is no asynchronous iterator, or ``send_timeout`` no number.
        ValueError: If ``send_timeout`` is not above 0.

    **Cancellation**: the stream is closed, which stops the run.

    **Thread safety**: nothing else may receive from the socket meanwhile.
    """
    if not hasattr(stream, "__aiter__"):
        raise TypeError(
            "stream must be a TokenStream or another asynchronous iterator, "
            f"not {type(stream).__name__}"
        )
    sender = _Sender(websocket, seconds("send_timeout", send_timeout))
    verdict = _Verdict()
    try:
        if websocket.application_state is WebSocketState.CONNECTING:
            await websocket.accept()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_listen, websocket, verdict, tasks.cancel_scope)
            try:
                await _serve(sender, stream, verdict)
            except (OSError, WebSocketDisconnect) as gone:
                verdict.is_gone = True
                if isinstance(gone, TimeoutError):
                    _logger.warning("a client took nothing for %s seconds", send_timeout)
            tasks.cancel_scope.cancel()
    finally:
        await close_stream(stream)
    if verdict.is_gone:
        return
    try:
        if verdict.code == 1000:  # noqa: PLR2004 - a normal end
            await sender.send({"type": "end", "reason": verdict.reason})
        elif verdict.code == _FAILED:
            await sender.send({"type": "end", "reason": "error"})
        else:
            _logger.warning("a client broke the rules: %s", verdict.reason)
        if close or verdict.code not in (1000, _FAILED):
            await sender.close(verdict.code, "" if verdict.code == 1000 else verdict.reason)  # noqa: PLR2004
    except (OSError, RuntimeError, WebSocketDisconnect):  # gone meanwhile
        _logger.debug("a client left before the end was sent")


class _Verdict:
    """How it ends."""

    def __init__(self) -> None:
        self.code = 1000
        self.reason = "done"
        self.is_gone = False


class _Sender:
    def __init__(self, websocket: WebSocket, send_timeout: float | None) -> None:
        self._websocket = websocket
        self._send_timeout = send_timeout

    async def send(self, message: object) -> None:
        with anyio.fail_after(self._send_timeout):
            await self._websocket.send_text(to_json(message))

    async def close(self, code: int, reason: str) -> None:
        with anyio.fail_after(self._send_timeout):
            await self._websocket.close(code, reason)


async def _listen(websocket: WebSocket, verdict: _Verdict, scope: anyio.CancelScope) -> None:
    """Wait for the one message that may come, or the disconnect."""
    message = await websocket.receive()
    text = message.get("text")
    if message["type"] == "websocket.disconnect":
        verdict.is_gone = True
    elif text is None:
        verdict.code, verdict.reason = _UNSUPPORTED, "send text, not binary frames"
    else:
        try:
            asked = json.loads(text)
        except (ValueError, RecursionError):
            verdict.code, verdict.reason = _NO_JSON, "send JSON"
        else:
            if isinstance(asked, dict) and asked.get("type") == "stop":
                verdict.reason = "stopped"
            else:
                verdict.code, verdict.reason = _NOT_ALLOWED, 'send {"type": "stop"} or nothing'
    scope.cancel()


async def _serve(sender: _Sender, stream: AsyncIterable[object], verdict: _Verdict) -> None:
    wire, items = TextFormat(), aiter(stream)
    while True:
        try:
            item: Any = await anext(items)
            frames = wire.item(item)
        except StopAsyncIteration:
            break
        except Exception as error:
            _logger.exception("a run failed while its tokens were sent")
            verdict.code, verdict.reason = _FAILED, safe_message(error)
            await sender.send({"type": "error", "message": safe_message(error)})
            return
        for frame in frames:
            await sender.send(_message(frame.event, json.loads(frame.data)))


def _message(event: str | None, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"type": event or "token", "text": value}
    return {"type": event, **(value or {})}
