"""What goes over the wire: from what a stream yields to the events that a client understands.

A format is a small state machine, made anew for each answer.  It does no input or output and
needs no extra: `start`, `item`, `end` and `error` return lists of `Frame`, each one
server-sent event.  `start` comes first, `end` last, also after `error`::

    wire = OpenAIFormat(model="demo")
    frames = wire.start()
    async for item in tokens:  # str, AIMessageChunk or TokenEvent, as the stream selects
        frames += wire.item(item)
    frames += wire.end(tokens.usage)
    body = "".join(frame.encode() for frame in frames)

An answer that is not streamed is gathered with `Answer` instead, from the same items;
`Answer.completion` makes the ``chat.completion`` object.  `status_of` and `safe_message` say
what a client may know of a failure.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import add_usage

from queuestream._messages import parts_of
from queuestream.errors import RunCancelledError, StreamClosedError
from queuestream.events import TokenEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_core.messages.ai import UsageMetadata

__all__ = [
    "FORMATS",
    "AGUIFormat",
    "Answer",
    "Format",
    "Frame",
    "OpenAIFormat",
    "TextFormat",
    "VercelFormat",
    "make_format",
    "openai_error",
    "openai_usage",
    "safe_message",
    "status_of",
    "to_json",
]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


def to_json(value: object) -> str:
    """Compact JSON on one line, in ASCII; what JSON does not know becomes a string."""
    return json.dumps(value, separators=(",", ":"), default=str)


@dataclass(frozen=True, slots=True)
class Frame:
    """One server-sent event.

    Attributes:
        data: One line: JSON, or ``[DONE]``.
        event: Its type; a browser calls an event without one ``message``.
    """

    data: str
    event: str | None = None

    def encode(self, event_id: str | None = None) -> str:
        """The event as it is sent, with its id."""
        lines = [] if event_id is None else [f"id: {event_id}"]
        if self.event is not None:
            lines.append(f"event: {self.event}")
        return "\n".join((*lines, f"data: {self.data}", "", ""))


class Format(Protocol):
    """What one client understands.

    Attributes:
        headers: Headers that its clients ask for.
    """

    headers: Mapping[str, str]

    def start(self) -> list[Frame]:
        """What comes before everything."""
        ...

    def item(self, item: object) -> list[Frame]:
        """What an item of the stream becomes.

        Raises:
            TypeError: If the item is no ``str``, ``AIMessageChunk`` or event.
        """
        ...

    def error(self, message: str) -> list[Frame]:
        """What tells that the run failed; `end` still follows."""
        ...

    def end(self, usage: UsageMetadata | None = None) -> list[Frame]:
        """What comes after everything.

        Args:
            usage: The whole run's, if it is known; else that of the usage events.
        """
        ...


# -- taking items apart ----------------------------------------------------------------------


class _Piece(NamedTuple):
    """One thing that an item says."""

    kind: str
    text: str
    chunk: AIMessageChunk | None
    run: object
    attempt: int


def _pieces(item: object) -> list[_Piece]:
    if isinstance(item, str):
        return [_Piece("text", item, None, None, 1)]
    if isinstance(item, AIMessageChunk):
        return [_Piece(part.kind, part.text, part.chunk, item.id, 1) for part in parts_of(item)]
    if isinstance(item, TokenEvent) or hasattr(item, "kind"):
        event = cast("TokenEvent", item)
        return [_Piece(event.kind, event.text, event.chunk, event.run_id, event.attempt)]
    raise TypeError(
        "an item must be a str, an AIMessageChunk or a TokenEvent, as stream() yields them; "
        f"not {type(item).__name__}"
    )


class _Call(NamedTuple):
    """A piece of a tool call, and whether it is the call's first."""

    number: int
    id: str
    name: str
    arguments: str
    is_new: bool


class _Calls:
    """Numbers the tool calls of an answer: each model run of it counts from 0."""

    __slots__ = ("_ids", "_known")

    def __init__(self) -> None:
        self._known: dict[tuple[object, object], int] = {}
        self._ids: list[tuple[str, str]] = []

    def call(self, piece: _Piece) -> _Call:
        chunks = piece.chunk.tool_call_chunks if piece.chunk is not None else []
        first: Any = chunks[0] if chunks else {}
        place = first.get("index")
        if place is None:
            place = first.get("id")
        key = piece.run, place
        index = self._known.get(key) if place is not None else None
        new_id = first.get("id")
        # Some providers number nothing and let each whole call be 0.
        if index is not None and new_id and self._ids[index][0] != new_id and first.get("name"):
            index = None
        is_new = index is None
        if index is None:
            index = self._known[key] = len(self._ids)
            self._ids.append((new_id or f"call_{uuid.uuid4().hex}", first.get("name") or ""))
        call_id, name = self._ids[index]
        return _Call(index, call_id, name, piece.text, is_new)


