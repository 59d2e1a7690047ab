"""`QueueStreamHandler`: tokens that LangChain pushes, pulled with ``for`` and ``async for``.

`FeedHandler` is the callback handler that fills a `TokenQueue`.  ``stream()`` uses it as it
is, and ends the queue when its producer ends.  `QueueStreamHandler` finds the end by
itself, from the runs that it hears start and end::

    no run open --(an outermost run starts)--> running --(the last one ends)--> no run open
                                                              puts the sentinel

so that successive runs stand in the queue one after the other, each with its sentinel.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

from langchain_core.callbacks.manager import ahandle_event, handle_event

from queuestream._token_queue import DEFAULT_MAXSIZE, Ended, TokenQueue, consumer_error
from queuestream._wakeups import running_asyncio_loop
from queuestream.handlers.base import StreamHandler, dual

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import TracebackType
    from uuid import UUID

    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.outputs import LLMResult
    from typing_extensions import Self

__all__ = ["FeedHandler", "QueueStreamHandler"]

_numbers = itertools.count(1)

_IGNORES = {
    "llm": "ignore_llm",
    "chain": "ignore_chain",
    "tool": "ignore_agent",
    "retriever": "ignore_retriever",
}
"""The attribute by which a handler declines the events of each kind of run."""


class FeedHandler(StreamHandler):
    """Puts the tokens that it hears into a `TokenQueue`.

    Attributes:
        tokens: The queue.
        others: The other handlers of the run, for `report_end`.
    """

    def __init__(self, tokens: TokenQueue[Any]) -> None:
        self._set_up(raise_error=True, may_wait=True)
        self.tokens = tokens
        self.others: list[BaseCallbackHandler] = []
        # Runs that the other handlers heard start, and of whose end LangChain won't tell them
        # if they are stopped: each with what it is ("llm", "chain") and its parent.
        self._untold: dict[UUID, tuple[str, UUID | None]] = {}

    def _deliver(self, text: str, run_id: UUID | None = None) -> None:
        if text:
            self._put(text, run_id)
        elif self.tokens.closed:
            self.tokens.refuse()

    async def _deliver_in_task(self, text: str, loop: object, run_id: UUID | None = None) -> None:
        if running_asyncio_loop() is not loop:
            self._deliver_at_once(text)
        elif text:
            await self._put_in_task(text, run_id)
        elif self.tokens.closed:
            await self.tokens.refuse_in_task()

    def _put(self, text: str, run_id: UUID | None) -> None:
        self.tokens.put(text)

    async def _put_in_task(self, text: str, run_id: UUID | None) -> None:
        await self.tokens.put_in_task(text)

    def _deliver_at_once(self, text: str) -> None:
        if text:
            self.tokens.put_at_once(text)

    def _is_in_task(self, run_id: UUID) -> bool:
        """Whether a run that starts here is a task's."""
        return running_asyncio_loop() is not None and run_id not in self._held_up

    on_token: Any = dual(StreamHandler._call, StreamHandler._call_in_task)  # noqa: SLF001

    def _run_started(self, kind: str, run_id: UUID, parent_run_id: UUID | None) -> None:
        """A run starts: let it, or stop it."""
        is_refused = self.tokens.closed or self.tokens.ended
        # agenerate tells of no cancellation
        if self.others and (is_refused or (kind == "llm" and self._is_in_task(run_id))):
            self._untold[run_id] = kind, parent_run_id
        if is_refused:
            self.tokens.refuse()

    def _run_ended(self, run_id: UUID, error: BaseException | None) -> None:
        super()._run_ended(run_id, error)
        self._untold.pop(run_id, None)

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


