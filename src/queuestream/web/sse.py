"""Server-sent events: a stream as the answer to a request.

`SSEResponse` is an ASGI application, as every response of Starlette is.  It holds the status
back until the first item, the end, or the first ping, so that a run which fails at once gives
a proper status.  Three things go on while it answers: the items are sent, the client is
watched, and a silent model is covered up with pings.  Whichever ends first ends the others,
and the stream is closed then, whatever happened.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

import anyio
from starlette.responses import JSONResponse, Response

from queuestream._checks import checked_seconds
from queuestream.web.formats import make_format, openai_error, safe_message, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Mapping

    from starlette.types import Receive, Scope, Send

    from queuestream.web.formats import Format, Frame

__all__ = ["SSEResponse", "sse_response"]

_logger = logging.getLogger(__name__)

_HEADERS = {
    # no-transform: a proxy that compresses would gather tokens first
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}
_CLEAN_UP = 5.0  # seconds that a run which was stopped may take before it is left alone


def sse_response(
    stream: AsyncIterable[object],
    format: str | Format = "openai",
    ping: float | None = 15.0,
    *,
    send_timeout: float | None = 30.0,
    headers: Mapping[str, str] | None = None,
) -> SSEResponse:
    """Answer a request with the tokens of a stream, as server-sent events.

    A run that fails before its first item gives a status of 429, 500, 502, 503 or 504 with a
    JSON body; one that fails later, or after the first ping, an event in band.  The client
    reads one of a few fixed sentences, the log has the error itself.  Every event has an id:
    the item's own ``id``, if it is an event that has one, else a number that counts up from 1.
    A stream without items is a start and an end.

    Args:
        stream: What `queuestream.stream` gave, not entered and not iterated yet; or any
            asynchronous iterator of such items.  Nothing starts before the response is sent.
        format: ``"openai"``, ``"vercel"``, ``"agui"``, ``"text"``, or a
            `queuestream.web.formats.Format`, which serves one answer.
        ping: Seconds of silence after which a comment is sent; None for never.  The status
            becomes 200 with the first.
        send_timeout: Seconds that one send may last before the client is given up; None for
            no limit.
        headers: More headers, which win over those that the response has of its own.

    Raises:
        TypeError: If ``stream`` is no asynchronous iterator, ``format`` neither a name nor a
            format, or ``ping`` or ``send_timeout`` no number.
        ValueError: If no format has that name, or ``ping`` or ``send_timeout`` is not above 0.

    **Cancellation**: when the client leaves or the server cancels the request, the stream is
    closed, which stops the run.

    **Thread safety**: the response belongs to the loop that sends it.
    """
    return SSEResponse(stream, format, ping, send_timeout=send_timeout, headers=headers)


class SSEResponse(Response):
    """The response that `sse_response` makes; the arguments are the same."""

    media_type = "text/event-stream"

    def __init__(
        self,
        stream: AsyncIterable[object],
        format: str | Format = "openai",
        ping: float | None = 15.0,
        *,
        send_timeout: float | None = 30.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not hasattr(stream, "__aiter__"):
            raise TypeError(
                "stream must be a TokenStream or another asynchronous iterator, "
                f"not {type(cast('object', stream)).__name__}"
            )
        self._stream = stream
        self._wire = make_format(format)
        self._ping = seconds("ping", ping)
        self._send_timeout = seconds("send_timeout", send_timeout)
        super().__init__(headers={**_HEADERS, **self._wire.headers, **(headers or {})})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, and close it."""
        answer = _Answer(self, scope, receive, send, self._send_timeout)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_watch, receive, tasks.cancel_scope)
                if self._ping is not None:
                    tasks.start_soon(self._keep_alive, answer, self._ping, tasks.cancel_scope)
                try:
                    await self._serve(answer)
                except OSError as gone:  # a TimeoutError is one, too
                    if isinstance(gone, TimeoutError):
                        _logger.warning(
                            "a client took nothing for %s seconds and was given up",
                            self._send_timeout,
                        )
                tasks.cancel_scope.cancel()
        finally:
            await close_stream(self._stream)
        if self.background is not None:
            await self.background()

    async def _serve(self, answer: _Answer) -> None:
        wire, items = self._wire, aiter(self._stream)
        error: Exception | None = None
        while True:
            try:
                item: Any = await anext(items)
                frames = wire.item(item)
            except StopAsyncIteration:
                break
            except Exception as failure:
                error = failure
                break
            event_id = None if isinstance(item, str) or _is_message(item) else _id_of(item)
            await answer.send_frames(frames, event_id)
        if error is not None:
            _logger.error("a run failed while its tokens were sent", exc_info=error)
            if await answer.refuse(status_of(error), safe_message(error)):
                return
            await answer.send_frames(wire.error(safe_message(error)))
        usage = getattr(self._stream, "usage", None)
        await answer.send_frames(wire.end(usage), is_last=True)

    async def _keep_alive(self, answer: _Answer, ping: float, scope: anyio.CancelScope) -> None:
        try:
            while True:
                await anyio.sleep_until(answer.last_sent + ping)
                if answer.last_sent + ping <= anyio.current_time():
                    await answer.send_ping()
        except OSError:  # the client is gone, or takes nothing
            scope.cancel()

    def start_frames(self) -> list[Frame]:
        """What the format begins with."""
        return self._wire.start()


