"""`FeedHandler`: fills a `TokenQueue` with what it hears, by a `Selection`.

A token takes this way: LangChain's callback, the model run that it belongs to (that of
the token before, mostly), what the selection makes of it, the queue.  All that happens
once for each run stands beside that way: who is heard, restarts, what is measured.
"""

from __future__ import annotations

import contextlib
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks.manager import ahandle_event, handle_event

from queuestream._attempts import Attempts
from queuestream._messages import finish_reason_of, first_generation
from queuestream._meter import Meter
from queuestream._turns import TURN, end_turn, running_asyncio_loop
from queuestream.events import About, ModelRun, Selection
from queuestream.handlers._dual import dual, heard_by, held_up
from queuestream.handlers._listener import run_in_context
from queuestream.handlers.base import StreamHandler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.outputs import LLMResult

    from queuestream._token_queue import TokenQueue

__all__ = ["FeedHandler"]

_IGNORES = {
    "llm": "ignore_llm",
    "chain": "ignore_chain",
    "tool": "ignore_agent",
    "retriever": "ignore_retriever",
}
"""The attribute by which a handler declines the events of each kind of run."""


def _plain_text(chunk: Any) -> str:
    """The text of a chunk that brings nothing else; empty if it may bring more."""
    try:
        message = chunk.message
        text = message.content
        if type(text) is str and not message.usage_metadata:
            return text
    except AttributeError:  # an old-style model, no model's message, or a direct call
        pass
    return ""


