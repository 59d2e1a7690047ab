"""Server-sent events: a stream as the answer to a request.

`SSEResponse` is an ASGI application, as every response of Starlette is.  It holds the status
back until the first item, the end, or the first ping, so that a run which fails at once gives
a proper status.  Three things go on while it answers: the items are sent, the client is
watched, and a silent model is covered up with pings.  Whichever ends first ends the others,
and the stream is closed then, whatever happened.  An answer that was cut off is left without
its end, so that the server breaks the connection off and no client takes it for whole.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response

from queuestream.errors import StreamClosedError
from queuestream.token_stream import TokenStream
from queuestream.web._ends import checked_stream, close_stream, seconds
from queuestream.web.formats import make_format, openai_error, retry_after, safe_message, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterator, Mapping

    from anyio.abc import TaskGroup
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


def sse_response(
    stream: AsyncIterable[object],
    format: str | Format = "openai",
    ping: float | None = 15.0,
    *,
    send_timeout: float | None = 30.0,
    headers: Mapping[str, str] | None = None,
) -> SSEResponse:
    """Answer a request with the tokens of a stream, as server-sent events.

    A run that fails before there is something to send gives a status of 400, 429, 500, 502, 503
    or 504 with a JSON body (`queuestream.web.formats.status_of` says when); one that fails later,
    or after the first ping, an event in band.  The client reads one of a few fixed sentences, the
    log has the error itself.  A ``SystemExit`` or ``KeyboardInterrupt`` of the run is a failure
    like others.  A stream without items is a start and an end.  A HEAD request gets the headers,
    and nothing is run.

    Every event has an id.  Where items have an ``id`` of their own, it is that of the latest, so
    that a client which comes back with ``Last-Event-ID`` can go on after it; what comes before
    the first has the id that the client came with, or an empty one.  Else it is a number that
    counts up from 1, and says nothing to another answer.

    Args:
        stream: What `queuestream.stream` gave, not entered and not iterated yet; or any
            asynchronous iterator of such items, which is closed with ``aclose`` if it has one.
            Nothing starts before the response is sent.
        format: ``"openai"``, ``"vercel"``, ``"agui"``, ``"text"``, or a
            `queuestream.web.formats.Format`, which serves one answer.
        ping: Seconds of silence after which a comment is sent; None for never.  The status
            becomes 200 with the first.
        send_timeout: Seconds that one send may last before the client is given up; None for
            no limit.  Where a server lets nobody cancel a send (hypercorn's on trio), it is the
            ping that notices, and the run is stopped up to ``ping`` seconds later.
        headers: More headers, which win over those that the response has of its own.  A refusal
            has them, too.

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
        self._stream = checked_stream(stream)
        self._wire = make_format(format)
        self._ping = seconds("ping", ping)
        self._send_timeout = seconds("send_timeout", send_timeout)
        self._is_waiting = False  # for an item
        self._given_headers = dict(headers or {})
        super().__init__(headers={**_HEADERS, **self._wire.headers})
        self.headers.update(self._given_headers)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, and close it."""
        answer = _Answer(self, self._wire, (scope, receive, send), self._send_timeout)
        # Carried past the task group, which would make a group of it.
        failure: BaseException | None = None
        try:
            if scope.get("method") == "HEAD":
                await answer.send_head()
                return
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_watch, receive, tasks.cancel_scope)
                if self._ping is not None:
                    tasks.start_soon(self._keep_alive, answer, self._ping, tasks)
                try:
                    await self._serve(answer)
                except OSError as gone:
                    answer.note_gone(gone)
                except Exception as error:
                    failure = error
                finally:  # in here: the group may have to wait for a ping that nobody can cancel
                    await close_stream(self._stream)
                tasks.cancel_scope.cancel()
        finally:
            await close_stream(self._stream)
        if failure is not None:
            raise failure
        if self.background is not None:
            await self.background()

    async def _serve(self, answer: _Answer) -> None:
        wire, items = self._wire, aiter(self._stream)
        error: BaseException | None = None
        while True:
            try:
                self._is_waiting = True
                item: Any = await anext(items)
                frames = wire.item(item)
            except StopAsyncIteration:
                break
            # What would end a program is raised in the run's consumer, and must not end a server.
            except (Exception, SystemExit, KeyboardInterrupt) as raised:
                error = raised
                break
            finally:
                self._is_waiting = False
            event_id = None if isinstance(item, str) or _is_message(item) else _id_of(item)
            await answer.send_frames(frames, event_id, is_item=True)
        if error is not None:
            if isinstance(error, StreamClosedError):  # whoever closed it knows why
                _logger.info("a stream was closed while its tokens were sent")
            else:
                _logger.error("a run failed while its tokens were sent", exc_info=error)
            if await answer.refuse(error):
                return
            await answer.send_frames(wire.error(safe_message(error)))
        usage = getattr(self._stream, "usage", None)
        reason = getattr(self._stream, "finish_reason", None)
        await answer.send_frames(wire.end(usage, reason), is_last=True)

    async def _keep_alive(self, answer: _Answer, ping: float, tasks: TaskGroup) -> None:
        limit = self._send_timeout
        while True:
            await anyio.sleep_until(answer.last_sent + ping)
            since, now = answer.sending_since, anyio.current_time()
            if since is None:
                if answer.last_sent + ping <= now:
                    answer.last_sent = now
                    tasks.start_soon(self._send_ping, answer, tasks.cancel_scope)
            elif limit is None:
                await answer.wait_until_sent()
            else:
                # Some servers let nobody cancel a send, not of a ping either: hypercorn's on trio.
                await anyio.sleep_until(since + limit)
                if answer.sending_since == since:
                    answer.note_gone(TimeoutError())
                    tasks.cancel_scope.cancel()
                    if not self._is_waiting:  # who waits for an item is cancelled, and closes
                        await close_stream(self._stream)

    async def _send_ping(self, answer: _Answer, scope: anyio.CancelScope) -> None:
        try:
            await answer.send_ping()
        except OSError as gone:
            answer.note_gone(gone)
            scope.cancel()

    @property
    def has_own_ids(self) -> bool:
        """Whether the items may have ids; not before the first of them is it known."""
        return not isinstance(self._stream, TokenStream)

    def refusal(self, error: BaseException) -> Response:
        """What is answered where the run failed before there was something to send."""
        status = status_of(error)
        refusal = JSONResponse(openai_error(safe_message(error), status), status)
        headers = MutableHeaders({"Cache-Control": "no-store"})
        if (wait := retry_after(error)) is not None:
            headers["Retry-After"] = str(wait)
        headers.update(self._given_headers)
        for name in ("content-type", "content-length"):
            del headers[name]
        refusal.headers.update(headers)
        return refusal


class _Answer:
    """The sending end of one request: one send at a time, ids, and nothing after the last."""

    def __init__(
        self,
        response: SSEResponse,
        wire: Format,
        asgi: tuple[Scope, Receive, Send],
        send_timeout: float | None,
    ) -> None:
        self._response = response
        self._wire = wire
        self._asgi = asgi
        self._send_timeout = send_timeout
        self._lock = anyio.Lock()
        self._has_begun = False
        self._is_over = False
        self._last_id: str | None = None  # of the stream's own ids
        self._has_items = False
        self._number = 0
        self.last_sent = anyio.current_time()
        self.sending_since: float | None = None

    async def _send(self, message: dict[str, Any]) -> None:
        with self._timed():
            await self._asgi[2](message)
        self.last_sent = anyio.current_time()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        self.sending_since = anyio.current_time()
        with anyio.fail_after(self._send_timeout):
            yield
        self.sending_since = None

    async def _begin(self) -> None:
        self._has_begun = True
        await self._send(
            {
                "type": "http.response.start",
                "status": self._response.status_code,
                "headers": self._response.raw_headers,
            }
        )

    async def _send_locked(self, body: str, *, is_last: bool = False) -> None:
        if not self._has_begun:
            await self._begin()
        self._is_over = is_last
        await self._send(
            {"type": "http.response.body", "body": body.encode(), "more_body": not is_last}
        )

    def _start(self, *, has_own_ids: bool) -> str:
        """What the format begins with, if it is still to be sent."""
        if self._has_begun:
            return ""
        # A client that is cut off after this comes back for all that it has not got.
        return self._encode(self._wire.start(), self._came_with() if has_own_ids else None)

    def _came_with(self) -> str:
        return _clean(Headers(scope=self._asgi[0]).get("last-event-id", ""))

    def _encode(self, frames: list[Frame], event_id: str | None) -> str:
        encoded: list[str] = []
        for frame in frames:
            self._number += 1
            encoded.append(frame.encode(str(self._number) if event_id is None else event_id))
        return "".join(encoded)

    async def send_head(self) -> None:
        """Send the headers alone."""
        await self._begin()
        await self._send_locked("", is_last=True)

    async def send_frames(
        self,
        frames: list[Frame],
        event_id: str | None = None,
        *,
        is_item: bool = False,
        is_last: bool = False,
    ) -> None:
        """Send events, after the start if they are the first."""
        async with self._lock:
            if frames or is_last:
                self._has_items = self._has_items or is_item
                if not self._has_items and self._response.has_own_ids:
                    event_id = self._came_with()  # an end alone; a client that lost it asks again
                body = self._start(has_own_ids=event_id is not None)
                self._last_id = self._last_id if event_id is None else event_id
                body += self._encode(frames, self._last_id)
                await self._send_locked(body, is_last=is_last)

    async def send_ping(self) -> None:
        """Send a comment, after the start if nothing was sent yet; nothing if it is not the time.

        It never waits for its turn: something else is being sent then, which may take for ever,
        or may be the last.
        """
        try:
            self._lock.acquire_nowait()
        except anyio.WouldBlock:
            return
        try:
            if not self._is_over:
                start = self._start(has_own_ids=self._response.has_own_ids)
                await self._send_locked(start + ": ping\n\n")
        finally:
            self._lock.release()

    async def wait_until_sent(self) -> None:
        """Wait for the end of what is being sent."""
        async with self._lock:
            pass

    async def refuse(self, error: BaseException) -> bool:
        """Answer with a status instead; False if it is too late for that."""
        async with self._lock:
            if self._has_begun:
                return False
            self._has_begun = self._is_over = True
            with self._timed():
                await self._response.refusal(error)(*self._asgi)
            return True

    def note_gone(self, error: OSError) -> None:
        """Log why the client is given up."""
        if isinstance(error, TimeoutError):
            _logger.warning(
                "a client took nothing for %s seconds and was given up", self._send_timeout
            )
        else:
            _logger.debug("a client has left: %r", error)


async def _watch(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel everything when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _is_message(item: object) -> bool:
    return hasattr(item, "response_metadata")  # its id is the message's, not the event's


def _id_of(item: object) -> str | None:
    found = getattr(item, "id", None)
    return None if found is None else _clean(str(found))


def _clean(event_id: str) -> str:
    """An id without a line break, which would end the field, and U+0000, which voids it."""
    return "".join(character for character in event_id if character not in "\r\n\0")