class _Answer:
    """The sending end of one request: one send at a time, and ids."""

    def __init__(
        self,
        response: SSEResponse,
        scope: Scope,
        receive: Receive,
        send: Send,
        send_timeout: float | None,
    ) -> None:
        self._response = response
        self._asgi = scope, receive, send
        self._send_timeout = send_timeout
        self._lock = anyio.Lock()
        self._has_begun = False
        self._last_id: str | None = None  # of the stream's own ids
        self._number = 0
        self.last_sent = anyio.current_time()

    async def _send(self, message: dict[str, Any]) -> None:
        with anyio.fail_after(self._send_timeout):
            await self._asgi[2](message)
        self.last_sent = anyio.current_time()

    async def _send_locked(self, body: str, *, is_last: bool = False) -> None:
        if not self._has_begun:
            self._has_begun = True
            await self._send(
                {
                    "type": "http.response.start",
                    "status": self._response.status_code,
                    "headers": self._response.raw_headers,
                }
            )
        await self._send(
            {"type": "http.response.body", "body": body.encode(), "more_body": not is_last}
        )

    def _encode(self, frames: list[Frame], event_id: str | None) -> str:
        if event_id is not None:
            self._last_id = event_id
        encoded: list[str] = []
        for frame in frames:
            self._number += 1
            encoded.append(frame.encode(self._last_id or str(self._number)))
        return "".join(encoded)

    async def send_frames(
        self, frames: list[Frame], event_id: str | None = None, *, is_last: bool = False
    ) -> None:
        """Send events, after the start if they are the first."""
        async with self._lock:
            if frames or is_last or not self._has_begun:
                body = self._start() + self._encode(frames, event_id)
                await self._send_locked(body, is_last=is_last)

    def _start(self) -> str:
        return "" if self._has_begun else self._encode(self._response.start_frames(), None)

    async def send_ping(self) -> None:
        """Send a comment, after the start if nothing was sent yet."""
        async with self._lock:
            await self._send_locked(self._start() + ": ping\n\n")

    async def refuse(self, status: int, message: str) -> bool:
        """Answer with a status instead; False if it is too late for that."""
        async with self._lock:
            if self._has_begun:
                return False
            self._has_begun = True
            with anyio.fail_after(self._send_timeout):
                await JSONResponse(openai_error(message, status), status)(*self._asgi)
            return True


async def _watch(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel everything when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def close_stream(stream: object) -> None:
    """Close a stream, also where everything is cancelled already.

    Waits a few seconds for the clean-up of a run that is a task.
    """
    close = getattr(stream, "aclose", None)
    if close is not None:
        with anyio.move_on_after(_CLEAN_UP, shield=True):
            await close()


def seconds(name: str, given: float | None) -> float | None:
    """A number of seconds above 0, or None."""
    found = checked_seconds(name, given)
    if found == 0:
        raise ValueError(f"{name} must be more than 0 seconds, or None; not {given!r}")
    return found


def _is_message(item: object) -> bool:
    return hasattr(item, "response_metadata")  # its id is the message's, not the event's


def _id_of(item: object) -> str | None:
    found = getattr(item, "id", None)
    # A line break would end the field, and U+0000 makes a browser ignore it.
    return None if found is None else "".join(c for c in str(found) if c not in "\r\n\0")
