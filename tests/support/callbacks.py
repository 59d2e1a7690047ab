"""A tracing callback, as users give one in `config`: it sees runs start and end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import BaseCallbackHandler

if TYPE_CHECKING:
    from uuid import UUID

__all__ = ["RunLog"]


class RunLog(BaseCallbackHandler):
    """Notes which runs have started and which have ended, with what error.

    It does its work in place (`run_inline`), so that its order is the order of the run.
    """

    run_inline = True

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.started: dict[UUID, UUID | None] = {}
        """Each run that started, with its parent."""
        self.ended: dict[UUID, str | None] = {}
        """Each run that ended, with its error's `repr`: the error itself would hold the run."""
        self.tokens = 0

    @property
    def outermost(self) -> list[UUID]:
        """The runs without a parent, in the order of their start."""
        return [run_id for run_id, parent in self.started.items() if parent is None]

    def wait_until_outermost_ended(self, within: float = 5.0) -> None:
        """Block the thread until every outermost run, at least one, has ended."""
        with self._changed:
            ended = self._changed.wait_for(
                lambda: self.outermost and all(run_id in self.ended for run_id in self.outermost),
                within,
            )
            assert ended, f"of {len(self.outermost)} outermost runs not all ended in {within} s"

    def _note_start(
        self, *_: Any, run_id: UUID, parent_run_id: UUID | None = None, **__: Any
    ) -> None:
        with self._changed:
            self.started[run_id] = parent_run_id
            self._changed.notify_all()

    def _note_end(self, *_: Any, run_id: UUID, **__: Any) -> None:
        with self._changed:
            self.ended[run_id] = None
            self._changed.notify_all()

    def _note_error(self, error: BaseException, *_: Any, run_id: UUID, **__: Any) -> None:
        with self._changed:
            self.ended[run_id] = repr(error)
            self._changed.notify_all()

    def on_llm_new_token(self, *_: Any, **__: Any) -> None:
        """Count a token."""
        with self._changed:
            self.tokens += 1

    on_chain_start = on_chat_model_start = on_llm_start = _note_start
    on_tool_start = on_retriever_start = _note_start
    on_chain_end = on_llm_end = on_tool_end = on_retriever_end = _note_end
    on_chain_error = on_llm_error = on_tool_error = on_retriever_error = _note_error