class _End:
    """The sentinel: the end of one iteration, and the error that it ends with."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class QueueStreamHandler(FeedHandler):
    """A `StreamHandler` whose tokens are iterated, for code that starts the run itself.

    ``for token in handler`` and ``async for token in handler`` (asyncio and trio) wait for
    tokens.  They end when no outermost run is open any more; the next iteration is the
    next run, and waits for it.  An error of the run is raised after the tokens that came
    before it.  One handler serves threads and tasks, even both in one run.

    When ``maxsize`` tokens wait, the run waits: a thread by blocking, a task by awaiting.
    So somebody else has to iterate: another thread, or another task.

    >>> import threading
    >>> from langchain_core.language_models import FakeListChatModel
    >>> handler = QueueStreamHandler()
    >>> model = FakeListChatModel(responses=["Hi!"])
    >>> run = threading.Thread(target=model.invoke, args=("Hello", {"callbacks": [handler]}))
    >>> run.start()
    >>> list(handler)
    ['H', 'i', '!']

    Called directly, without a run id, it takes tokens, too; `end` then puts the sentinel.
    Where an asyncio loop runs in the calling thread, such calls must be awaited.

    After `close`, a run in a thread gets `RunStopped` at its next token or start, one in a
    task `StreamClosedError`: no further token is made, retries and fallbacks included.

    Args:
        maxsize: How many tokens the run may be ahead of the consumer; 0 is unbounded.
        queue: The queue to use instead: empty, used for nothing else, for one run only, and
            following janus's protocols.  It excludes ``maxsize``.

    Raises:
        TypeError: If ``maxsize`` is no integer, or ``queue`` does not follow the protocols.
        ValueError: If ``maxsize`` is negative or given together with ``queue``, or ``queue`` is
            closed, not empty, or another stream's.

    **Cancellation**: a cancelled iteration has taken no token; go on with a new one.  A task
    that is cancelled in a bare model's ``ainvoke`` before the first token reports its end
    only when the task ends.

    **Thread safety**: any number of producers; one consumer at a time; `close` from anywhere.
    """

    def __init__(self, maxsize: int = DEFAULT_MAXSIZE, *, queue: object | None = None) -> None:
        super().__init__(TokenQueue(f"QueueStreamHandler {next(_numbers)}", maxsize, queue))
        self._open: set[UUID] = set()  # runs that were heard to start and not to end
        self._outermost: set[UUID] = set()  # those whose parent was not open
        self.is_running = False  # one of them started, and its sentinel is not put
        self._error: BaseException | None = None  # the first that one of them ended with
        self._stale: WeakSet[UUID] = WeakSet()  # runs that went on when an iteration ended
        self._has_stale = False
        # Tasks in which an outermost run goes on, see `_watch`.
        self._watched: dict[UUID, dict[asyncio.Task[Any], Callable[..., None]]] = {}

    # -- the runs --------------------------------------------------------------------------

    def _run_started(self, kind: str, run_id: UUID, parent_run_id: UUID | None) -> None:
        tokens = self.tokens
        if tokens.ended and not tokens.closed:
            raise ValueError(
                f"the queue that was given to {tokens.name} serves one run, and that has ended; "
                "leave queue= out to use a handler for several"
            )
        super()._run_started(kind, run_id, parent_run_id)
        with tokens.lock:
            if run_id in self._open:
                error = ValueError(
                    f"{tokens.name} is twice among the callbacks of one run: pass it once"
                )
                self._end_session(error)  # the run itself won't report any end
                raise error
            self._open.add(run_id)
            if self._has_stale and parent_run_id in self._stale:
                self._stale.add(run_id)
            elif parent_run_id not in self._open:
                self._outermost.add(run_id)
                self.is_running = tokens.is_open = True
        if kind != "chain" and run_id in self._outermost and self._is_in_task(run_id):
            self._watched[run_id] = {}
            self._watch(run_id, is_whole_run=True)

    def _run_ended(self, run_id: UUID, error: BaseException | None) -> None:
        super()._run_ended(run_id, error)
        for task, callback in self._watched.pop(run_id, {}).items():
            task.remove_done_callback(callback)
        with self.tokens.lock:
            self._open.discard(run_id)
            if run_id not in self._outermost:
                return
            self._outermost.remove(run_id)
            if self._error is None:
                self._error = error
            if self.is_running and not self._outermost:
                self._end_session(self._error)

    def _end_session(self, error: BaseException | None) -> None:
        """No outermost run is open any more.  Under the lock, or a run could start meanwhile."""
        self.is_running = False
        self._error = None
        self._outermost.clear()
        # What goes on all the same, in threads of a cancelled run say, is not the next one's.
        for run_id in self._open:
            self._stale.add(run_id)
            self._has_stale = True
        self._open.clear()
        self._put_sentinel(error)
        if self._has_stale:
            self.tokens.recheck()

    def _put(self, text: str, run_id: UUID | None) -> None:
        self.tokens.put(text, partial(self._is_stale, run_id))

    async def _put_in_task(self, text: str, run_id: UUID | None) -> None:
        await self.tokens.put_in_task(text, partial(self._is_stale, run_id))

    def _is_stale(self, run_id: UUID | None) -> bool:
        return self._has_stale and run_id in self._stale

    def _note_token(self, run_id: UUID | None) -> bool:
        if run_id is not None and run_id is not self._latest:
            if self._is_stale(run_id):
                return False
            if run_id in self._watched and run_id not in self._streamed:
                self._watch(run_id, is_whole_run=False)
        return super()._note_token(run_id)

    def _whole_text(self, response: LLMResult, run_id: UUID | None) -> str:
        if self._is_stale(run_id):
            return ""
        return super()._whole_text(response, run_id)

    def _watch(self, run_id: UUID, *, is_whole_run: bool) -> None:
        """See to it that a cancelled run ends the iteration.

        LangChain reports neither end nor error of a model, tool or retriever whose task is
        cancelled.  The end of the task that called it tells, and, sooner where that task
        goes on, the end of the task that a model's tokens come from.  A model that has
        streamed may go on in other tasks than the one that began it: in an ``astream`` whose
        steps are taken in tasks of their own.
        """
        task = asyncio.current_task() if running_asyncio_loop() is not None else None
        if task is not None and task not in self._watched[run_id]:
            callback = partial(self._task_done, run_id, is_whole_run=is_whole_run)
            self._watched[run_id][task] = callback
            task.add_done_callback(callback)

    def _task_done(self, run_id: UUID, task: asyncio.Task[Any], *, is_whole_run: bool) -> None:
        if task.cancelled() or (is_whole_run and run_id not in self._streamed):
            self._run_ended(run_id, asyncio.CancelledError())

    # -- the consumer ----------------------------------------------------------------------

    def _put_sentinel(self, error: BaseException | None) -> None:
        if self.tokens.is_given:
            self.tokens.failure = self.tokens.failure or error
            self.tokens.end()
        else:
            self.tokens.mark(_End(error))

    def end(self, error: BaseException | None = None) -> None:
        """Put the sentinel by hand, for code that calls the handler itself.

        The consumer gets what is buffered, then the end.  Needs no free slot, never waits.
        A run that LangChain reports puts a sentinel of its own.

        Args:
            error: What the iteration is to raise at its end.

        Raises:
            TypeError: If ``error`` is neither an exception nor None.
        """
        if error is not None and not isinstance(cast("object", error), BaseException):
            raise TypeError(f"error must be an exception or None, not {error!r}")
        self._put_sentinel(error)

    def close(self) -> None:
        """Give up: drop what is buffered and stop the run.  The consumer's counterpart of `end`.

        Iteration raises `StreamClosedError` from now on, also one that waits at the moment.
        Idempotent.

        **Thread safety**: any thread or task, finalizers and signal handlers; never waits.
        """
        self.tokens.close()

    def __enter__(self) -> Self:
        """Return the handler; leaving the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> _Iteration:
        """Iterate the tokens of one run."""
        return _Iteration(self)

    def __aiter__(self) -> _Iteration:
        """Iterate the tokens of one run, on asyncio or trio."""
        return _Iteration(self)

    def get_stream(self) -> Generator[str, None, None]:
        """Iterate the tokens of one run, as a generator."""
        yield from self


