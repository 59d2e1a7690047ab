"""The events of AG-UI."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from queuestream.web.formats.blocks import Blocks, typed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_core.messages.ai import UsageMetadata

    from queuestream.web.formats.base import Frame

__all__ = ["AGUIFormat"]

_AGUI_NAMES = {
    "text": "TEXT_MESSAGE",
    "reasoning": "REASONING_MESSAGE",
    "tool_call": "TOOL_CALL",
}


class AGUIFormat(Blocks):
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
        return [typed("RUN_STARTED", **self._ids)]

    def error(self, message: str) -> list[Frame]:
        """``RUN_ERROR``, which is the end of the run as well."""
        self._has_failed = True
        return [*self._close(), typed("RUN_ERROR", message=message)]

    def end(self, usage: UsageMetadata | None = None) -> list[Frame]:
        """The usage and ``RUN_FINISHED``; nothing after an error."""
        if self._has_failed:
            return []
        frames = self._close()
        if usage := usage or self._usage.total:
            frames.append(typed("CUSTOM", name="usage", value=usage))
        return [*frames, typed("RUN_FINISHED", **self._ids)]

    def _opening(self, kind: str, block_id: str) -> list[Frame]:
        start = f"{_AGUI_NAMES[kind]}_START"
        if kind == "tool_call":
            return [typed(start, toolCallId=block_id, toolCallName=self._call_name)]
        if kind == "text":
            return [typed(start, messageId=block_id, role="assistant")]
        return [
            typed("REASONING_START", messageId=block_id),
            typed(start, messageId=block_id, role="reasoning"),
        ]

    def _closing(self, kind: str, block_id: str) -> list[Frame]:
        end = f"{_AGUI_NAMES[kind]}_END"
        if kind == "tool_call":
            return [typed(end, toolCallId=block_id)]
        frames = [typed(end, messageId=block_id)]
        return frames if kind == "text" else [*frames, typed("REASONING_END", messageId=block_id)]

    def _delta(self, kind: str, block_id: str, text: str) -> Frame:
        if kind == "tool_call":
            return typed("TOOL_CALL_ARGS", toolCallId=block_id, delta=text)
        return typed(f"{_AGUI_NAMES[kind]}_CONTENT", messageId=block_id, delta=text)

    def _restart(self, attempt: int) -> Frame:
        return typed("CUSTOM", name="restart", value={"attempt": attempt})
