"""A stream over a WebSocket: tokens go out, and a stop comes in.

What is sent are JSON objects, each with a ``type``: ``token``, ``reasoning``, ``tool_call``,
``usage``, ``restart``, ``error``, and ``end``, which is the last of every stream.  What may
come in is ``{"type": "stop"}``.  Anything else closes the socket, and stops the run.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Literal

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from queuestream.web._ends import checked_stream, close_stream, seconds
from queuestream.web.formats import TextFormat, safe_message, to_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

__all__ = ["websocket_stream"]

_logger = logging.getLogger(__name__)

Outcome = Literal["done", "stopped", "error", "gone"]

_NORMAL, _UNSUPPORTED, _NO_JSON, _NOT_ALLOWED, _FAILED = 1000, 1003, 1007, 1008, 1011
# Starlette raises a RuntimeError where a socket is used that is closed already.
_GONE = (OSError, RuntimeError, WebSocketDisconnect)


async def websocket_stream(
    websocket: WebSocket,
    stream: AsyncIterable[object],
    *,
    send_timeout: float | None = 30.0,
    close: bool = True,
) -> Outcome:
    """Send the tokens of a stream over a WebSocket; stop the run when the client says so.

    Accepts the socket, unless it is accepted already.  A ``{"type": "stop"}`` message or a
    disconnect stops the run at once, also while the model is silent.  The last message is
    ``{"type": "end", "reason": ..., "finish_reason": ...}``, with ``usage`` if it is known; the
    reason is ``done``, ``stopped`` or ``error``.  The socket is then closed with 1000, after an
    error with 1011.  A client that breaks the rules is told so by the code: 1003 for a binary
    frame, 1007 for a text that is no JSON, 1008 for another message.  It gets no ``end``.

    Args:
        websocket: Starlette's or FastAPI's.
        stream: As for `sse_response`.
        send_timeout: Seconds that one send may last before the client is given up; None for
            no limit.
        close: Whether to close the socket at the end.  If not, it can serve the next
            stream, but is closed nevertheless where a client broke the rules.  A stop that
            crosses the ``end`` on its way is then the next message that you receive.

    Returns:
        The ``reason`` that the client was told; ``"gone"`` if the client has left, was given
        up or broke the rules, so that nothing more can be said to it.

    Raises:
        TypeError: If ``websocket`` is none, ``stream`` no asynchronous iterator, or
            ``send_timeout`` no number.
        ValueError: If ``send_timeout`` is not above 0.

    **Cancellation**: the stream is closed, which stops the run.

    **Thread safety**: nothing else may receive from the socket meanwhile.
    """
    if not isinstance(websocket, WebSocket):
        raise TypeError(f"websocket must be a Starlette WebSocket, not {type(websocket).__name__}")
    checked_stream(stream)
    sender = _Sender(websocket, seconds("send_timeout", send_timeout))
    verdict = _Verdict()
    # Carried past the task group, which would make a group of it.
    failure: BaseException | None = None
    wire = TextFormat()
    try:
        if not await _accept(websocket):
            return "gone"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_listen, websocket, verdict, tasks.cancel_scope)
            try:
                await _serve(sender, wire, stream, verdict)
            except _GONE as gone:
                verdict.outcome = "gone"
                sender.note_gone(gone)
            except Exception as error:
                failure = error
            tasks.cancel_scope.cancel()
    finally:
        await close_stream(stream)
    if failure is not None:
        raise failure
    if verdict.outcome == "gone" and verdict.code == _NORMAL:
        return "gone"
    try:
        if verdict.outcome != "gone":
            await sender.send(_end(wire, stream, verdict.outcome))
        else:
            _logger.warning("a client broke the rules: %s", verdict.why)
        if close or verdict.outcome == "gone":
            await sender.close(verdict.code, verdict.why)
    except _GONE as gone:
        sender.note_gone(gone)
        return "gone"
    return verdict.outcome


async def _accept(websocket: WebSocket) -> bool:
    """Accept the socket, if that is still to be done; whether it can be used."""
    try:
        if websocket.application_state is WebSocketState.CONNECTING:
            await websocket.accept()
    except _GONE:
        return False
    return (
        websocket.application_state is WebSocketState.CONNECTED
        and websocket.client_state is WebSocketState.CONNECTED
    )


class _Verdict:
    """How it ends: what is told, and the code and the words that the socket is closed with."""

    def __init__(self) -> None:
        self.outcome: Outcome = "done"
        self.code = _NORMAL
        self.why = ""

    def refuse(self, code: int, why: str) -> None:
        """The client broke the rules."""
        self.outcome, self.code, self.why = "gone", code, why


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

    def note_gone(self, error: Exception) -> None:
        if isinstance(error, TimeoutError):
            _logger.warning(
                "a client took nothing for %s seconds and was given up", self._send_timeout
            )
        else:
            _logger.debug("a client has left: %r", error)


async def _listen(websocket: WebSocket, verdict: _Verdict, scope: anyio.CancelScope) -> None:
    """Wait for the one message that may come, or the disconnect."""
    try:
        message = await websocket.receive()
    except _GONE:
        message = {"type": "websocket.disconnect"}
    text = message.get("text")
    if message["type"] == "websocket.disconnect":
        verdict.outcome, verdict.code = "gone", _NORMAL
    elif text is None:
        verdict.refuse(_UNSUPPORTED, "send text, not binary frames")
    else:
        try:
            asked = json.loads(text)
        except (ValueError, RecursionError):
            verdict.refuse(_NO_JSON, "send JSON")
        else:
            if isinstance(asked, dict) and asked.get("type") == "stop":
                verdict.outcome = "stopped"
            else:
                verdict.refuse(_NOT_ALLOWED, 'send {"type": "stop"} or nothing')
    scope.cancel()


async def _serve(
    sender: _Sender, wire: TextFormat, stream: AsyncIterable[object], verdict: _Verdict
) -> None:
    items = aiter(stream)
    while True:
        try:
            item: Any = await anext(items)
            frames = wire.item(item)
        except StopAsyncIteration:
            break
        # What would end a program is raised in the run's consumer, and must not end a server.
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            _logger.exception("a run failed while its tokens were sent")
            verdict.outcome, verdict.code, verdict.why = "error", _FAILED, safe_message(error)
            await sender.send({"type": "error", "message": safe_message(error)})
            return
        for frame in frames:
            await sender.send(_message(frame.event, json.loads(frame.data)))


def _end(wire: TextFormat, stream: object, outcome: Outcome) -> dict[str, Any]:
    usage, reason = getattr(stream, "usage", None), getattr(stream, "finish_reason", None)
    told: dict[str, Any] = json.loads(wire.end(usage, reason)[0].data)
    if outcome != "done":
        del told["finish_reason"]  # the model did not come to its end
    return {"type": "end", "reason": outcome, **told}


def _message(event: str | None, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"type": event or "token", "text": value}
    return {"type": event, **(value or {})}
