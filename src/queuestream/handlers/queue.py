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
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, overload
from weakref import WeakSet, ref

from queuestream._buffer import members
from queuestream._loop_end import LOOP_CLOSED, when_closed
from queuestream._token_queue import DEFAULT_MAXSIZE, Ended, TokenQueue, consumer_error
from queuestream._turns import running_asyncio_loop
from queuestream.errors import RunCancelledError
from queuestream.events import Selection, value_of
from queuestream.handlers._listener import run_in_context
from queuestream.handlers.feed import FeedHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Sequence
    from types import TracebackType
    from uuid import UUID

    import typing_extensions
    from langchain_core.messages import AIMessageChunk
    from typing_extensions import Self

    from queuestream.events import About, ModelRun, Overflow, Select, TokenEvent

__all__ = ["QueueStreamHandler"]

if TYPE_CHECKING:
    T = typing_extensions.TypeVar("T", default=str)
else:
    T = TypeVar("T")

_numbers = itertools.count(1)


class _End:
    """The sentinel: the end of one iteration, and the error that it ends with."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class QueueStreamHandler(FeedHandler, Generic[T]):
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
        select: What is iterated: ``"text"``, ``"message"`` (``AIMessageChunk``) or ``"event"``
            (`TokenEvent`); see `stream`.
        overflow: What happens when ``maxsize`` tokens wait: ``"block"`` or ``"merge"``; see
            `stream`.
        queue: The queue to use instead: empty, used for nothing else, for one run only, and
            following janus's protocols.  It excludes ``maxsize`` and ``overflow="merge"``.
        include_names: Hear model runs of these names, see `stream`; so ``include_tags``,
            ``include_nodes``, ``exclude_names``, ``exclude_tags`` and ``exclude_nodes``.
        include_tags: See there.
        include_nodes: See there.
        exclude_names: See there.
        exclude_tags: See there.
        exclude_nodes: See there.

    Raises:
        TypeError: If ``maxsize`` is no integer, ``queue`` does not follow the protocols, or
            an ``include`` or ``exclude`` option is no collection of strings.
        ValueError: If ``maxsize`` is negative or given together with ``queue``, ``queue`` is
            closed, not empty, another stream's, or given with ``overflow="merge"``, or
            ``select`` or ``overflow`` are none of the above.

    **Cancellation**: a cancelled iteration has taken no token; go on with a new one.  A task
    that is cancelled in a bare model's ``ainvoke`` before the first token reports its end
    only when the task ends.

    **Thread safety**: any number of producers; one consumer at a time; `close` from anywhere.
    """

    _is_one_run = False
    _can_be_stale = True

    @overload
    def __init__(
        self: QueueStreamHandler[str],
        maxsize: int = ...,
        *,
        select: Literal["text"] = ...,
        overflow: Overflow = ...,
        queue: object | None = ...,
        include_names: Collection[str] | None = ...,
        include_tags: Collection[str] | None = ...,
        include_nodes: Collection[str] | None = ...,
        exclude_names: Collection[str] | None = ...,
        exclude_tags: Collection[str] | None = ...,
        exclude_nodes: Collection[str] | None = ...,
    ) -> None: ...

    @overload
    def __init__(
        self: QueueStreamHandler[AIMessageChunk],
        maxsize: int = ...,
        *,
        select: Literal["message"],
        overflow: Overflow = ...,
        queue: object | None = ...,
        include_names: Collection[str] | None = ...,
        include_tags: Collection[str] | None = ...,
        include_nodes: Collection[str] | None = ...,
        exclude_names: Collection[str] | None = ...,
        exclude_tags: Collection[str] | None = ...,
        exclude_nodes: Collection[str] | None = ...,
    ) -> None: ...

    @overload
    def __init__(
        self: QueueStreamHandler[TokenEvent],
        maxsize: int = ...,
        *,
        select: Literal["event"],
        overflow: Overflow = ...,
        queue: object | None = ...,
        include_names: Collection[str] | None = ...,
        include_tags: Collection[str] | None = ...,
        include_nodes: Collection[str] | None = ...,
        exclude_names: Collection[str] | None = ...,
        exclude_tags: Collection[str] | None = ...,
        exclude_nodes: Collection[str] | None = ...,
    ) -> None: ...

    def __init__(
        self,
        maxsize: int = DEFAULT_MAXSIZE,
        *,
        select: Select = "text",
        overflow: Overflow = "block",
        queue: object | None = None,
        include_names: Collection[str] | None = None,
        include_tags: Collection[str] | None = None,
        include_nodes: Collection[str] | None = None,
        exclude_names: Collection[str] | None = None,
        exclude_tags: Collection[str] | None = None,
        exclude_nodes: Collection[str] | None = None,
    ) -> None:
        selection = Selection(
            select,
            overflow,
            include_names=include_names,
            include_tags=include_tags,
            include_nodes=include_nodes,
            exclude_names=exclude_names,
            exclude_tags=exclude_tags,
            exclude_nodes=exclude_nodes,
        )
        name = f"QueueStreamHandler {next(_numbers)}"
        super().__init__(TokenQueue(name, maxsize, queue, join=selection.join), selection)
        self._open: set[UUID] = set()  # runs that were heard to start and not to end
        self._outermost: set[UUID] = set()  # those whose parent was not open
        self._callers: dict[UUID, UUID | None] = {}  # of those that LangChain reports without one
        self.is_running: bool = False  # one of them started, and its sentinel is not put
        self._error: BaseException | None = None  # the first that one of them ended with
        self._known: WeakSet[UUID] = WeakSet()  # all runs since the last sentinel
        self._stale: WeakSet[UUID] = WeakSet()  # those whose tokens are no iteration's any more
        self._has_stale = False
        # Tasks in which an outermost run goes on, see `_watch`.
        self._watched: dict[UUID, dict[asyncio.Task[Any], Callable[..., None]]] = {}
        # Take back that the end of their loops is told, of outermost runs on asyncio loops.
        self._homes: dict[UUID, Callable[[], object]] = {}

    # -- the runs --------------------------------------------------------------------------

    def _run_started(self, kind: str, run_id: UUID, about: About) -> Sequence[object]:
        tokens = self.tokens
        if tokens.ended and not tokens.closed:
            raise ValueError(
                f"the queue that was given to {tokens.name} serves one run, and that has ended; "
                "leave queue= out to use a handler for several"
            )
        return super()._run_started(kind, run_id, about)

    def _admit(self, kind: str, run_id: UUID, parent_run_id: UUID | None) -> bool:
        tokens = self.tokens
        with tokens.lock:
            if run_id in self._open:
                error = ValueError(
                    f"{tokens.name} is twice among the callbacks of one run: pass it once"
                )
                self._end_session(error)  # the run itself won't report any end
                raise error
            self._open.add(run_id)
            self._known.add(run_id)
            self._has_stale = self._has_stale and bool(self._stale)
            if self._has_stale and parent_run_id in self._stale:
                self._stale.add(run_id)
            elif parent_run_id not in self._open:
                self._outermost.add(run_id)
                self.is_running = tokens.is_open = True
                if self._is_in_task(run_id) and (loop := running_asyncio_loop()) is not None:
                    gone = partial(_end_run_that_is_gone, ref(self), run_id)
                    self._homes[run_id] = when_closed(loop, gone)
                if parent_run_id is None and (caller := run_in_context()) in self._open:
                    self._callers[run_id] = caller
        if kind != "chain" and run_id in self._outermost and self._is_in_task(run_id):
            self._watched[run_id] = {}
            self._watch(run_id, is_whole_run=True)
        return not self._is_stale(run_id)

    def _run_ended(self, run_id: UUID, error: BaseException | None) -> None:
        super()._run_ended(run_id, error)
        for task, callback in self._watched.pop(run_id, {}).items():
            task.remove_done_callback(callback)
        with self.tokens.lock:
            self._open.discard(run_id)
            if run_id not in self._outermost:
                return
            self._outermost.remove(run_id)
            if (take_back := self._homes.pop(run_id, None)) is not None:
                take_back()
            # If its caller goes on, that may have caught the error.
            if self._callers.pop(run_id, None) not in self._open and self._error is None:
                self._error = error
            if self.is_running and not self._outermost:
                self._end_session(self._error)

    def _end_session(self, error: BaseException | None) -> None:
        """No outermost run is open any more.  Under the lock, or a run could start meanwhile."""
        self.is_running = False
        self._error = None
        self._outermost.clear()
        self._callers.clear()
        for take_back in self._homes.values():
            take_back()
        self._homes.clear()
        # What goes on all the same, in threads of a cancelled run say, is not the next one's.
        # Nor is what such a thread begins only now, under a run that has ended.
        for run_id in self._open if error is None else members(self._known):
            self._stale.add(run_id)
            self._has_stale = True
        self._known = WeakSet()
        self._open.clear()
        self._begin_anew()
        self._put_sentinel(error)
        if self._has_stale:
            self.tokens.recheck()

    def _is_stale(self, run_id: UUID | None) -> bool:
        return self._has_stale and run_id in self._stale

    def _run_of(self, run_id: UUID | None, details: dict[str, Any]) -> ModelRun | None:
        if self._is_stale(run_id):
            return None
        if run_id is not None and run_id in self._watched and not self._has_streamed(run_id):
            self._watch(run_id, is_whole_run=False)
        return super()._run_of(run_id, details)

    def _has_streamed(self, run_id: UUID) -> bool:
        run = self._runs.get(run_id)
        return run is not None and run.streamed

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
        if task.cancelled() or (is_whole_run and not self._has_streamed(run_id)):
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

    def __iter__(self) -> _Iteration[T]:
        """Iterate the tokens of one run."""
        return _Iteration(self)

    def __aiter__(self) -> _Iteration[T]:
        """Iterate the tokens of one run, on asyncio or trio."""
        return _Iteration(self)

    def get_stream(self) -> Generator[T, None, None]:
        """Iterate the tokens of one run, as a generator."""
        yield from self


def _end_run_that_is_gone(whose: ref[QueueStreamHandler[Any]], run_id: UUID) -> None:
    """End a run whose loop was closed: it will report nothing.  Others go on."""
    handler = whose()
    if handler is not None:
        handler._run_ended(run_id, RunCancelledError(LOOP_CLOSED))  # noqa: SLF001 - its own


class _Iteration(Generic[T]):
    """One iteration of a handler, up to a sentinel."""

    __slots__ = ("_handler", "_is_over")

    def __init__(self, handler: QueueStreamHandler[T]) -> None:
        self._handler = handler
        self._is_over = False

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._is_over:
            raise StopIteration
        item: Any = None
        with contextlib.suppress(Ended):
            while (value := value_of(item := self._handler.tokens.get())) is None:
                if isinstance(item, _End):
                    break
            else:
                return cast("T", value)
        self._finish(item)  # out here its error has no context of ours
        raise StopIteration

    async def __anext__(self) -> T:
        if self._is_over:
            raise StopAsyncIteration
        item: Any = None
        with contextlib.suppress(Ended):
            while (value := value_of(item := await self._handler.tokens.get_in_task())) is None:
                if isinstance(item, _End):
                    break
            else:
                return cast("T", value)
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
