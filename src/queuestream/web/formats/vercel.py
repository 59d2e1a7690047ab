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

    from queuestream.web.formats.blocks import Block

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
        return [*self._close_all(but="tool_call"), typed("error", errorText=message)]

    def end(
        self, usage: UsageMetadata | None = None, finish_reason: str | None = None
    ) -> list[Frame]:
        """The end of the step and of the message, and ``[DONE]``; after an error only that."""
        if self._has_failed:
            return [Frame("[DONE]")]
        usage = usage or self._usage.total
        reason = self._reason.final(finish_reason).replace("_", "-")
        more = {"messageMetadata": {"usage": usage}} if usage else {}
        return [
            *self._close_all(),
            typed("finish-step"),
            typed("finish", finishReason=reason, **more),
            Frame("[DONE]"),
        ]

    def _opening(self, block: Block) -> list[Frame]:
        if block.kind == "tool_call":
            return [typed("tool-input-start", toolCallId=block.id, toolName=block.name)]
        return [typed(f"{block.kind}-start", id=block.id)]

    def _closing(self, block: Block) -> list[Frame]:
        if block.kind != "tool_call":
            return [typed(f"{block.kind}-end", id=block.id)]
        call = {"toolCallId": block.id, "toolName": block.name}
        try:
            arguments = json.loads(block.arguments or "{}")
        except ValueError:
            said = "The arguments are no valid JSON."
            return [typed("tool-input-error", **call, input=block.arguments, errorText=said)]
        return [typed("tool-input-available", **call, input=arguments)]

    def _delta(self, block: Block, text: str) -> Frame:
        if block.kind == "tool_call":
            return typed("tool-input-delta", toolCallId=block.id, inputTextDelta=text)
        return typed(f"{block.kind}-delta", id=block.id, delta=text)

    def _restart(self, attempt: int) -> Frame:
        return typed("data-restart", data={"attempt": attempt}, transient=True)
