"""The events of AG-UI."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from queuestream.web.formats.blocks import Blocks, typed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_core.messages.ai import UsageMetadata

    from queuestream.web.formats.base import Frame
    from queuestream.web.formats.blocks import Block

__all__ = ["AGUIFormat"]

_AGUI_NAMES = {
    "text": "TEXT_MESSAGE",
    "reasoning": "REASONING_MESSAGE",
    "tool_call": "TOOL_CALL",
}


class AGUIFormat(Blocks):
    """The events of the AG-UI protocol.

    Usage, restarts and the reason for the end are ``CUSTOM`` events: ``usage``, ``restart``,
    ``finish_reason``.

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
        return [typed("RUN_STARTED", **self._ids)]

    def error(self, message: str) -> list[Frame]:
        """``RUN_ERROR``, which is the end of the run as well."""
        self._has_failed = True
        return [*self._close_all(), typed("RUN_ERROR", message=message)]

    def end(
        self, usage: UsageMetadata | None = None, finish_reason: str | None = None
    ) -> list[Frame]:
        """The usage, why the model stopped, and ``RUN_FINISHED``; nothing after an error."""
        if self._has_failed:
            return []
        frames = self._close_all()
        if usage := usage or self._usage.total:
            frames.append(typed("CUSTOM", name="usage", value=usage))
        reason = self._reason.final(finish_reason)
        frames.append(typed("CUSTOM", name="finish_reason", value=reason))
        return [*frames, typed("RUN_FINISHED", **self._ids)]

    def _opening(self, block: Block) -> list[Frame]:
        start = f"{_AGUI_NAMES[block.kind]}_START"
        if block.kind == "tool_call":
            return [typed(start, toolCallId=block.id, toolCallName=block.name)]
        if block.kind == "text":
            return [typed(start, messageId=block.id, role="assistant")]
        return [
            typed("REASONING_START", messageId=block.id),
            typed(start, messageId=block.id, role="reasoning"),
        ]

    def _closing(self, block: Block) -> list[Frame]:
        end = f"{_AGUI_NAMES[block.kind]}_END"
        if block.kind == "tool_call":
            return [typed(end, toolCallId=block.id)]
        frames = [typed(end, messageId=block.id)]
        if block.kind == "reasoning":
            frames.append(typed("REASONING_END", messageId=block.id))
        return frames

    def _delta(self, block: Block, text: str) -> Frame:
        if block.kind == "tool_call":
            return typed("TOOL_CALL_ARGS", toolCallId=block.id, delta=text)
        return typed(f"{_AGUI_NAMES[block.kind]}_CONTENT", messageId=block.id, delta=text)

    def _restart(self, attempt: int) -> Frame:
        return typed("CUSTOM", name="restart", value={"attempt": attempt})
