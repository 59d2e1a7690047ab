"""`Listener`: what all handlers do with LangChain's calls, whatever they make of the tokens.

Two things about LangChain decide how it is made (``tests/facts`` pins each):

- A model streams inside ``invoke`` only if a handler has ``tap_output_iter`` and
  ``tap_output_aiter``, whatever they do.
- Where synchronous code holds up a loop (see ``_dual``), the consumer may be on that loop.
  So such a run, and what it starts in other threads and waits for, must not wait for it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables.config import var_child_runnable_config

from queuestream._turns import running_asyncio_loop
from queuestream._waits import Wait, party_of, waiting_here
from queuestream.events import About
from queuestream.handlers._dual import (
    dual,
    dual_overrides,
    heard_by,
    held_up,
    note_held_up,
)
from queuestream.handlers._hand_over import Outcome, run_in_background, run_on_loop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from uuid import UUID

__all__ = ["Listener", "run_in_context"]

_EVENTS = (
    "on_chat_model_start",
    "on_llm_start",
    "on_chain_start",
    "on_tool_start",
    "on_retriever_start",
    "on_llm_new_token",
    "on_llm_end",
    "on_chain_end",
    "on_tool_end",
    "on_retriever_end",
    "on_llm_error",
    "on_chain_error",
    "on_tool_error",
    "on_retriever_error",
)
"""The methods that users override."""


def _start_of(kind: str) -> Any:
    """A method for LangChain to call at the start of each run of a kind."""

    def on_start(
        self: Listener,
        serialized: Any = None,
        *_args: Any,
        run_id: UUID | None = None,
        parent_run_id: UUID | None = None,
        **details: Any,
    ) -> None:
        """LangChain calls this at the start of a run."""
        note_held_up(self, None, run_id, parent_run_id)
        self._start(kind, About(run_id, parent_run_id, serialized, details))

    async def on_start_in_task(
        self: Listener,
        loop: asyncio.AbstractEventLoop,
        serialized: Any = None,
        *_args: Any,
        run_id: UUID | None = None,
        parent_run_id: UUID | None = None,
        **details: Any,
    ) -> None:
        note_held_up(self, loop, run_id, parent_run_id)
        await self._start_in_task(kind, About(run_id, parent_run_id, serialized, details), loop)

    return dual(on_start, on_start_in_task)


def run_in_context() -> UUID | None:
    """The run that calls, by LangChain's context variable.

    Fallbacks report their own parent as that of the models they call: none, if outermost.
    """
    callbacks = (var_child_runnable_config.get() or {}).get("callbacks")
    return getattr(callbacks, "parent_run_id", None)


class Listener(BaseCallbackHandler):
    """Hears runs start and end."""

    run_inline = True
    has_overrides = has_async_overrides = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have a user's methods called on both kinds of runs."""
        super().__init_subclass__(**kwargs)
        dual_overrides(cls, _EVENTS)

    def _set_up(self, *, raise_error: bool, may_wait: bool) -> None:
        self.raise_error: bool = raise_error
        # Whether dual methods are coroutine functions on a loop.
        self.may_wait: bool = may_wait or self.has_async_overrides
        self._home = running_asyncio_loop()
        self._pid = os.getpid()
        self.has_held_up: bool = False  # whether it has heard a run that must not wait, see `_dual`

    def tap_output_iter(self, run_id: UUID, output: Iterator[Any]) -> Iterator[Any]:
        """Return ``output``.  Its being here makes models stream."""
        return output

    def tap_output_aiter(self, run_id: UUID, output: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Return ``output``.  Its being here makes models stream."""
        return output

    # -- from LangChain's calls to runs ----------------------------------------------------

    on_chat_model_start: Any = _start_of("llm")
    on_llm_start: Any = _start_of("llm")
    on_chain_start: Any = _start_of("chain")
    on_tool_start: Any = _start_of("tool")
    on_retriever_start: Any = _start_of("retriever")

    def _ended(self, *_args: Any, run_id: UUID, **_details: Any) -> None:
        """LangChain calls this at the end of each run."""
        self._run_ended(run_id, None)

    async def _ended_in_task(
        self, _loop: object, *_args: Any, run_id: UUID, **_details: Any
    ) -> None:
        self._run_ended(run_id, None)

    on_chain_end: Any = dual(_ended, _ended_in_task, in_place=True)
    on_tool_end: Any = dual(_ended, _ended_in_task, in_place=True)
    on_retriever_end: Any = dual(_ended, _ended_in_task, in_place=True)

    def _failed(self, error: BaseException, *, run_id: UUID | None = None, **_details: Any) -> None:
        """LangChain calls this when a run fails."""
        if run_id is not None:
            self._run_ended(run_id, error)

    async def _failed_in_task(
        self, _loop: object, error: BaseException, *, run_id: UUID | None = None, **_details: Any
    ) -> None:
        if run_id is not None:
            self._run_ended(run_id, error)

    on_chain_error: Any = dual(_failed, _failed_in_task, in_place=True)
    on_tool_error: Any = dual(_failed, _failed_in_task, in_place=True)
    on_retriever_error: Any = dual(_failed, _failed_in_task, in_place=True)

    def _start(self, kind: str, about: About) -> None:
        """A run of a kind (llm, chain, tool, retriever) starts; in a thread."""

    async def _start_in_task(self, kind: str, about: About, loop: object) -> None:
        """Like `_start`, in a callback that was looked up on ``loop``."""

    def _run_ended(self, run_id: UUID, error: BaseException | None) -> None:
        """A run ends."""

    def note_token(self, run_id: UUID | None) -> None:
        """Take note of a run that streams: what comes at its end is not news."""

    def finish_in_thread(
        self, coroutine: Coroutine[Any, Any, Any], run_id: UUID | None = None
    ) -> None:
        """Run a coroutine of the user's to its end, from a thread.

        Raises:
            RuntimeError: If it is to run on a loop that waits for the caller, or if that loop
                ends before it does.
        """
        home = self._home if self._is_home_running() else None
        waiting = {*waiting_here()}
        if run_id is not None:
            waiting.update(map(party_of, held_up.get(run_id, ())))
        if run_id is None or run_id not in heard_by:  # called by hand, or before it was heard of
            run_id = run_in_context()
        if run_id is not None:
            waiting.update(heard_by.get(run_id, ()))
        outcome: Outcome[Any] = Outcome()
        if not waiting:
            _finish(coroutine, home, outcome)
            return

        def refuse() -> None:
            outcome.refuse(_refusal(home))

        wait = Wait(waiting, party_of(home), lambda: not outcome.done(), refuse)
        try:
            wait.begin()
            if wait.is_circular():
                coroutine.close()
                raise _refusal(home)
            _finish(coroutine, home, outcome)
        finally:
            wait.end()

    def _is_home_running(self) -> bool:
        """Whether the loop where this was made runs, and not in the parent of a fork."""
        return self._home is not None and self._home.is_running() and self._pid == os.getpid()


def _finish(
    coroutine: Coroutine[Any, Any, Any],
    home: asyncio.AbstractEventLoop | None,
    outcome: Outcome[Any],
) -> None:
    if home is None:
        run_in_background(coroutine, outcome)
    else:
        run_on_loop(home, coroutine, outcome)


def _refusal(home: asyncio.AbstractEventLoop | None) -> RuntimeError:
    where = "background loop" if home is None else "loop where the handler was made"
    return RuntimeError(
        f"on_token is to run on the {where}, and synchronous code holds up that very loop: call "
        "the model with ainvoke there, iterate with async for, or do either in a thread "
        "(asyncio.to_thread)"
    )
