"""The AI SDK's UI message stream."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

from queuestream.web.formats.base import Frame
from queuestream.web.formats.blocks import Blocks, typed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain_core.messages.ai import UsageMetadata

__all__ = ["VercelFormat"]


class VercelFormat(Blocks):
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
        return [typed("start", messageId=f"msg_{uuid.uuid4().hex}"), typed("start-step")]

    def error(self, message: str) -> list[Frame]:
        """A part ``error``."""
        self._has_failed = True
        # A call that broke off is not closed: its input is not whole.
        frames = [] if self._open and self._open[0] == "tool_call" else self._close()
        self._open = None
        return [*frames, typed("error", errorText=message)]

    def end(self, usage: UsageMetadata | None = None) -> list[Frame]:
        """The end of the step and of the message, and ``[DONE]``; after an error only that."""
        if self._has_failed:
            return [Frame("[DONE]")]
        usage = usage or self._usage.total
        more = {"messageMetadata": {"usage": usage}} if usage else {}
        return [
            *self._close(),
            typed("finish-step"),
            typed("finish", **more),
            Frame("[DONE]"),
        ]

    def _opening(self, kind: str, block_id: str) -> list[Frame]:
        if kind == "tool_call":
            return [typed("tool-input-start", toolCallId=block_id, toolName=self._call_name)]
        return [typed(f"{kind}-start", id=block_id)]

    def _closing(self, kind: str, block_id: str) -> list[Frame]:
        if kind != "tool_call":
            return [typed(f"{kind}-end", id=block_id)]
        text = "".join(self._arguments)
        call = {"toolCallId": block_id, "toolName": self._call_name}
        try:
            return [typed("tool-input-available", **call, input=json.loads(text or "{}"))]
        except ValueError:
            said = "The arguments are no valid JSON."
            return [typed("tool-input-error", **call, input=text, errorText=said)]

    def _delta(self, kind: str, block_id: str, text: str) -> Frame:
        if kind == "tool_call":
            return typed("tool-input-delta", toolCallId=block_id, inputTextDelta=text)
        return typed(f"{kind}-delta", id=block_id, delta=text)

    def _restart(self, attempt: int) -> Frame:
        return typed("data-restart", data={"attempt": attempt}, transient=True)
