"""What every format has in common: `Frame`, one server-sent event, and `Format`, the protocol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_core.messages.ai import UsageMetadata

__all__ = ["Format", "Frame", "to_json"]


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

    def end(
        self, usage: UsageMetadata | None = None, finish_reason: str | None = None
    ) -> list[Frame]:
        """What comes after everything.

        Args:
            usage: The whole run's, if it is known; else that of the usage events.
            finish_reason: Why the model stopped, in its provider's word, if it is known; else
                what the items have told.
        """
        ...
