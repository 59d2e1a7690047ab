"""`stream()` and `TokenStream`: a run, the queue that it fills, and their lifetime.

The consumer's side of a stream goes through the states of ``_states``, and never back.
Two flags hold them, so that none of the two sides needs a lock: ``_is_finished`` is set
by the consumer alone, ``closed`` (of the queue) by whoever closes.  Finished wins.
"""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, overload

from janus import Queue as JanusQueue

from queuestream._background import is_background_loop
from queuestream._calls import (
    Call,
    check_arguments,
    is_async_only,
    make_call,
)
from queuestream._checks import checked_seconds
from queuestream._meter import StreamStatistics
from queuestream._reader import EventReader, Reader
from queuestream._token_queue import DEFAULT_MAXSIZE, Ended, TimedOut, TokenQueue
from queuestream._turns import running_asyncio_loop
from queuestream._wakeups import current_loop
from queuestream.errors import NotFinishedError, PlacementError, StreamTimeoutError
from queuestream.events import Selection
from queuestream.handlers.feed import FeedHandler
from queuestream.producers import Run, TaskRun, ThreadRun

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection
    from types import TracebackType

    import typing_extensions
    from langchain_core.messages import AIMessageChunk
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.runnables import Runnable, RunnableConfig
    from typing_extensions import Self

    from queuestream._states import State
    from queuestream.events import Overflow, Select, TokenEvent

__all__ = ["TokenStream", "stream"]

if TYPE_CHECKING:
    T = typing_extensions.TypeVar("T", default=str)
else:
    T = TypeVar("T")

RunIn = Literal["auto", "thread", "task", "background"]
_PLACES = ("auto", "thread", "task", "background")

_numbers = itertools.count(1)


@overload
def stream(
    target: Runnable[Any, Any] | Callable[..., Any],
    input: Any,
    config: RunnableConfig | None = ...,
    *,
    select: Literal["text"] = ...,
    maxsize: int = ...,
    overflow: Overflow = ...,
    run_in: RunIn = ...,
    first_token_timeout: float | None = ...,
    token_timeout: float | None = ...,
    include_names: Collection[str] | None = ...,
    include_tags: Collection[str] | None = ...,
    include_nodes: Collection[str] | None = ...,
    exclude_names: Collection[str] | None = ...,
    exclude_tags: Collection[str] | None = ...,
    exclude_nodes: Collection[str] | None = ...,
    queue: object | None = ...,
    **kwargs: Any,
) -> TokenStream[str]: ...


@overload
def stream(
    target: Runnable[Any, Any] | Callable[..., Any],
    input: Any,
    config: RunnableConfig | None = ...,
    *,
    select: Literal["message"],
    maxsize: int = ...,
    overflow: Overflow = ...,
    run_in: RunIn = ...,
    first_token_timeout: float | None = ...,
    token_timeout: float | None = ...,
    include_names: Collection[str] | None = ...,
    include_tags: Collection[str] | None = ...,
    include_nodes: Collection[str] | None = ...,
    exclude_names: Collection[str] | None = ...,
    exclude_tags: Collection[str] | None = ...,
    exclude_nodes: Collection[str] | None = ...,
    queue: object | None = ...,
    **kwargs: Any,
) -> TokenStream[AIMessageChunk]: ...


@overload
def stream(
    target: Runnable[Any, Any] | Callable[..., Any],
    input: Any,
    config: RunnableConfig | None = ...,
    *,
    select: Literal["event"],
    maxsize: int = ...,
    overflow: Overflow = ...,
    run_in: RunIn = ...,
    first_token_timeout: float | None = ...,
    token_timeout: float | None = ...,
    include_names: Collection[str] | None = ...,
    include_tags: Collection[str] | None = ...,
    include_nodes: Collection[str] | None = ...,
    exclude_names: Collection[str] | None = ...,
    exclude_tags: Collection[str] | None = ...,
    exclude_nodes: Collection[str] | None = ...,
    queue: object | None = ...,
    **kwargs: Any,
) -> TokenStream[TokenEvent]: ...


