"""`stream()` and `TokenStream`: a run, the queue that it fills, and their lifetime.

The consumer's side of a stream goes through these states, and never back::

    new --(entered, first iterated)--> running --(received the end)--> finished
     |                                    |
     +----------(close, dropped)----------+--> closed

Two flags hold them, so that none of the two sides needs a lock: ``_is_finished`` is set
by the consumer alone, ``closed`` (of the queue) by whoever closes.  Finished wins.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from janus import Queue as JanusQueue

from queuestream._background import is_background_loop
from queuestream._calls import Call, check_arguments, is_async_only, make_call
from queuestream._token_queue import DEFAULT_MAXSIZE, Ended, TokenQueue
from queuestream._wakeups import current_loop, running_asyncio_loop
from queuestream.errors import NotFinishedError, PlacementError
from queuestream.handlers.queue import FeedHandler
from queuestream.producers import Run, TaskRun, ThreadRun

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from langchain_core.runnables import Runnable, RunnableConfig
    from typing_extensions import Self

__all__ = ["TokenStream", "stream"]

T = TypeVar("T")

RunIn = Literal["auto", "thread", "task", "background"]
_PLACES = ("auto", "thread", "task", "background")

_numbers = itertools.count(1)


def stream(
    target: Runnable[Any, Any] | Callable[..., Any],
    input: Any,  # noqa: A002 - LangChain's name for it
    config: RunnableConfig | None = None,
    *,
    maxsize: int = DEFAULT_MAXSIZE,
    run_in: RunIn = "auto",
    queue: object | None = None,
    **kwargs: Any,
) -> TokenStream[str]:
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
        maxsize: How many tokens the run may be ahead of the consumer; 0 is unbounded.
        run_in: Where the run happens.  ``"thread"``: ``invoke`` in a daemon thread.
            ``"task"``: ``ainvoke`` as a task of the consumer's asyncio loop.
            ``"background"``: ``ainvoke`` on one asyncio loop that all streams share, in a
            daemon thread.  ``"auto"``: thread for a synchronous consumer (background if the
            target is async), task on asyncio, background on trio.  A plain function always
            gets a thread.
        queue: The queue to use instead of a `MixedQueue`: empty, used for nothing else, and
            following janus's protocols.  It excludes ``maxsize``.
        kwargs: More arguments for the target, ``stop=["\n"]`` say.

    Raises:
        TypeError: If ``target`` is neither a ``Runnable`` nor callable, or has no
            ``callbacks`` parameter; if ``maxsize``, ``config`` or ``queue`` are of the wrong
            type; if a keyword is nearly one of the above, or is ``callbacks``, which
            belongs into ``config``.
        ValueError: If ``maxsize`` is negative or given together with ``queue``, ``run_in`` is
            none of the above or cannot serve the target, or ``queue`` is closed, not
            empty, or another stream's.

    **Cancellation**: see `TokenStream`.

    **Thread safety**: the context variables of the caller are copied here, and the run sees
    the copy.
    """
    if run_in not in _PLACES:
        allowed = ", ".join(map(repr, _PLACES))
        raise ValueError(f"run_in must be one of {allowed}; got {run_in!r}")
    check_arguments(target, config, kwargs)
    is_async = is_async_only(target)
    if run_in == "thread" and is_async:
        raise ValueError(
            'run_in="thread" calls invoke, and this target is asynchronous only: use '
            '"background" (for any consumer), "task" (on asyncio) or "auto"'
        )
    what = getattr(target, "__name__", None) or type(target).__name__
    name = f"stream {next(_numbers)} of {what}"
    tokens: TokenQueue[str] = TokenQueue(name, maxsize, queue, is_ours=True)
    feed = FeedHandler(tokens)
    call = make_call(target, input, config, kwargs, feed=feed)
    return TokenStream(
        call,
        run_in="thread" if call.coroutine is None else run_in,
        for_plain_consumer="background" if is_async else "thread",
        given_queue=queue,
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
        "_given_queue",
        "_is_finished",
        "_parts",
        "_places",
        "_run",
        "_tokens",
    )

    def __init__(
        self, call: Call, *, run_in: str, for_plain_consumer: str, given_queue: object | None
    ) -> None:
        self._call: Call | None = call  # until it starts
        self._places = run_in, for_plain_consumer
        self._given_queue = given_queue
        self._tokens: TokenQueue[T] = call.tokens
        self._run: Run | None = None
        self._is_finished = False
        self._parts: list[str] = []

    def __repr__(self) -> str:
        """Name the stream and its state."""
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
        run = self._run = ThreadRun(call) if run_in == "thread" else TaskRun(call)
        self._call = None
        self._tokens.is_open = True
        try:
            if isinstance(run, ThreadRun):
                run.start()
            elif run_in == "task":
                run.start_here()
            else:
                run.start_in_background()
        except BaseException as error:  # no more threads, say
            self._tokens.close()
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
            ConcurrentIterationError: If another consumer waits already.
            PlacementError: If the run is a task of the loop that this call would hold up.
        """
        if self._is_finished:
            raise StopIteration
        if self._would_hold_up_the_run():
            raise PlacementError(
                "the run is a task of this thread's own loop, which a plain for would hold up: "
                'use async for, or run_in="thread"'
            )
        if self._run is None:
            self._begin(is_async=False)
        try:
            item = self._tokens.get()
        except Ended:
            pass
        else:
            self._parts.append(cast("str", item))
            return item
        self._receive_end()  # out here its error has no context of ours
        raise StopIteration

    async def __anext__(self) -> T:
        """Return the next token; wait for it.

        Raises:
            StopAsyncIteration: If the run has ended.
            StreamClosedError: If the stream was closed early, also while this waited.
            ConcurrentIterationError: If another consumer waits already.
            PlacementError: If ``run_in`` or ``queue`` cannot serve this loop.

        **Cancellation**: no token is taken; the run goes on.
        """
        if self._is_finished:
            raise StopAsyncIteration
        if self._run is None:
            self._begin(is_async=True)
        try:
            item = await self._tokens.get_in_task()
        except Ended:
            pass
        else:
            self._parts.append(cast("str", item))
            return item
        self._receive_end()
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

    def _receive_end(self) -> None:
        """Take note of the end; raise what the run raised."""
        if closed := self._tokens.end_error():
            raise closed
        self._is_finished = True
        self._tokens.is_open = False
        if error := self._error():
            raise error

    def _error(self) -> BaseException | None:
        assert self._run is not None
        return self._tokens.failure or self._run.error

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
        """The text delivered so far, also after an early stop."""
        return "".join(self._parts)
