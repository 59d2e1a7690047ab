"""A model provider on loopback: replays answers as real SSE bytes, at the pace a test sets.

One server serves a whole test session.  A test gives it a `Scenario`: what to answer to
the first request, the second, and so on, under a URL of its own.  The test then sees, for
each request, how many events were sent and when the client left.

The recorded answers of real providers are data that lies beside the project, in
``shared/streams``; where it is absent the tests that need it skip.  `chat_completion`,
`responses` and `anthropic_message` make small answers that are always there.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.support.gates import Gate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

__all__ = [
    "ABSENT",
    "Answer",
    "Exchange",
    "ReplayServer",
    "Scenario",
    "anthropic_message",
    "chat_completion",
    "recorded",
    "recordings",
    "responses",
]

STREAMS = Path(__file__).resolve().parents[2].parent / "shared" / "streams"
ABSENT = "the recorded streams (../shared/streams beside the project) are not here"


@dataclass(frozen=True)
class Answer:
    """What the server sends in answer to one request."""

    events: Sequence[bytes]
    """SSE events, each complete with its blank line."""
    pace: Gate | None = None
    """Passed before each event; None sends them all as fast as they are taken."""
    cut_after: int | None = None
    """Break the connection off after so many events."""
    media_type: str = "text/event-stream"
    """JSON is an answer that comes at once; its only event is the body."""

    def paced(self, permits: int = 0) -> tuple[Gate, Answer]:
        """Return the same answer behind a gate that lets so many events out, and that gate."""
        gate = Gate(permits)
        return gate, replace(self, pace=gate)

    def cut(self, after: int) -> Answer:
        """Return the same answer, broken off after so many events."""
        return replace(self, cut_after=after)


class Exchange:
    """One request, and how far its answer has got."""

    def __init__(self, request: dict[str, Any], answer: Answer) -> None:
        self.request = request
        self.answer = answer
        self.disconnected = threading.Event()
        """The client has closed the connection before the end of the answer."""
        self.is_complete = False
        """Every event was handed to the socket."""
        self._changed = threading.Condition()
        self._sent = 0

    @property
    def sent(self) -> int:
        """How many events were handed to the socket."""
        with self._changed:
            return self._sent

    def wait_until_sent(self, count: int, within: float = 5.0) -> None:
        """Block the thread until so many events were handed to the socket."""
        with self._changed:
            reached = self._changed.wait_for(lambda: self._sent >= count, within)
            assert reached, f"{self._sent} of {count} events sent within {within} s"

    def note_sent(self) -> None:
        """Count an event."""
        with self._changed:
            self._sent += 1
            self._changed.notify_all()


@dataclass(eq=False)
class Scenario:
    """The answers to the requests under one URL, in their order."""

    url: str
    answers: Sequence[Answer]
    exchanges: list[Exchange] = field(default_factory=list)
    """The requests that came, so far."""
    unexpected: int = 0
    """How many requests came beyond the answers: a retry that nobody asked for, say."""
    keep_alive: bool = False
    """Whether the client may use a connection for its next request.

    A connection that is kept belongs to the loop that opened it (fact 22) and has to be
    closed there, so that most tests do without.
    """

    @property
    def openai_url(self) -> str:
        """The base URL for OpenAI's client."""
        return f"{self.url}/v1"


class ReplayServer:
    """The server, in a thread; use it as a context manager."""

    def __init__(self) -> None:
        self._scenarios: dict[str, Scenario] = {}
        self._numbers = itertools.count()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        path = "/{scenario}/{endpoint:path}"
        config = uvicorn.Config(
            Starlette(routes=[Route(path, self._respond, methods=["POST"])]),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # a connection that a test cuts is no error to report
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="replay server", daemon=True
        )

    def __enter__(self) -> ReplayServer:  # noqa: PYI034 - Self came with Python 3.11
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()

    def scenario(self, *answers: Answer, keep_alive: bool = False) -> Scenario:
        """Prepare the answers to a test's requests, under a URL that nobody else uses."""
        number = str(next(self._numbers))
        scenario = Scenario(f"{self._url}/{number}", answers, keep_alive=keep_alive)
        self._scenarios[number] = scenario
        return scenario

    async def _respond(self, request: Request) -> Response | _Replay:
        scenario = self._scenarios[request.path_params["scenario"]]
        position = len(scenario.exchanges)
        if position >= len(scenario.answers):
            scenario.unexpected += 1
            return PlainTextResponse("no answer is left", status_code=500)
        exchange = Exchange(await request.json(), scenario.answers[position])
        scenario.exchanges.append(exchange)
        return _Replay(exchange, keep_alive=scenario.keep_alive)


class ConnectionCutError(Exception):
    """Makes uvicorn break the connection off."""


