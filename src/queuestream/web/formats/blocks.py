"""What the AI SDK's format and AG-UI have in common: blocks that are opened and closed."""

from __future__ import annotations

import uuid

from queuestream.web.formats.base import Frame, to_json
from queuestream.web.formats.items import Calls, Usage, pieces_of

__all__ = ["Blocks", "typed"]


def typed(kind: str, **more: object) -> Frame:
    """An event that is told apart by the member ``type`` of its data."""
    return Frame(to_json({"type": kind, **more}))


class Blocks:
    """Text, reasoning and tool calls as blocks: at most one is open."""

    def __init__(self) -> None:
        self._open: tuple[str, str] | None = None  # kind and id
        self._call_name = ""
        self._arguments: list[str] = []
        self._calls = Calls()
        self._usage = Usage()

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
        for piece in pieces_of(item):
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
