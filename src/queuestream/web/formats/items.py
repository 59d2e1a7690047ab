"""Taking apart what a stream yields, once for all formats.

Text, reasoning, tool calls, usage, and why the model stopped.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import add_usage

from queuestream._messages import finish_reason_in, parts_of
from queuestream.events import TokenEvent

if TYPE_CHECKING:
    from langchain_core.messages.ai import UsageMetadata

__all__ = ["Call", "Calls", "FinishReason", "Piece", "Reason", "Usage", "pieces_of"]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Piece(NamedTuple):
    """One thing that an item says; of the kind ``nothing`` if that is none to show."""

    kind: str
    text: str
    chunk: AIMessageChunk | None
    run: object
    attempt: int


def pieces_of(item: object) -> list[Piece]:
    """Take an item apart.

    Raises:
        TypeError: If it is no ``str``, ``AIMessageChunk`` or event.
    """
    if isinstance(item, str):
        return [Piece("text", item, None, None, 1)]
    if isinstance(item, AIMessageChunk):
        # The last chunk may be without parts, and tell why the model stopped.
        return [Piece(part.kind, part.text, part.chunk, item.id, 1) for part in parts_of(item)] or [
            Piece("nothing", "", item, item.id, 1)
        ]
    if isinstance(item, TokenEvent) or hasattr(item, "kind"):
        event = cast("TokenEvent", item)
        return [Piece(event.kind, event.text, event.chunk, event.run_id, event.attempt)]
    raise TypeError(
        "an item must be a str, an AIMessageChunk or a TokenEvent, as stream() yields them; "
        f"not {type(item).__name__}"
    )


class Call(NamedTuple):
    """A piece of a tool call, and whether it is the call's first."""

    number: int
    id: str
    name: str
    arguments: str
    is_new: bool


class Calls:
    """Numbers the tool calls of an answer: each model run of it counts from 0."""

    __slots__ = ("_ids", "_known")

    def __init__(self) -> None:
        self._known: dict[tuple[object, object], int] = {}
        self._ids: list[tuple[str, str]] = []

    def call(self, piece: Piece) -> Call:
        """The call that a piece is of."""
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
        return Call(index, call_id, name, piece.text, is_new)


class Usage:
    """The usage that the items told."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total: UsageMetadata | None = None

    def add(self, piece: Piece) -> None:
        """Add what a piece tells."""
        found = piece.chunk.usage_metadata if piece.chunk is not None else None
        if found:
            self.total = add_usage(self.total, found)


_MEANINGS: dict[str, FinishReason] = {
    **dict.fromkeys(
        ("length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"), "length"
    ),
    **dict.fromkeys(
        (
            "content_filter",
            "content_filtered",
            "refusal",
            "safety",
            "recitation",
            "blocklist",
            "prohibited_content",
            "spii",
            "guardrail_intervened",
        ),
        "content_filter",
    ),
}
"""What providers say, in lower case, where a model did not stop of its own accord."""


class Reason:
    """Why an answer ended: what its last model run has said, or what came of that run."""

    __slots__ = ("_has_calls", "_run", "_said")

    def __init__(self) -> None:
        self._run: object = None
        self._has_calls = False
        self._said: str | None = None

    def note(self, piece: Piece) -> None:
        """Take note of a piece."""
        if piece.run != self._run:
            self._run, self._has_calls, self._said = piece.run, False, None
        if piece.kind == "tool_call":
            self._has_calls = True
        if piece.chunk is not None:
            self._said = finish_reason_in(piece.chunk.response_metadata) or self._said

    def final(self, told: str | None) -> FinishReason:
        """The reason in OpenAI's words.

        Args:
            told: What the stream knows, in the provider's word; None if that is nothing.
        """
        reason = _MEANINGS.get((told or self._said or "").lower())
        return reason or ("tool_calls" if self._has_calls else "stop")