class _Iteration:
    """One iteration of a handler, up to a sentinel."""

    __slots__ = ("_handler", "_is_over")

    def __init__(self, handler: QueueStreamHandler) -> None:
        self._handler = handler
        self._is_over = False

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> str:
        if self._is_over:
            raise StopIteration
        try:
            item = self._handler.tokens.get()
        except Ended:
            item = None
        if isinstance(item, str):
            return item
        self._finish(item)  # out here its error has no context of ours
        raise StopIteration

    async def __anext__(self) -> str:
        if self._is_over:
            raise StopAsyncIteration
        try:
            item = await self._handler.tokens.get_in_task()
        except Ended:
            item = None
        if isinstance(item, str):
            return item
        self._finish(item)  # out here its error has no context of ours
        raise StopAsyncIteration

    def _finish(self, end: _End | None) -> None:
        """Take note of the sentinel, or of the queue's end; raise the error that it carries."""
        handler, tokens = self._handler, self._handler.tokens
        if end is not None:
            error = end.error
        elif closed := tokens.end_error():
            raise closed
        else:
            error, tokens.failure = tokens.failure, None
        self._is_over = True
        with tokens.lock:
            tokens.is_open = handler.is_running or tokens.has_items()
        if error is not None:
            raise consumer_error(error)