@dataclass(frozen=True)
class _Replay:
    """The ASGI response: sends the events and watches for the client's leaving meanwhile."""

    exchange: Exchange
    keep_alive: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", self.exchange.answer.media_type.encode())]
        if not self.keep_alive:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        sending = asyncio.ensure_future(self._send_events(send))
        watching = asyncio.ensure_future(self._watch(receive, sending))
        try:
            await asyncio.wait([sending])
        finally:
            watching.cancel()
        if not sending.cancelled():
            sending.result()

    async def _send_events(self, send: Send) -> None:
        answer = self.exchange.answer
        for position, event in enumerate(answer.events):
            if position == answer.cut_after:
                raise ConnectionCutError
            if answer.pace is not None:
                await answer.pace.wait_async()
            await asyncio.sleep(0)  # or a broken connection would swallow the rest unseen
            await send({"type": "http.response.body", "body": event, "more_body": True})
            self.exchange.note_sent()
        self.exchange.is_complete = True  # for uvicorn, a client that got all has left, too
        await send({"type": "http.response.body", "body": b""})

    async def _watch(self, receive: Receive, sending: asyncio.Future[None]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self.exchange.is_complete:
            # At once, or uvicorn would let the rest be "sent" to nobody.
            sending.cancel()
            self.exchange.disconnected.set()


# Answers


def recordings() -> list[str]:
    """Return the names of all recorded streams; none where the folder is absent."""
    return sorted(path.name.split(".")[0] for path in STREAMS.glob("*.jsonl"))


def recorded(name: str) -> Answer:
    """Return a recorded stream as its provider would send it, or skip the test."""
    paths = list(STREAMS.glob(f"{name}.*jsonl"))
    if not paths:
        pytest.skip(ABSENT)
    lines = paths[0].read_text(encoding="utf-8").splitlines()
    if name.startswith("anthropic-"):
        if json.loads(lines[-1])["type"] != "message_stop":
            lines.append('{"type":"message_stop"}')
        return _typed(lines)
    if json.loads(lines[0]).get("type") == "response.created":
        return _typed(lines)
    return _untyped(lines)


def chat_completion(
    texts: Sequence[str], *, tool_call: tuple[str, str] | None = None, error: str | None = None
) -> Answer:
    """Return an answer in the format of OpenAI's Chat Completions: one event for each text.

    As from the real provider, one event without text comes before them.

    Args:
        texts: The tokens.
        tool_call: Name and JSON arguments of a tool that the model calls after the texts.
        error: The message of an error event with which the answer ends.
    """
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": text} for text in texts]
    if tool_call is not None:
        name, arguments = tool_call
        call = {"index": 0, "id": "call_1", "type": "function"}
        deltas += [
            {"tool_calls": [{**call, "function": {"name": name, "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]},
        ]
    events = [_completion(delta, None) for delta in deltas]
    if error is not None:
        problem = {"message": error, "type": "server_error", "param": None, "code": None}
        return _untyped([*events, json.dumps({"error": problem})], end=False)
    events.append(_completion({}, "tool_calls" if tool_call else "stop"))
    return _untyped(events)


def _completion(delta: dict[str, Any], finish_reason: str | None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    return json.dumps({**chunk, "choices": [choice]})


def responses(texts: Sequence[str]) -> Answer:
    """Return an answer in the format of OpenAI's Responses: one delta for each text."""
    about = {"id": "resp_1", "object": "response", "created_at": 0, "model": "m", "output": []}
    about |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant"}
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    text = {"type": "output_text", "text": "".join(texts), "annotations": []}
    done = {**item, "status": "completed", "content": [text]}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**about, "status": "in_progress"}},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**item, "status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **where, "part": {**text, "text": ""}},
        *(
            {"type": "response.output_text.delta", **where, "delta": delta, "logprobs": []}
            for delta in texts
        ),
        {"type": "response.output_item.done", "output_index": 0, "item": done},
        {
            "type": "response.completed",
            "response": {**about, "status": "completed", "output": [done]},
        },
    ]
    return _typed([json.dumps({**event, "sequence_number": n}) for n, event in enumerate(events)])


def anthropic_message(texts: Sequence[str]) -> Answer:
    """Return an answer in the format of Anthropic's Messages: one delta for each text."""
    usage = {"input_tokens": 1, "output_tokens": 1}
    message: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m"}
    message |= {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    block = {"type": "text", "text": ""}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        *(
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": text},
            }
            for text in texts
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": usage,
        },
        {"type": "message_stop"},
    ]
    return _typed([json.dumps(event) for event in events])


def _typed(lines: Sequence[str]) -> Answer:
    return Answer(
        [f"event: {json.loads(line)['type']}\ndata: {line}\n\n".encode() for line in lines]
    )


def _untyped(lines: Sequence[str], *, end: bool = True) -> Answer:
    events = [f"data: {line}\n\n".encode() for line in lines]
    return Answer([*events, b"data: [DONE]\n\n"] if end else events)