def stream(
    target: Runnable[Any, Any] | Callable[..., Any],
    input: Any,  # noqa: A002 - LangChain's name for it
    config: RunnableConfig | None = None,
    *,
    select: Select = "text",
    maxsize: int = DEFAULT_MAXSIZE,
    overflow: Overflow = "block",
    run_in: RunIn = "auto",
    first_token_timeout: float | None = None,
    token_timeout: float | None = None,
    include_names: Collection[str] | None = None,
    include_tags: Collection[str] | None = None,
    include_nodes: Collection[str] | None = None,
    exclude_names: Collection[str] | None = None,
    exclude_tags: Collection[str] | None = None,
    exclude_nodes: Collection[str] | None = None,
    queue: object | None = None,
    **kwargs: Any,
) -> TokenStream[Any]:
    r"""Iterate the tokens of a run with ``for`` or ``async for`` while it goes on.

    Every token of every model in the run is heard, however deep the model is called.
    Nothing starts before the stream is entered or first iterated.  When ``maxsize`` tokens
    wait, the run waits.  The run's own exception is raised after the tokens that came
    before it.  Leaving the ``with`` block, `TokenStream.close`, or dropping the last
    reference stops the run.

    >>> from langchain_core.language_models import FakeListChatModel
    >>> model = FakeListChatModel(responses=["Hi!"])
    >>> with stream(model, "Hello") as tokens:
    ...     for token in tokens:
    ...         print(token, end="|")
    H|i|!|
    >>> tokens.result.content
    'Hi!'

    Args:
        target: A ``Runnable`` (model, chain, agent, LangGraph graph), or a function, plain or
            async, that takes the input and has a ``callbacks`` parameter.
        input: The target's input.
        config: Its ``RunnableConfig``.  The callbacks in it are kept; ours is added last.
        select: What is iterated.  ``"text"``: ``str``, never empty.  ``"message"``: each
            ``AIMessageChunk`` as the model gave it (made from the text where a model knows no
            messages; made from the whole message where it did not stream).  ``"event"``: a
            `TokenEvent` for each text, reasoning, piece of a tool call, usage, restart.
        maxsize: How many items the run may be ahead of the consumer; 0 is unbounded.
        overflow: What happens when ``maxsize`` items wait.  ``"block"``: the run waits.
            ``"merge"``: the new item is joined to the last one that waits of the same model
            run, if kind and content block match; the run waits only if they do not.  Nothing
            is lost; a slow consumer gets bigger pieces.
        run_in: Where the run happens.  ``"thread"``: ``invoke`` in a daemon thread.
            ``"task"``: ``ainvoke`` as a task of the consumer's asyncio loop.
            ``"background"``: ``ainvoke`` on one asyncio loop that all streams share, in a
            daemon thread.  ``"auto"``: thread for a synchronous consumer (background if the
            target is async), task on asyncio, background on trio.  A plain function always
            gets a thread.
        first_token_timeout: Seconds that one wait of the consumer may last for the first
            item; for ever if None.  Past it the run is stopped, and the consumer gets a
            `StreamTimeoutError`.  A consumer that does not wait is not timed.
        token_timeout: The same for each item after the first.  What the model gives and the
            consumer does not get (by ``select``, by the options below) restarts the wait.
        include_names: Hear model runs of these names, as in ``astream_events``.  A run is
            heard if any of the three include options names it; all are, if none is given.
        include_tags: Hear model runs with one of these tags.
        include_nodes: Hear model runs in these LangGraph nodes, subgraphs in them included.
        exclude_names: Do not hear model runs of these names, included or not.
        exclude_tags: Do not hear model runs with one of these tags.  ``nostream`` and
            ``langsmith:nostream`` are always excluded.
        exclude_nodes: Do not hear model runs in these LangGraph nodes.
        queue: The queue to use instead of a `MixedQueue`: empty, used for nothing else, and
            following janus's protocols.  It excludes ``maxsize`` and ``overflow="merge"``.
        kwargs: More arguments for the target, ``stop=["\n"]`` say.

    Raises:
        TypeError: If ``target`` is neither a ``Runnable`` nor callable, or has no
            ``callbacks`` parameter; if ``maxsize``, ``config``, ``queue``, a timeout or an
            include or exclude option is of the wrong type; if a keyword is nearly one of the
            above, or is ``callbacks``, which belongs into ``config``.
        ValueError: If ``maxsize`` or a timeout is negative, ``select``, ``overflow`` or
            ``run_in`` is none of the above, ``run_in`` cannot serve the target, ``queue`` is
            given together with ``maxsize`` or ``overflow="merge"``, or is closed, not empty,
            or another stream's.

    **Cancellation**: see `TokenStream`.

    **Thread safety**: the context variables of the caller are copied here, and the run sees
    the copy.
    """
    if run_in not in _PLACES:
        allowed = ", ".join(map(repr, _PLACES))
        raise ValueError(f"run_in must be one of {allowed}; got {run_in!r}")
    check_arguments(target, config, kwargs)
    limits = (
        checked_seconds("first_token_timeout", first_token_timeout),
        checked_seconds("token_timeout", token_timeout),
    )
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
    is_async = is_async_only(target)
    if run_in == "thread" and is_async:
        raise ValueError(
            'run_in="thread" calls invoke, and this target is asynchronous only: use '
            '"background" (for any consumer), "task" (on asyncio) or "auto"'
        )
    what = getattr(target, "__name__", None) or type(target).__name__
    name = f"stream {next(_numbers)} of {what}"
    tokens: TokenQueue[Any] = TokenQueue(name, maxsize, queue, is_ours=True, join=selection.join)
    feed = FeedHandler(tokens, selection)
    call = make_call(target, input, config, kwargs, feed=feed)
    return TokenStream(
        call,
        run_in="thread" if call.coroutine is None else run_in,
        for_plain_consumer="background" if is_async else "thread",
        given_queue=queue,
        select=select,
        limits=limits,
    )