class _Usage:
    """The usage that the items told."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total: UsageMetadata | None = None

    def add(self, piece: _Piece) -> None:
        found = piece.chunk.usage_metadata if piece.chunk is not None else None
        if found:
            self.total = add_usage(self.total, found)


_LENGTH = {"length", "max_tokens", "MAX_TOKENS", "max_output_tokens"}
_FILTER = {"content_filter", "refusal", "SAFETY"}


def _finish_reason(chunk: AIMessageChunk | None) -> FinishReason | None:
    said = chunk.response_metadata if chunk is not None else {}
    reason = said.get("finish_reason") or said.get("stop_reason")
    if reason in _LENGTH:
        return "length"
    return "content_filter" if reason in _FILTER else None


# -- what a client may know of a failure -----------------------------------------------------


def status_of(error: BaseException) -> int:
    """The HTTP status of a failure before the first token.

    504 for a timeout, 429 if the provider answered 429, 502 if it answered another error,
    503 if the run was cancelled or closed, 500 for anything else.
    """
    status = getattr(error, "status_code", None)
    if isinstance(error, TimeoutError) or type(error).__name__.endswith("TimeoutError"):
        return 504
    if isinstance(error, (RunCancelledError, StreamClosedError)):
        return 503
    if isinstance(status, int):
        return 429 if status == 429 else 502  # noqa: PLR2004 - HTTP's numbers
    return 500


_MESSAGES = {
    429: "The model takes no more requests at the moment. Try again later.",
    500: "The run failed.",
    502: "The model's provider answered with an error.",
    503: "The run was stopped before it ended.",
    504: "The model did not answer in time.",
}


def safe_message(error: BaseException) -> str:
    """What a client may read of a failure: one of a few sentences, nothing of the error's own."""
    return _MESSAGES[status_of(error)]