class FeedHandler(StreamHandler):
    """Puts the tokens that it hears into a `TokenQueue`.

    Attributes:
        tokens: The queue.
        others: The other handlers of the run, for `report_end`.
    """

    has_held_up: bool
    _is_one_run = True  # whether outermost runs are steps of one
    _can_be_stale = False  # whether a run may go on when nobody is to have its items any more

    def __init__(self, tokens: TokenQueue[Any], selection: Selection) -> None:
        self._set_up(raise_error=True, may_wait=True)
        self.tokens: TokenQueue[Any] = tokens
        self._selection = selection
        # Whether there are runs whose texts need nothing but to be put into our own buffer.
        self._takes_simple = (
            selection.select == "text"
            and selection.join is None
            and tokens.buffer is not None
            and not self._can_be_stale
        )
        self._buffer: Any = tokens.buffer
        self._left_of_turn = TURN  # texts that take the short way before other tasks may run
        self._nameless = None, ModelRun(About(None, None), 1, is_heard=True)  # of direct calls
        self._nameless[1].streamed = True
        self._begin_anew()
        self.others: list[BaseCallbackHandler] = []
        # Runs that the other handlers heard start, and of whose end LangChain won't tell them
        # if they are stopped: each with what it is ("llm", "chain") and its parent.
        self._untold: dict[UUID, tuple[str, UUID | None]] = {}

    def _begin_anew(self) -> None:
        """Forget all runs."""
        meter = Meter()
        self.tokens.measure(meter)
        self._attempts = Attempts(meter.restarts, is_one_run=self._is_one_run)
        meter.counters.append(self._nameless[1])
        self._runs: dict[UUID, ModelRun] = {}  # the model runs that go on
        # The model run that had the last chunk.  A pair, so that it changes at once.
        self._latest_run: tuple[UUID | None, ModelRun] = self._nameless

    def select_events(self) -> None:
        """Give events from now on, whatever was selected."""
        self._takes_simple = False
        self._selection = self._selection.as_events()
        for run in list(self._runs.values()):
            run.is_simple = False

    # -- the runs --------------------------------------------------------------------------

    def _is_in_task(self, run_id: UUID) -> bool:
        """Whether a run that starts here is a task's."""
        return running_asyncio_loop() is not None and run_id not in held_up

    def _start(self, kind: str, about: About) -> None:
        if about.run_id is None:
            return
        for item in self._run_started(kind, about.run_id, about):
            self._put_all((item,), about.run_id)
            self._attempts.announced(about.run_id)

    async def _start_in_task(self, kind: str, about: About, loop: object) -> None:
        if about.run_id is None:
            return
        for item in self._run_started(kind, about.run_id, about):
            await self._put_all_in_task((item,), about.run_id, loop)
            self._attempts.announced(about.run_id)

    def _run_started(self, kind: str, run_id: UUID, about: About) -> Sequence[object]:
        """A run starts: let it, or stop it.  Returns the restart that it is, if it is one."""
        self._note_heard(run_id)
        is_refused = self.tokens.closed or self.tokens.ended
        # agenerate tells of no cancellation
        if self.others and (is_refused or (kind == "llm" and self._is_in_task(run_id))):
            self._untold[run_id] = kind, about.parent_run_id
        if is_refused:
            self.tokens.refuse()
        if not self._admit(kind, run_id, about.parent_run_id):
            return ()
        parent = about.parent_run_id
        if parent is None and self._attempts.is_open(caller := run_in_context()):
            parent = caller
        void = self._attempts.run_started(run_id, parent)
        number = self._attempts.attempt_of(run_id)
        if kind == "llm":
            self._add_run(run_id, about, number)
        if not void:
            return ()
        if self.others:  # it may be refused while it waits to announce itself
            self._untold[run_id] = kind, about.parent_run_id
        return (self._selection.restart(void, about, number),)

    def _note_heard(self, run_id: UUID | None) -> None:
        """Let who waits for its consumer's loop in this run know of the queue."""
        if run_id is not None and self.tokens.name not in heard_by.get(run_id, ()):
            heard_by[run_id] = (*heard_by.get(run_id, ()), self.tokens.name)

    def _admit(self, kind: str, run_id: UUID, parent_run_id: UUID | None) -> bool:
        """Whether a run that starts is one that the consumer hears of."""
        return True

    def _add_run(self, run_id: UUID, about: About, attempt: int) -> ModelRun:
        run = ModelRun(about, attempt, is_heard=self._selection.filter.hears(about))
        self._runs[run_id] = run
        if self._is_one_run:  # else nobody reads it, and the session may go on for ever
            self.tokens.meter.counters.append(run)
        return run

    def _run_ended(self, run_id: UUID, error: BaseException | None) -> None:
        super()._run_ended(run_id, error)
        self._latest_run = self._nameless
        self._runs.pop(run_id, None)
        self._attempts.run_ended(run_id, error)
        self._untold.pop(run_id, None)

    # -- from LangChain's calls to items -----------------------------------------------------

    def _new_token(
        self, token: object, *, chunk: Any = None, run_id: UUID | None = None, **details: Any
    ) -> None:
        """LangChain calls this for each token; you may, too, without a run id.

        Where an asyncio loop runs in the calling thread, it is a coroutine function: direct
        calls must then be awaited.
        """
        latest = self._latest_run
        run = latest[1] if latest[0] is run_id else self._run_of(run_id, details)
        if run is None:
            return
        if run.is_simple and (text := _plain_text(chunk)):
            run.tokens += 1
            run.characters += len(text)
            if not self._buffer.put_now((run, text)):
                self.tokens.put((run, text))
            return
        items = self._selection.items(run, token, chunk)
        if not run.has_text:
            self._note(run, items)
        if items:
            self._put_all(items, run_id)
        elif self._is_closed_at_drop() and run_id not in held_up:
            self.tokens.refuse()

    async def _new_token_in_task(
        self,
        loop: object,
        token: object,
        *,
        chunk: Any = None,
        run_id: UUID | None = None,
        **details: Any,
    ) -> None:
        latest = self._latest_run
        run = latest[1] if latest[0] is run_id else self._run_of(run_id, details)
        if run is None:
            return
        if run.is_simple and running_asyncio_loop() is loop and (text := _plain_text(chunk)):
            run.tokens += 1
            run.characters += len(text)
            self._left_of_turn -= 1
            if self._left_of_turn <= 0:
                self._left_of_turn = TURN
                await end_turn()
            if not self._buffer.put_now((run, text)):
                await self.tokens.put_in_task((run, text))
            return
        items = self._selection.items(run, token, chunk)
        if not run.has_text:
            self._note(run, items)
        if items:
            await self._put_all_in_task(items, run_id, loop)
        elif self._is_closed_at_drop() and running_asyncio_loop() is loop:
            await self.tokens.refuse_in_task()

    on_llm_new_token: Any = dual(_new_token, _new_token_in_task)

    def _run_of(self, run_id: UUID | None, details: dict[str, Any]) -> ModelRun | None:
        """The run of a chunk, where that is not the run of the chunk before; None to drop it."""
        if run_id is None:
            self._latest_run = self._nameless
            return self._nameless[1]
        run = self._runs.get(run_id)
        if run is None:  # its start was not reported
            about = About(run_id, details.get("parent_run_id"), None, details)
            run = self._add_run(run_id, about, self._attempts.number)
        run.streamed = True
        self._latest_run = run_id, run
        return run

    def note_token(self, run_id: UUID | None) -> None:
        """Take note of a run that streams: its whole text at its end is not news."""
        run = None if run_id is None else self._runs.get(run_id)
        if run is not None:
            run.streamed = True

    def _note(self, run: ModelRun, items: Sequence[object]) -> None:
        """Take note of the first item of all, and of a run's first text."""
        meter = self.tokens.meter
        if items and meter.first is None:
            meter.first = monotonic()
        if run.characters:
            run.has_text = True
            run_id = run.about.run_id
            self._attempts.text_delivered(run_id, run)
            run.is_simple = (
                self._takes_simple and run.is_heard and run_id is not None and run_id not in held_up
            )

    def _is_closed_at_drop(self) -> bool:
        """Take note of something that is not for the consumer; whether that has gone."""
        self.tokens.last_dropped = monotonic()
        return self.tokens.closed

    def _llm_end(self, response: LLMResult, *, run_id: UUID | None = None, **kwargs: Any) -> None:
        """LangChain calls this at the end of a model run."""
        if run_id is None:
            return
        try:
            if items := self._last_items(response, run_id):
                self._put_all(items, run_id)
        finally:
            self._run_ended(run_id, None)

    async def _llm_end_in_task(
        self, loop: object, response: LLMResult, *, run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        if run_id is None:
            return
        try:
            if items := self._last_items(response, run_id):
                await self._put_all_in_task(items, run_id, loop)
        finally:
            self._run_ended(run_id, None)

    on_llm_end: Any = dual(_llm_end, _llm_end_in_task)
    on_llm_error: Any = dual(
        StreamHandler._failed,  # noqa: SLF001 - a base's
        StreamHandler._failed_in_task,  # noqa: SLF001 - a base's
        in_place=True,
    )

    def _last_items(self, response: LLMResult, run_id: UUID) -> Sequence[object]:
        """What the end of a model run brings: all, if it did not stream."""
        run = self._runs.get(run_id)
        generation = first_generation(response)
        if run is None or generation is None:
            return ()
        if run.is_heard:
            self.tokens.meter.finish_reason = finish_reason_of(generation)
        if run.streamed:
            items = self._selection.usage_item(run, generation)
        else:
            items = self._selection.items(run, "", generation)
        if not run.has_text:
            self._note(run, items)
        if not items:
            self.tokens.last_dropped = monotonic()
        return items

    # As the on_token of another handler, or called by hand, it is as if without a run: what
    # such runs are parts of, and so where the end is, only the caller knows.

    def _begin(self, about: About) -> None:
        self._note_heard(about.run_id)
        self.has_held_up = self.has_held_up or about.run_id in held_up

    async def _begin_in_task(self, about: About, loop: object) -> None:
        self._begin(about)

    def _receive(self, token: str, run_id: UUID | None, details: dict[str, Any]) -> None:
        if token:
            self._put_all(self._items_of_text(token), run_id)

    async def _receive_in_task(
        self, token: str, run_id: UUID | None, loop: object, details: dict[str, Any]
    ) -> None:
        if token:
            await self._put_all_in_task(self._items_of_text(token), run_id, loop)

    def _items_of_text(self, text: str) -> Sequence[object]:
        run = self._nameless[1]
        items = self._selection.items(run, text, None)
        if not run.has_text:
            self._note(run, items)
        return items

    def _finish(self, run_id: UUID | None, response: LLMResult | None) -> None:
        pass

    async def _finish_in_task(
        self, run_id: UUID | None, loop: object, response: LLMResult | None
    ) -> None:
        pass

    on_token: Any = dual(StreamHandler._call, StreamHandler._call_in_task)  # noqa: SLF001

    # -- from items to the queue -------------------------------------------------------------

    def _put_all(self, items: Sequence[object], run_id: UUID | None) -> None:
        """Put items from a thread."""
        if self.has_held_up and run_id in held_up:
            for item in items:
                self.tokens.put_at_once(item)
        else:
            is_stale = partial(self._is_stale, run_id) if self._can_be_stale else None
            for item in items:
                self.tokens.put(item, is_stale)

    async def _put_all_in_task(
        self, items: Sequence[object], run_id: UUID | None, loop: object
    ) -> None:
        """Put items from a callback that was looked up on ``loop``."""
        if running_asyncio_loop() is not loop or (self.has_held_up and run_id in held_up):
            for item in items:
                self.tokens.put_at_once(item)
        else:
            is_stale = partial(self._is_stale, run_id) if self._can_be_stale else None
            for item in items:
                await self.tokens.put_in_task(item, is_stale)

    def _is_stale(self, run_id: UUID | None) -> bool:
        """Whether nobody is to have a run's items any more."""
        return False

    # -- the end of the run ------------------------------------------------------------------

    def report_end(self, error: BaseException) -> None:
        """Tell the other handlers of the runs whose end LangChain left out."""
        for event, ignore, ids in self._take_untold():
            with contextlib.suppress(Exception):  # logged by LangChain
                handle_event(self.others, event, ignore, error, **ids)

    async def report_end_in_task(self, error: BaseException) -> None:
        """Tell the other handlers of the runs whose end LangChain left out."""
        for event, ignore, ids in self._take_untold():
            with contextlib.suppress(Exception):  # logged by LangChain
                await ahandle_event(self.others, event, ignore, error, **ids)

    def _take_untold(self) -> Iterator[tuple[str, str, dict[str, UUID | None]]]:
        while self._untold:  # the last one first: children before their parents
            run_id, (kind, parent_run_id) = self._untold.popitem()
            ids = {"run_id": run_id, "parent_run_id": parent_run_id}
            yield f"on_{kind}_error", _IGNORES[kind], ids