class TokenStream(Generic[T]):
    """The tokens of one run; made by `stream`.

    A context manager and an iterator, both synchronous and asynchronous (asyncio, trio).
    One-shot: after the end or the error, iterating yields nothing more.

    **Cancellation**: a cancelled wait for a token has taken none, and does not stop the run;
    leaving the ``async with`` block does.

    **Thread safety**: one consumer at a time; `close` from anywhere.
    """

    __slots__ = (
        "__weakref__",
        "_call",
        "_feed",
        "_given_queue",
        "_is_finished",
        "_places",
        "_reader",
        "_run",
        "_select",
        "_timeout",
        "_tokens",
    )

    def __init__(
        self,
        call: Call,
        *,
        run_in: str,
        for_plain_consumer: str,
        given_queue: object | None,
        select: str,
        limits: tuple[float | None, float | None],
    ) -> None:
        self._call: Call | None = call  # until it starts
        self._feed = call.feed
        self._places = run_in, for_plain_consumer
        self._given_queue = given_queue
        self._tokens: TokenQueue[Any] = call.tokens
        self._reader: Reader[T] = Reader(call.tokens, *limits)
        self._select = select
        self._run: Run | None = None
        self._is_finished = False
        self._timeout: StreamTimeoutError | None = None

    def __repr__(self) -> str:
        """Name the stream and its state."""
        state: State
        if self._is_finished:
            state = "finished"
        elif self._tokens.closed:
            state = "closed"
        else:
            state = "new" if self._run is None else "running"
        return f"<TokenStream: {self._tokens.name}, {state}>"

    # -- starting --------------------------------------------------------------------------

    def _begin(self, *, is_async: bool) -> None:
        """Start the run, unless it was.  Where it happens depends on who asks."""
        with self._tokens.lock:
            if self._call is not None and not self._tokens.closed:
                self._start(self._call, is_async=is_async)

    def _start(self, call: Call, *, is_async: bool) -> None:
        run_in, for_plain_consumer = self._places
        loop = current_loop() if is_async else running_asyncio_loop()
        is_asyncio = isinstance(loop, asyncio.AbstractEventLoop)
        if run_in == "auto":
            for_async_consumer = "task" if is_asyncio else "background"
            run_in = for_async_consumer if is_async else for_plain_consumer
        if run_in == "task" and not is_asyncio:
            where = "on trio" if loop is not None else "where no asyncio loop runs"
            raise PlacementError(
                f'run_in="task" makes the run a task of the consumer\'s asyncio loop, and this is '
                f'{where}: use "background", "thread" or "auto"'
            )
        if isinstance(self._given_queue, JanusQueue):
            self._check_janus(run_in, loop if is_async else None)
        run = ThreadRun(call) if run_in == "thread" else TaskRun(call)
        try:
            self._run = run
            self._call = None
            self._tokens.is_open = True
            self._tokens.meter.began = monotonic()
            if isinstance(run, ThreadRun):
                run.start()
            elif run_in == "task":
                run.start_here()
            else:
                run.start_in_background()
        except BaseException as error:  # no more threads, say, or Ctrl-C
            self._tokens.close(run.cancel)
            run.lose(error)
            raise
        if self._tokens.closed:  # by somebody who did not see the run yet
            run.cancel()

    def _check_janus(self, run_in: str, consumer: object | None) -> None:
        """A janus.Queue serves one asyncio loop."""
        if consumer is not None and not isinstance(consumer, asyncio.AbstractEventLoop):
            raise PlacementError(
                "a janus.Queue cannot serve trio: leave queue= out, or give a MixedQueue"
            )
        if consumer is not None and run_in == "background":
            raise PlacementError(
                "a janus.Queue serves one asyncio loop, and this run and its consumer are on two: "
                'use run_in="task" or "thread", or leave queue= out'
            )

    # -- iterating -------------------------------------------------------------------------

    def __iter__(self) -> Self:
        """Return the stream."""
        return self

    def __aiter__(self) -> Self:
        """Return the stream."""
        return self

    def __next__(self) -> T:
        """Return the next token; wait for it.

        Raises:
            StopIteration: If the run has ended.
            StreamClosedError: If the stream was closed early, also while this waited.
            StreamTimeoutError: If the wait lasted longer than ``first_token_timeout`` or
                ``token_timeout``; the run was stopped, and this is the end.
            ConcurrentIterationError: If another consumer waits already.
            PlacementError: If the run is a task of the loop that this call would hold up.
        """
        if self._is_finished:
            raise StopIteration
        if self._run is None or running_asyncio_loop() is not None:
            self._get_ready()
        if (value := self._reader.get_now()) is not None:
            return value
        try:
            return self._reader.get()
        except (Ended, TimedOut) as end:
            has_timed_out = isinstance(end, TimedOut)
        self._receive_end(has_timed_out=has_timed_out)  # out here its error has no context of ours
        raise StopIteration

    def _get_ready(self) -> None:
        """Start the run, unless it was, for a plain consumer that is about to wait for it."""
        if self._would_hold_up_the_run():
            raise PlacementError(
                "the run is a task of this thread's own loop, which a plain for would hold up: "
                'use async for, or run_in="thread"'
            )
        if self._run is None:
            self._begin(is_async=False)

    async def __anext__(self) -> T:
        """Return the next token; wait for it.

        Raises:
            StopAsyncIteration: If the run has ended.
            StreamClosedError: If the stream was closed early, also while this waited.
            StreamTimeoutError: As of ``__next__``.
            ConcurrentIterationError: If another consumer waits already.
            PlacementError: If ``run_in`` or ``queue`` cannot serve this loop.

        **Cancellation**: no token is taken; the run goes on.
        """
        if self._is_finished:
            raise StopAsyncIteration
        if self._run is None:
            self._begin(is_async=True)
        reader = self._reader
        reader.left_of_turn -= 1
        if reader.left_of_turn > 0 and (value := reader.get_now()) is not None:
            return value
        try:
            return await reader.get_in_task()
        except (Ended, TimedOut) as end:
            has_timed_out = isinstance(end, TimedOut)
        self._receive_end(has_timed_out=has_timed_out)
        raise StopAsyncIteration

    def pieces(
        self: TokenStream[str], max_tokens: int | None = None, max_delay: float = 0.0
    ) -> Pieces:
        """Iterate joined text, with ``for`` or ``async for``.

        Each piece is all that is waiting: one token when the consumer keeps up, more when it
        lags.  A restart ends a piece, and so does the end of the run.  What a piece has
        gathered makes room in the queue: ``max_tokens`` limits it.

        >>> from langchain_core.language_models import FakeListChatModel
        >>> model = FakeListChatModel(responses=["Hello!"])
        >>> with stream(model, "Hi") as tokens:
        ...     for piece in tokens.pieces(max_tokens=3, max_delay=60):
        ...         print(piece)
        Hel
        lo!

        Args:
            max_tokens: The most tokens in a piece; any number if None.
            max_delay: Seconds to wait for more tokens, after the first of a piece; but never
                longer than ``token_timeout`` for one of them.

        Raises:
            TypeError: If ``max_tokens`` is no integer, or ``max_delay`` no number.
            ValueError: If ``max_tokens`` is less than 1 or ``max_delay`` negative, or if the
                stream does not select text.

        **Cancellation**: a piece that was being gathered is kept for the next.

        **Thread safety**: one consumer at a time, as with the stream itself.
        """
        if self._select != "text":
            raise ValueError(
                f'pieces() joins text, and this stream selects {self._select!r}: use select="text"'
            )
        if max_tokens is not None:
            if not isinstance(cast("object", max_tokens), int) or isinstance(max_tokens, bool):
                raise TypeError(f"max_tokens must be an int or None, not {max_tokens!r}")
            if max_tokens < 1:
                raise ValueError(f"max_tokens must be 1 or more, or None; not {max_tokens}")
        if cast("object", max_delay) is None:
            raise TypeError("max_delay must be a number of seconds, 0 or more; not None")
        delay = checked_seconds("max_delay", max_delay)
        return Pieces(
            partial(self._next_piece, max_tokens, delay),
            partial(self._next_piece_in_task, max_tokens, delay),
        )

    def _next_piece(self, max_tokens: int | None, max_delay: float | None) -> str:
        if self._is_finished:
            raise StopIteration
        if self._run is None or running_asyncio_loop() is not None:
            self._get_ready()
        try:
            return self._reader.get_piece(max_tokens, max_delay)
        except (Ended, TimedOut) as end:
            has_timed_out = isinstance(end, TimedOut)
        self._receive_end(has_timed_out=has_timed_out)
        raise StopIteration

    async def _next_piece_in_task(self, max_tokens: int | None, max_delay: float | None) -> str:
        if self._is_finished:
            raise StopAsyncIteration
        if self._run is None:
            self._begin(is_async=True)
        try:
            return await self._reader.get_piece_in_task(max_tokens, max_delay)
        except (Ended, TimedOut) as end:
            has_timed_out = isinstance(end, TimedOut)
        self._receive_end(has_timed_out=has_timed_out)
        raise StopAsyncIteration

    def _would_hold_up_the_run(self) -> bool:
        loop = running_asyncio_loop()
        if loop is None:
            return False
        if self._run is not None:
            is_here, in_background = self._run.loop is loop, self._run.in_background
        else:
            run_in, for_plain_consumer = self._places
            is_here = run_in == "task"
            in_background = (for_plain_consumer if run_in == "auto" else run_in) == "background"
        return is_here or (in_background and is_background_loop(loop))

    def _receive_end(self, *, has_timed_out: bool) -> None:
        """Take note of the end; raise what the run raised."""
        if has_timed_out:
            self._give_up()
        if closed := self._tokens.end_error():
            raise closed
        self._is_finished = True
        if error := self._error():
            raise error

    def _give_up(self) -> None:
        """A wait has lasted too long: stop the run, and raise."""
        name = "first_token_timeout" if self._reader.is_first else "token_timeout"
        tokens, duration = self.statistics.tokens, self.statistics.duration
        error = self._timeout = StreamTimeoutError(
            f"{self._tokens.name}: nothing came within {name}={self._reader.limit:g} seconds, "
            f"after {tokens} tokens and {duration:.3f} seconds"
        )
        self.close()
        self._is_finished = True
        raise error

    def _error(self) -> BaseException | None:
        if self._timeout is not None:
            return self._timeout
        assert self._run is not None
        return self._tokens.failure or self._run.error

    # -- for the package itself --------------------------------------------------------------

    def _forward(self) -> Callable[[int], None] | None:
        """Yield events from now on, for a consumer that hands them on to a third party.

        What this returns frees the slots of so many events that were taken, each of which
        would else stay occupied; None for a queue that was given and cannot hold them.
        """
        self._feed.select_events()
        if self._select != "event":
            self._select = "event"
            self._reader = cast("Reader[T]", EventReader(self._reader))
        buffer = self._tokens.buffer
        if buffer is None:
            return None
        buffer.hold(len(self._reader.kept))
        return buffer.let_go

    # -- stopping --------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the run and free everything.  Idempotent, never waits.

        A run in a thread ends at its next token or start, one in a task at its next
        await, at once if the model is silent.  Iteration and `result` raise
        `StreamClosedError` from now on, unless the consumer has received the end.

        **Thread safety**: any thread or task, finalizers and signal handlers.
        """
        if not self._is_finished:
            run = self._run
            self._tokens.close(None if run is None else run.cancel)

    async def aclose(self) -> None:
        """`close`, and wait until a run that is a task has cleaned up and is gone.

        A run in a thread is not waited for.

        **Cancellation**: ends the waiting; the stop stands.

        **Thread safety**: any task of any loop; in the run itself it does not wait.
        """
        self.close()
        run = self._run
        if isinstance(run, TaskRun) and not run.is_running_here() and not self._tokens.is_left:
            await run.gone.wait()

    def __enter__(self) -> Self:
        """Start the run; leaving the block closes the stream."""
        self._begin(is_async=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        """Start the run; leaving the block closes the stream and waits as `aclose` does."""
        self._begin(is_async=True)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        """Stop the run: nobody can ask for its tokens any more."""
        self.close()

    # -- what is known ---------------------------------------------------------------------

    @property
    def result(self) -> Any:
        """What the target returned; never waits.

        Raises:
            NotFinishedError: If the consumer has not received the end yet.
            StreamClosedError: If the stream was closed before that.
            BaseException: The run's own exception, if it failed.
        """
        if not self._is_finished:
            if self._tokens.closed:
                raise cast("BaseException", self._tokens.end_error())
            raise NotFinishedError(
                f"{self._tokens.name} has no result before its consumer has received the end"
            )
        if error := self._error():
            raise error
        assert self._run is not None
        return self._run.value

    @property
    def text(self) -> str:
        """The text delivered so far, also after an early stop.

        Without that of attempts which failed and were made anew.
        """
        return self._reader.text

    @property
    def usage(self) -> UsageMetadata | None:
        """The token usage that the models have reported so far, excluded ones too; or None.

        Added up over all model runs, failed attempts included.
        """
        return self._tokens.meter.usage()

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped, in its provider's word: ``"stop"``, ``"length"``, …; or None.

        That of the model run that ended last, of those that are heard.  None before one has
        ended, and if the provider does not say.
        """
        return self._tokens.meter.finish_reason

    @property
    def statistics(self) -> StreamStatistics:
        """What the run has done so far: a live view."""
        return StreamStatistics(self._tokens.meter)


class Pieces:
    """An iterator of joined text; made by `TokenStream.pieces`."""

    __slots__ = ("_get", "_get_in_task")

    def __init__(self, get: Callable[[], str], get_in_task: Callable[[], Awaitable[str]]) -> None:
        self._get = get
        self._get_in_task = get_in_task

    def __iter__(self) -> Self:
        """Return the iterator."""
        return self

    def __aiter__(self) -> Self:
        """Return the iterator."""
        return self

    def __next__(self) -> str:
        """Return the next piece; raises as the stream's ``__next__`` does."""
        return self._get()

    async def __anext__(self) -> str:
        """Return the next piece; raises as the stream's ``__anext__`` does.

        **Cancellation**: what was gathered is kept for the next piece; the run goes on.
        """
        return await self._get_in_task()
