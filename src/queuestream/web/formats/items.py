"""Taking apart what a stream yields, once for all formats: text, reasoning, tool calls, usage."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import add_usage

from queuestream._messages import parts_of
from queuestream.events import TokenEvent

if TYPE_CHECKING:
    from langchain_core.messages.ai import UsageMetadata

__all__ = ["Call", "Calls", "FinishReason", "Piece", "Usage", "finish_reason", "pieces_of"]

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Piece(NamedTuple):
    """One thing that an item says."""

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
        return [Piece(part.kind, part.text, part.chunk, item.id, 1) for part in parts_of(item)]
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


_LENGTH = {"length", "max_tokens", "MAX_TOKENS", "max_output_tokens"}
_FILTER = {"content_filter", "refusal", "SAFETY"}


def finish_reason(chunk: AIMessageChunk | None) -> FinishReason | None:
    """Why a model stopped, if the chunk says so and it was not of its own accord."""
    said = chunk.response_metadata if chunk is not None else {}
    reason = said.get("finish_reason") or said.get("stop_reason")
    if reason in _LENGTH:
        return "length"
    return "content_filter" if reason in _FILTER else None
