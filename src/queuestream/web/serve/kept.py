"""``/v1/answers/{id}``: answers that outlive their connection, and the process that has it.

    PUT     ask, under an id that the client made up; or join what was asked under it before
    GET     read on, after the event that ``Last-Event-ID`` names
    DELETE  stop the run, wherever it is

A relay carries them.  The run is a task of the server and not of a request, its *publication*;
whoever reads is a *reader*, of this process's relay like those of any other.  So a client that
has lost its connection, or its server, puts the same request again, wherever it gets to::

    nobody has asked      begin
    somebody writes       join
    finished, stopped     read what there is
    failed, writer lost   begin again: a ``restart`` for all readers

An id is a secret: who knows it can read the answer, so it must be one that nobody can guess.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any, Protocol

import anyio
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from queuestream.errors import (
    GapError,
    ProducerLostError,
    RelayUnavailableError,
    RemoteRunError,
    StreamClosedError,
)
from queuestream.web.formats import (
    Frame,
    OpenAIFormat,
    retry_after,
    safe_message,
    status_of,
    to_json,
)
from queuestream.web.serve.answers import Runs, shown_reason
from queuestream.web.serve.failures import Refused, logger, who
from queuestream.web.sse import SSEResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send
    from typing_extensions import Self

    from queuestream.events import TokenEvent
    from queuestream.token_stream import TokenStream
    from queuestream.web.serve.answers import Run
    from queuestream.web.serve.completions import ChatCompletions
    from queuestream.web.serve.request import ChatRequest

__all__ = ["KeptAnswers", "Relay"]

_ID = re.compile(r"[A-Za-z0-9_-]{22,64}", re.ASCII)  # 22 of these are 128 bits
_TO_BEGIN = {"pending", "failed", "lost"}
_FLUSH = 2.0  # seconds that the last words of a run may take to Redis when the server ends


class Relay(Protocol):
    """What carries the answers: a `queuestream.relay.RedisRelay`."""

    async def publish(
        self, id: str, stream: TokenStream[Any], *, on_open: Callable[[], object] | None = None
    ) -> Any:
        """Write a run."""

    def subscribe(self, id: str, after: str | None = None) -> AsyncIterator[TokenEvent]:
        """Read one."""
        ...

    async def stop(self, id: str) -> bool:
        """Stop one."""
        ...

    async def status(self, id: str) -> str:
        """Say what one does."""
        ...


class _Publication:
    """A run that is written, whoever reads it.

    Attributes:
        is_open: Set when readers can find it, or when there will be nothing to find.
        failure: Why it could not begin.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.is_open = asyncio.Event()
        self.failure: Exception | None = None
        self.task: asyncio.Task[None] | None = None
        self.is_over = False

    def close(self) -> None:
        """Break it off, because the server ends: its readers are to ask again."""
        if self.task is not None and not self.is_over:
            self.task.cancel()

    def outcome(self) -> str:
        """How it went, for a line of the log."""
        return self.run.outcome()


class _Reader:
    """The events of a run, fit for somebody who sees nothing of it; as `Run` has them.

    A restart that comes first is told with what follows it: a failure that follows at once can be
    a status still, as it is where nobody had asked before.

    Attributes:
        events: The subscription.
        failure: Why they have ended, if they did so early.
    """

    def __init__(self, events: Any, *, with_tool_calls: bool) -> None:
        self.events = events
        self._with_tool_calls = with_tool_calls
        self._number = 0
        self._restart: TokenEvent | None = None
        self._next: TokenEvent | None = None  # what follows it
        self._is_over = False
        self.failure: Exception | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenEvent | str:
        if self._is_over:
            raise StopAsyncIteration
        if self._next is not None:
            event, self._next = self._next, None
            return self._read(event)
        try:
            while True:
                event = await anext(self.events)
                if event.kind == "restart" and not self._number:
                    self._restart = event
                elif event.kind != "tool_call" or self._with_tool_calls:
                    if self._restart is None:
                        return self._read(event)
                    self._next = event
                    return self._read_restart(self._restart)
        except StopAsyncIteration:
            if self._restart is not None:
                return self._read_restart(self._restart)  # and then the end, once more
            self._is_over = True
            if self.events.returned:
                return str(self.events.returned)
            raise
        except Exception as error:
            self.failure = error
            raise

    def _read(self, event: TokenEvent) -> TokenEvent:
        self._number += 1
        return event

    def _read_restart(self, event: TokenEvent) -> TokenEvent:
        self._restart = None
        return self._read(event)

    @property
    def finish_reason(self) -> str | None:
        """As of the run."""
        reason: str | None = self.events.finish_reason
        return shown_reason(reason, with_tool_calls=self._with_tool_calls)

    def close(self) -> None:
        """Read no more."""
        self.events.close()

    async def aclose(self) -> None:
        """Read no more."""
        self.close()

    def outcome(self) -> str:
        """How it went, for a line of the log."""
        how = "" if self.failure is None else f", {type(self.failure).__name__}"
        return f"{self._number} events were read{how}"


