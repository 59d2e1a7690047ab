"""What a bare ``EventSource`` reads, and, event by event, what a WebSocket carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from queuestream.web.formats.base import Frame, to_json
from queuestream.web.formats.items import Calls, Reason, pieces_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_core.messages.ai import UsageMetadata

__all__ = ["TextFormat"]


class TextFormat:
    """A JSON string for each piece of text; other things are events of their own types.

    ``reasoning`` (a string), ``tool_call``, ``usage``, ``restart``, ``error`` (an object with
    a ``message``) and ``end``, at which a client closes: an ``EventSource`` connects again
    otherwise.
    """

    headers: Mapping[str, str] = {}

    def __init__(self) -> None:
        self._calls = Calls()
        self._reason = Reason()

    def start(self) -> list[Frame]:
        """Nothing."""
        return []

    def item(self, item: object) -> list[Frame]:
        """An event for each thing that the item says."""
        frames: list[Frame] = []
        for piece in pieces_of(item):
            self._reason.note(piece)
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
                self._reason = Reason()
            elif piece.kind != "reasoning":
                continue
            frames.append(Frame(to_json(value), piece.kind))
        return frames

    def error(self, message: str) -> list[Frame]:
        """An event ``error`` that has data, unlike the browser's own."""
        return [Frame(to_json({"message": message}), "error")]

    def end(
        self, usage: UsageMetadata | None = None, finish_reason: str | None = None
    ) -> list[Frame]:
        """The event ``end``, with the reason for it, and the usage if it is known."""
        told: dict[str, object] = {"finish_reason": self._reason.final(finish_reason)}
        if usage:
            told["usage"] = usage
        return [Frame(to_json(told), "end")]