def openai_error(message: str, status: int = 500, code: str | None = None) -> dict[str, Any]:
    """An error as an OpenAI server's body tells it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004
    return {
        "error": {
            "message": message,
            "type": "rate_limit_error" if status == 429 else kind,  # noqa: PLR2004
            "param": None,
            "code": code,
        }
    }


# -- OpenAI ----------------------------------------------------------------------------------


def openai_usage(usage: UsageMetadata) -> dict[str, Any]:
    """Token usage, named as OpenAI names it."""
    told: dict[str, Any] = {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
    }
    if "cache_read" in (details := usage.get("input_token_details") or {}):
        told["prompt_tokens_details"] = {"cached_tokens": details["cache_read"]}
    if "reasoning" in (made := usage.get("output_token_details") or {}):
        told["completion_tokens_details"] = {"reasoning_tokens": made["reasoning"]}
    return told


def _completion_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


class OpenAIFormat:
    """``chat.completion.chunk`` objects, then ``[DONE]``.

    Reasoning comes as ``delta.reasoning_content``.  A restart is a chunk with an empty delta
    and a member ``restart``, the number of the attempt that begins: OpenAI has no word for it.

    Args:
        model: What the chunks call the model.
        include_usage: Whether a chunk without choices tells the usage before the end.
        id: The answer's id; made up if None.
    """

    headers: Mapping[str, str] = {}

    def __init__(
        self, model: str = "queuestream", *, include_usage: bool = True, id: str | None = None
    ) -> None:
        self._head: dict[str, Any] = {
            "id": id or _completion_id(),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        self._include_usage = include_usage
        self._calls = _Calls()
        self._usage = _Usage()
        self._reason: FinishReason = "stop"
        self._has_failed = False

    def _chunk(
        self, delta: dict[str, Any], reason: FinishReason | None = None, **more: object
    ) -> Frame:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return Frame(to_json({**self._head, "choices": [choice], **more}))

    def start(self) -> list[Frame]:
        """The chunk that names the role."""
        return [self._chunk({"role": "assistant", "content": ""})]

    def item(self, item: object) -> list[Frame]:
        """A chunk for each thing that the item says; usage waits for the end."""
        frames: list[Frame] = []
        for piece in _pieces(item):
            self._reason = _finish_reason(piece.chunk) or self._reason
            if piece.kind == "text":
                frames.append(self._chunk({"content": piece.text}))
            elif piece.kind == "reasoning":
                frames.append(self._chunk({"reasoning_content": piece.text}))
            elif piece.kind == "tool_call":
                frames.append(self._chunk({"tool_calls": [_openai_call(self._calls.call(piece))]}))
                self._reason = "tool_calls"
            elif piece.kind == "restart":
                self._reason = "stop"
                frames.append(self._chunk({}, restart=piece.attempt))
            else:
                self._usage.add(piece)
        return frames

    def error(self, message: str) -> list[Frame]:
        """An error object, which the ``openai`` package raises as ``APIError``."""
        self._has_failed = True
        return [Frame(to_json(openai_error(message)))]

    def end(self, usage: UsageMetadata | None = None) -> list[Frame]:
        """The reason for the end, the usage, and ``[DONE]``; after an error only the last."""
        if self._has_failed:
            return [Frame("[DONE]")]
        frames = [self._chunk({}, self._reason)]
        usage = usage or self._usage.total
        if usage and self._include_usage:
            frames.append(
                Frame(to_json({**self._head, "choices": [], "usage": openai_usage(usage)}))
            )
        return [*frames, Frame("[DONE]")]


def _openai_call(call: _Call) -> dict[str, Any]:
    function: dict[str, str] = {"arguments": call.arguments}
    if not call.is_new:
        return {"index": call.number, "function": function}
    function["name"] = call.name
    return {"index": call.number, "id": call.id, "type": "function", "function": function}


class Answer:
    """A whole answer, gathered from the items of a stream, for a client that does not stream.

    A restart empties it.
    """

    def __init__(self) -> None:
        self._usage = _Usage()
        self._clear()

    def _clear(self) -> None:
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls = _Calls()
        self._made: list[tuple[_Call, list[str]]] = []
        self._reason: FinishReason = "stop"

    def add(self, item: object) -> None:
        """Take one item of the stream.

        Raises:
            TypeError: If the item is no ``str``, ``AIMessageChunk`` or event.
        """
        for piece in _pieces(item):
            self._reason = _finish_reason(piece.chunk) or self._reason
            if piece.kind == "text":
                self._texts.append(piece.text)
            elif piece.kind == "reasoning":
                self._reasoning.append(piece.text)
            elif piece.kind == "tool_call":
                call = self._calls.call(piece)
                if call.is_new:
                    self._made.append((call, []))
                self._made[call.number][1].append(call.arguments)
                self._reason = "tool_calls"
            elif piece.kind == "restart":
                self._clear()
            else:
                self._usage.add(piece)

    def completion(
        self, model: str = "queuestream", usage: UsageMetadata | None = None, id: str | None = None
    ) -> dict[str, Any]:
        """The ``chat.completion`` object.

        Args:
            model: What it calls the model.
            usage: The whole run's, if it is known; else that of the usage events.
            id: The answer's id; made up if None.
        """
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts)}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._made:
            message["content"] = message["content"] or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": "".join(arguments)},
                }
                for call, arguments in self._made
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._reason}
        whole: dict[str, Any] = {
            "id": id or _completion_id(),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [choice],
        }
        if usage := usage or self._usage.total:
            whole["usage"] = openai_usage(usage)
        return whole


# -- a bare EventSource ----------------------------------------------------------------------


class TextFormat:
    """A JSON string for each piece of text; other things are events of their own types.

    ``reasoning`` (a string), ``tool_call``, ``usage``, ``restart``, ``error`` (an object with
    a ``message``) and ``end``, at which a client closes: an ``EventSource`` connects again
    otherwise.
    """

    headers: Mapping[str, str] = {}

    def __init__(self) -> None:
        self._calls = _Calls()

    def start(self) -> list[Frame]:
        """Nothing."""
        return []

    def item(self, item: object) -> list[Frame]:
        """An event for each thing that the item says."""
        frames: list[Frame] = []
        for piece in _pieces(item):
            if piece.kind == "text":
                frames.append(Frame(to_json(piece.text)))
                continue
            value: object = piece.text
            if piece.kind == "tool_call":
                call = self._calls.call(piece)
                value = {
                    "index": call.number,
                    "id": call.id,
                    "name": call.name,
                    "arguments": call.arguments,
                }
            elif piece.kind == "usage":
                value = piece.chunk.usage_metadata if piece.chunk is not None else None
            elif piece.kind == "restart":
                value = {"attempt": piece.attempt}
            frames.append(Frame(to_json(value), piece.kind))
        return frames

    def error(self, message: str) -> list[Frame]:
        """An event ``error`` that has data, unlike the browser's own."""
        return [Frame(to_json({"message": message}), "error")]

    def end(self, usage: UsageMetadata | None = None) -> list[Frame]:
        """The event ``end``, with the usage if it is known."""
        return [Frame(to_json({"usage": usage} if usage else {}), "end")]