class KeptAnswers:
    """The application behind the addresses.

    Args:
        relay: What carries the answers.
        completions: Makes runs of requests.
        runs: Counts the runs; readers are counted beside them, against the same limit.
        name: What the model is called; part of the runs' ids.
        response_options: What else `SSEResponse` is given.
    """

    def __init__(
        self,
        relay: Relay,
        completions: ChatCompletions,
        *,
        runs: Runs,
        name: str,
        response_options: dict[str, Any],
    ) -> None:
        self._relay = relay
        self._completions = completions
        self._runs = runs
        self._readers = Runs(runs.limit)
        runs.followers.append(self._readers)
        self._name = name
        self._response_options = response_options
        self._publications: dict[str, _Publication] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        request = Request(scope, receive)
        stream_id = self._id_in(request)
        if request.method == "DELETE":
            is_stopped = await self._asking(self._relay.stop(stream_id))
            publication = self._publications.get(stream_id)
            if publication is not None and not (is_stopped and publication.is_open.is_set()):
                # What was stopped, or was over, is another's before this, which begins just now.
                await publication.is_open.wait()
                is_stopped |= await self._asking(self._relay.stop(stream_id))
            told = {"id": request.path_params["id"], "object": "answer", "stopped": is_stopped}
            await JSONResponse(told)(scope, receive, send)
            return
        try:
            asked = await self._completions.read(request) if request.method == "PUT" else None
        except ClientDisconnect:
            logger.warning("%s left before the request was there", who(request))
            return
        reader = _Reader(
            self._events(stream_id, request), with_tool_calls=self._completions.serves_a_model
        )
        with self._readers.opened(reader, who(request)):  # before a model is asked for it
            if asked is None:
                await self._find(stream_id)
                status, include_usage = 200, True
            else:
                is_new = await self._ask(stream_id, asked, reader, request)
                status, include_usage = 201 if is_new else 200, asked.include_usage
            response = self._response(request, reader, status, include_usage=include_usage)
            await response(scope, receive, send)

    def _id_in(self, request: Request) -> str:
        given = request.path_params["id"]
        if not _ID.fullmatch(given):
            raise Refused(
                400,
                "An answer's id has 22 to 64 characters of A-Z, a-z, 0-9, - and _, and should be "
                "one that nobody can guess: a random UUID, for example.",
                param="id",
            )
        return f"{self._name}/{given}"

    async def _ask(
        self, stream_id: str, asked: ChatRequest, reader: _Reader, request: Request
    ) -> bool:
        """See to it that there is a run to be read; whether it begins with this."""
        publication = self._publications.get(stream_id)
        is_new = False
        if publication is None:
            status = await self._asking(self._relay.status(stream_id))
            publication = self._publications.get(stream_id)  # somebody may have been quicker
            if publication is None and status in _TO_BEGIN:
                publication = self._begin(stream_id, self._completions.run(asked), who(request))
                is_new = True
                if status == "pending":  # a cursor is that of a run which has expired
                    reader.events = self._relay.subscribe(stream_id)
                    # Nor is a client that is cut off at once to come back with it.
                    del MutableHeaders(scope=request.scope)["last-event-id"]
        if publication is not None:
            await publication.is_open.wait()
            if publication.failure is not None:
                raise self._told(publication.failure) from publication.failure
        return is_new

    async def _find(self, stream_id: str) -> None:
        """See whether there is a run to be read."""
        is_ours = stream_id in self._publications
        if not is_ours and await self._asking(self._relay.status(stream_id)) == "pending":
            raise Refused(404, "There is no such answer, or not any more.", code="answer_not_found")

    def _events(self, stream_id: str, request: Request) -> AsyncIterator[TokenEvent]:
        after = request.headers.get("last-event-id")
        try:
            return self._relay.subscribe(stream_id, after)
        except ValueError:
            raise Refused(
                400, "'Last-Event-ID' must be the id of an event of this answer.", param="id"
            ) from None

    async def _asking(self, answer: Any) -> Any:
        try:
            return await answer
        except Exception as error:
            logger.error("the relay did not answer", exc_info=error)
            raise self._told(error) from error

    # -- writing -----------------------------------------------------------------------------

    def _begin(self, stream_id: str, run: Run, name: str) -> _Publication:
        """Begin a run; Refused if there are as many as there may be."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise Refused(501, "Answers are kept by servers on asyncio only.") from None
        publication = _Publication(run)
        counted = contextlib.ExitStack()
        counted.enter_context(self._runs.opened(publication, name))
        self._publications[stream_id] = publication
        publication.task = loop.create_task(self._publish(stream_id, publication, counted))
        return publication

    async def _publish(
        self, stream_id: str, publication: _Publication, counted: contextlib.ExitStack
    ) -> None:
        try:
            await self._relay.publish(
                stream_id, publication.run.tokens, on_open=publication.is_open.set
            )
        except asyncio.CancelledError:
            # What was posted to the relay before is written when this is answered.
            with contextlib.suppress(Exception), anyio.move_on_after(_FLUSH):
                await self._relay.status(stream_id)
        except StreamClosedError:
            pass  # by whoever stopped it
        # What would end a program must not end a server.
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            logger.error("a run failed", exc_info=error)
            if not publication.is_open.is_set():
                publication.failure = error if isinstance(error, Exception) else None
        finally:
            publication.is_over = True
            del self._publications[stream_id]
            publication.is_open.set()
            counted.close()

    # -- reading -----------------------------------------------------------------------------

    def _response(
        self, request: Request, reader: _Reader, status: int, *, include_usage: bool
    ) -> Response:
        wire = _Wire(
            lambda: self._told(reader.failure),
            model=self._name,
            include_usage=include_usage,
            id=f"chatcmpl-{request.path_params['id']}",
        )
        response = _Response(reader, wire, self._told, **self._response_options)
        response.status_code = status
        return response

    def _told(self, error: BaseException | None) -> Refused:
        """What a client is told of an error; those that have a 503 are worth another try."""
        if self._runs.is_closing:
            return Refused(503, "The server is shutting down.", code="shutting_down")
        if isinstance(error, StreamClosedError):
            return Refused(410, "The answer was stopped.", code="stopped")
        if isinstance(error, GapError):
            return Refused(
                410, "A part of the answer that is still to be read is gone.", code="answer_gone"
            )
        if isinstance(error, ProducerLostError) or (
            isinstance(error, RemoteRunError) and error.type_name == "CancelledError"
        ):
            return Refused(503, "The server that made this answer has gone.", code="interrupted")
        if isinstance(error, RelayUnavailableError):
            return Refused(503, "The answers are out of reach.", code="relay_unavailable")
        error = error or RuntimeError()
        wait = retry_after(error)
        headers = None if wait is None else {"Retry-After": str(wait)}
        return Refused(status_of(error), safe_message(error), headers=headers)


class _Wire(OpenAIFormat):
    """OpenAI's chunks; an error has a code, so that a program knows what to do."""

    def __init__(self, told: Callable[[], Refused], **more: Any) -> None:
        super().__init__(**more)
        self._told = told

    def error(self, message: str) -> list[Frame]:
        """The error, as `KeptAnswers` tells it."""
        super().error(message)
        return [Frame(to_json(self._told().body))]


class _Response(SSEResponse):
    """A stream that may fail before its first event in more ways than a run."""

    def __init__(
        self, reader: _Reader, wire: _Wire, told: Callable[[BaseException], Refused], **more: Any
    ) -> None:
        super().__init__(reader, wire, **more)
        self._told = told

    def refusal(self, error: BaseException) -> Response:
        """The error, as `KeptAnswers` tells it."""
        refused = self._told(error)
        headers = {"Cache-Control": "no-store", **(refused.headers or {})}
        return JSONResponse(refused.body, refused.status, headers=headers)
