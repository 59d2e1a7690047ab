"""What the AI SDK's format and AG-UI have in common: blocks that are opened and closed."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from queuestream.web.formats.base import Frame, to_json
from queuestream.web.formats.items import Calls, Reason, Usage, pieces_of

if TYPE_CHECKING:
    from queuestream.web.formats.items import Call

__all__ = ["Block", "Blocks", "typed"]


def typed(kind: str, **more: object) -> Frame:
    """An event that is told apart by the member ``type`` of its data."""
    return Frame(to_json({"type": kind, **more}))


@dataclass(slots=True)
class Block:
    """What is open: some text, some reasoning, or a tool call with its arguments so far."""

    kind: str
    id: str
    name: str = ""
    arguments: str = ""

    def is_whole(self) -> bool:
        """Whether the arguments are all there."""
        try:
            json.loads(self.arguments)
        except ValueError:
            return False
        return True


class Blocks:
    """Text, reasoning and tool calls as blocks, which are opened and closed.

    A model run has at most one open.  Models that run one after the other take turns: the
    next one's block closes that of the one before, unless that is in the middle of a call.
    Once a run comes back after another's turn, runs are taken to be parallel, and each keeps
    its block.
    """

    def __init__(self) -> None:
        self._open: dict[object, Block] = {}  # by the run
        self._left: set[object] = set()  # runs whose turn another has ended
        self._is_parallel = False
        self._calls = Calls()
        self._usage = Usage()
        self._reason = Reason()

    def _switch(self, run: object, kind: str, call: Call | None) -> list[Frame]:
        """Close what is over and open another block, unless this one is open."""
        block = self._open.get(run)
        if block is not None and block.kind == kind and (call is None or call.id == block.id):
            return []
        frames: list[Frame] = []
        if run in self._left:
            self._is_parallel = True
        for other, open_one in list(self._open.items()):
            if other == run:
                frames += self._close(run)
            elif open_one.is_whole() if open_one.kind == "tool_call" else not self._is_parallel:
                frames += self._close(other)
                self._left.add(other)
        call_id, name = (uuid.uuid4().hex, "") if call is None else (call.id, call.name)
        block = self._open[run] = Block(kind, call_id, name)
        return frames + self._opening(block)

    def _close(self, run: object) -> list[Frame]:
        return self._closing(self._open.pop(run))

    def _close_all(self, but: str | None = None) -> list[Frame]:
        """Close all blocks; let go, without a word, of those of one kind."""
        frames: list[Frame] = []
        for block in self._open.values():
            if block.kind != but:
                frames += self._closing(block)
        self._open.clear()
        return frames

    def item(self, item: object) -> list[Frame]:
        """The events for each thing that the item says."""
        frames: list[Frame] = []
        for piece in pieces_of(item):
            self._reason.note(piece)
            if piece.kind == "usage":
                self._usage.add(piece)
            elif piece.kind == "restart":
                self._reason = Reason()
                frames += [*self._close_all(), self._restart(piece.attempt)]
            elif piece.kind in ("text", "reasoning", "tool_call"):
                call = self._calls.call(piece) if piece.kind == "tool_call" else None
                frames += self._switch(piece.run, piece.kind, call)
                if piece.text:
                    block = self._open[piece.run]
                    if call is not None:
                        block.arguments += piece.text
                    frames.append(self._delta(block, piece.text))
        return frames

    def _opening(self, block: Block) -> list[Frame]:
        raise NotImplementedError

    def _closing(self, block: Block) -> list[Frame]:
        raise NotImplementedError

    def _delta(self, block: Block, text: str) -> Frame:
        raise NotImplementedError

    def _restart(self, attempt: int) -> Frame:
        raise NotImplementedError