# -- the AI SDK and AG-UI --------------------------------------------------------------------


class _Blocks:
    """What both have in common: text, reasoning and tool calls are blocks, opened and closed."""

    def __init__(self) -> None:
        self._open: tuple[str, str] | None = None  # kind and id
        self._call_name = ""
        self._arguments: list[str] = []
        self._calls = _Calls()
        self._usage = _Usage()

    def _switch(self, kind: str, block_id: str | None = None) -> list[Frame]:
        """Close the open block and open another, unless it is this one."""
        if self._open is not None and self._open[0] == kind and block_id in (None, self._open[1]):
            return []
        frames = self._close()
        self._open = kind, block_id or uuid.uuid4().hex
        return frames + self._opening(*self._open)

    def _close(self) -> list[Frame]:
        if self._open is None:
            return []
        frames = self._closing(*self._open)
        self._open = None
        self._arguments = []
        return frames

    def item(self, item: object) -> list[Frame]:
        """The events for each thing that the item says."""
        frames: list[Frame] = []
        for piece in _pieces(item):
            if piece.kind == "usage":
                self._usage.add(piece)
            elif piece.kind == "restart":
                frames += [*self._close(), self._restart(piece.attempt)]
            else:
                block_id = None
                if piece.kind == "tool_call":
                    call = self._calls.call(piece)
                    block_id, self._call_name = call.id, call.name
                frames += self._switch(piece.kind, block_id)
                assert self._open is not None
                if piece.text:
                    self._arguments.append(piece.text if block_id else "")
                    frames.append(self._delta(*self._open, piece.text))
        return frames

    def _opening(self, kind: str, block_id: str) -> list[Frame]:
        raise NotImplementedError

    def _closing(self, kind: str, block_id: str) -> list[Frame]:
        raise NotImplementedError

    def _delta(self, kind: str, block_id: str, text: str) -> Frame:
        raise NotImplementedError

    def _restart(self, attempt: int) -> Frame:
        raise NotImplementedError


def _typed(kind: str, **more: object) -> Frame:
    return Frame(to_json({"type": kind, **more}))


class VercelFormat(_Blocks):
    """The UI message stream of the AI SDK (its version 1, of AI SDK 5 and later).

    A restart is a transient part ``data-restart``; the usage stands in the metadata of the
    message as ``usage``.
    """

    headers: Mapping[str, str] = {"x-vercel-ai-ui-message-stream": "v1"}

    def __init__(self) -> None:
        super().__init__()
        self._has_failed = False

    def start(self) -> list[Frame]:
        """The start of the message and of its one step."""
        return [_typed("start", messageId=f"msg_{uuid.uuid4().hex}"), _typed("start-step")]

    def error(self, message: str) -> list[Frame]:
        """A part ``error``."""
        self._has_failed = True
        # A call that broke off is not closed: its input is not whole.
        frames = [] if self._open and self._open[0] == "tool_call" else self._close()
        self._open = None
        return [*frames, _typed("error", errorText=message)]

    def end(self, usage: UsageMetadata | None = None) -> list[Frame]:
        """The end of the step and of the message, and ``[DONE]``; after an error only that."""
        if self._has_failed:
            return [Frame("[DONE]")]
        usage = usage or self._usage.total
        more = {"messageMetadata": {"usage": usage}} if usage else {}
        return [
            *self._close(),
            _typed("finish-step"),
            _typed("finish", **more),
            Frame("[DONE]"),
        ]

    def _opening(self, kind: str, block_id: str) -> list[Frame]:
        if kind == "tool_call":
            return [_typed("tool-input-start", toolCallId=block_id, toolName=self._call_name)]
        return [_typed(f"{kind}-start", id=block_id)]

    def _closing(self, kind: str, block_id: str) -> list[Frame]:
        if kind != "tool_call":
            return [_typed(f"{kind}-end", id=block_id)]
        text = "".join(self._arguments)
        call = {"toolCallId": block_id, "toolName": self._call_name}
        try:
            return [_typed("tool-input-available", **call, input=json.loads(text or "{}"))]
        except ValueError:
            said = "The arguments are no valid JSON."
            return [_typed("tool-input-error", **call, input=text, errorText=said)]

    def _delta(self, kind: str, block_id: str, text: str) -> Frame:
        if kind == "tool_call":
            return _typed("tool-input-delta", toolCallId=block_id, inputTextDelta=text)
        return _typed(f"{kind}-delta", id=block_id, delta=text)

    def _restart(self, attempt: int) -> Frame:
        return _typed("data-restart", data={"attempt": attempt}, transient=True)


_AGUI_NAMES = {
    "text": "TEXT_MESSAGE",
    "reasoning": "REASONING_MESSAGE",
    "tool_call": "TOOL_CALL",
}


class AGUIFormat(_Blocks):
    """The events of the AG-UI protocol.

    Usage and restarts are ``CUSTOM`` events of these names.

    Args:
        thread_id: The conversation's id, as the client gave it; made up if None.
        run_id: The run's id, as the client gave it; made up if None.
    """

    headers: Mapping[str, str] = {}

    def __init__(self, thread_id: str | None = None, run_id: str | None = None) -> None:
        super().__init__()
        self._ids = {
            "threadId": thread_id or uuid.uuid4().hex,
            "runId": run_id or uuid.uuid4().hex,
        }
        self._has_failed = False

    def start(self) -> list[Frame]:
        """``RUN_STARTED``."""
        return [_typed("RUN_STARTED", **self._ids)]

    def error(self, message: str) -> list[Frame]:
        """``RUN_ERROR``, which is the end of the run as well."""
        self._has_failed = True
        return [*self._close(), _typed("RUN_ERROR", message=message)]

    def end(self, usage: UsageMetadata | None = None) -> list[Frame]:
        """The usage and ``RUN_FINISHED``; nothing after an error."""
        if self._has_failed:
            return []
        frames = self._close()
        if usage := usage or self._usage.total:
            frames.append(_typed("CUSTOM", name="usage", value=usage))
        return [*frames, _typed("RUN_FINISHED", **self._ids)]

    def _opening(self, kind: str, block_id: str) -> list[Frame]:
        start = f"{_AGUI_NAMES[kind]}_START"
        if kind == "tool_call":
            return [_typed(start, toolCallId=block_id, toolCallName=self._call_name)]
        if kind == "text":
            return [_typed(start, messageId=block_id, role="assistant")]
        return [
            _typed("REASONING_START", messageId=block_id),
            _typed(start, messageId=block_id, role="reasoning"),
        ]

    def _closing(self, kind: str, block_id: str) -> list[Frame]:
        end = f"{_AGUI_NAMES[kind]}_END"
        if kind == "tool_call":
            return [_typed(end, toolCallId=block_id)]
        frames = [_typed(end, messageId=block_id)]
        return frames if kind == "text" else [*frames, _typed("REASONING_END", messageId=block_id)]

    def _delta(self, kind: str, block_id: str, text: str) -> Frame:
        if kind == "tool_call":
            return _typed("TOOL_CALL_ARGS", toolCallId=block_id, delta=text)
        return _typed(f"{_AGUI_NAMES[kind]}_CONTENT", messageId=block_id, delta=text)

    def _restart(self, attempt: int) -> Frame:
        return _typed("CUSTOM", name="restart", value={"attempt": attempt})


FORMATS: Mapping[str, type[OpenAIFormat | VercelFormat | AGUIFormat | TextFormat]] = {
    "openai": OpenAIFormat,
    "vercel": VercelFormat,
    "agui": AGUIFormat,
    "text": TextFormat,
}


def make_format(given: str | Format) -> Format:
    """The format of that name, made anew; or the one that is given.

    Raises:
        ValueError: If no format has that name.
        TypeError: If it is neither a name nor a format.
    """
    if isinstance(given, str):
        if given not in FORMATS:
            allowed = ", ".join(map(repr, FORMATS))
            raise ValueError(f"format must be one of {allowed}, or a Format; got {given!r}")
        return cast("Format", FORMATS[given]())
    if not all(callable(getattr(given, name, None)) for name in ("start", "item", "error", "end")):
        raise TypeError(f"format must be a name or a Format, not {given!r}")
    return given
