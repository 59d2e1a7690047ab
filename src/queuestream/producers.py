"""Where a run happens: how each kind of run is started, watched and stopped.

=============  ==========================================  ================================
place          the run is                                  and is stopped
=============  ==========================================  ================================
`ThreadRun`    ``invoke`` in a daemon thread of its own    by the handler, at its next token
                                                           or start
`TaskRun`      ``ainvoke`` as a task of the consumer's     by ``task.cancel()``
               asyncio loop, or of the one loop that all
               background runs share
=============  ==========================================  ================================

One run may need both means: LangGraph moves the plain nodes of an ``ainvoke`` to threads.

A run holds its callback handler and its queue, and nothing of its consumer: the consumer
can be collected while it goes on, and that stops it.  However it ends (value, error,
cancellation, a loop that dies before it begins), `Run._finish` is called once.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from queuestream._background import on_background_loop, start_daemon
from queuestream._token_queue import consumer_error, logger
from queuestream._wakeups import Latch, running_asyncio_loop
from queuestream.errors import RunCancelledError, RunStopped

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType

    from queuestream._calls import Call

__all__ = ["Run", "TaskRun", "ThreadRun"]


class Run:
    """One run.

    Attributes:
        value: What the target returned.
        error: What the consumer is to get instead; both are final once the queue has ended.
        gone: Set when nothing of the run is left.
        loop: The loop that it is a task of, if any.
    """

    __slots__ = ("_call", "_is_finished", "error", "gone", "loop", "value")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._is_finished = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.gone = Latch()
        self.loop: asyncio.AbstractEventLoop | None = None

    def cancel(self) -> None:
        """Stop the run by its own means, if it has any.  Idempotent; takes no lock."""

    def is_running_here(self) -> bool:
        """Whether the caller is the run itself."""
        return False

    def _finish(self, value: object = None, error: BaseException | None = None) -> None:
        if self._is_finished:
            return
        self._is_finished = True
        call = self._call
        self.value = value
        self.error = None if error is None else consumer_error(error)
        if isinstance(self.error, _Carried):  # a parent that looked at a child's outcome
            self.error = self.error.error
        if call.tokens.closed and error is not None and not isinstance(error, RunStopped):
            logger.debug("%s: after its close the run ended with %r", call.tokens.name, error)
        call.tokens.end()


class ThreadRun(Run):
    """A run in a daemon thread of its own."""

    __slots__ = ()

    def start(self) -> None:
        """Start the thread."""
        start_daemon(f"run of {self._call.tokens.name}", self._work)

    def _work(self) -> None:
        call = self._call
        try:
            if call.tokens.closed:
                raise RunStopped(call.tokens.name)
            assert call.plain is not None
            value = call.context.run(call.plain)
            if inspect.iscoroutine(value):
                value.close()
                raise TypeError(
                    "the target is a plain function, and returned a coroutine: make it an async "
                    'def, which run_in="background" can iterate in synchronous code'
                )
        except BaseException as error:
            _say_what_helps(error)
            self._finish(error=error)
            call.feed.report_end(error)
        else:
            self._finish(value)
        finally:
            self.gone.set()


def _say_what_helps(error: BaseException) -> None:
    """Where a target turns out to be asynchronous only, name the place for it."""
    if (
        isinstance(error, (TypeError, NotImplementedError))
        and any(word in str(error) for word in ("async", "ainvoke", "synchronous", "sync "))
        and sys.version_info >= (3, 11)
    ):
        error.add_note(
            'queuestream: the run was made with invoke, in a thread; run_in="background" makes it '
            "with ainvoke, for synchronous consumers, too"
        )


class TaskRun(Run):
    """A run as a task, of the consumer's loop or of the shared one.

    A run on the consumer's loop is started by `start_here`, in that loop; one on the shared
    loop by `start_in_background`, from anywhere.
    """

    __slots__ = ("_cancelled", "_task")

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._task: asyncio.Task[None] | None = None
        self._cancelled = threading.Lock()  # taken by the first who cancels, for good

    def start_here(self) -> None:
        """Start the task on the loop that runs in this thread."""
        self.loop = asyncio.get_running_loop()
        work = _Contained(self._work(), self.loop)
        task = self._task = self._call.context.run(self.loop.create_task, work)
        # A loop refers to its tasks weakly only, and the consumer may be gone before it.
        _tasks.add(task)
        task.add_done_callback(self._task_done)
        if self._call.tokens.closed:  # before there was a task to cancel
            self.cancel()

    def start_in_background(self) -> None:
        """Start the task on the shared loop."""
        on_background_loop(self._start_on_background, self._lose)

    def _start_on_background(self) -> None:
        if self._call.tokens.closed:
            self._lose(RunStopped(self._call.tokens.name))
        else:
            self.start_here()

    def _lose(self, error: BaseException) -> None:
        self._finish(error=error)
        self.gone.set()

    async def _work(self) -> None:
        self._task = asyncio.current_task()  # an eager task works before it is returned
        try:
            assert self._call.coroutine is not None
            value = await self._call.coroutine()
        except BaseException as error:
            self._finish(error=error)
            await self._call.feed.report_end_in_task(error)
        else:
            self._finish(value)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        _tasks.discard(task)
        if not self._is_finished:  # cancelled before its first step
            self._finish(error=RunCancelledError("the run was cancelled before it began"))
        self.gone.set()

    def cancel(self) -> None:
        """Cancel the task, once."""
        task, loop = self._task, self.loop
        if task is None or loop is None or not self._cancelled.acquire(blocking=False):
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed, the task with it
            loop.call_soon_threadsafe(task.cancel)

    def is_running_here(self) -> bool:
        """Whether the calling task is the run's."""
        return running_asyncio_loop() is not None and asyncio.current_task() is self._task


_tasks: set[asyncio.Task[None]] = set()


class _Carried(BaseException):
    """A KeyboardInterrupt or SystemExit on its way from a child task to its parent."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class _Contained(Coroutine[Any, Any, Any]):
    """A coroutine whose KeyboardInterrupt and SystemExit end its task, and not the loop.

    asyncio lets these two tear through the loop, out of whatever task they are raised in,
    and LangChain makes tasks for most of its steps.  So the tasks that are made in a step of
    this coroutine are contained, too: for the length of the step the loop has a task factory
    of ours.  Such a child ends with `_Carried`, and its parent, resumed with that, sees the
    original.  (Measured: 0.6 us a step.)
    """

    __slots__ = ("_coroutine", "_is_child", "_loop")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        loop: asyncio.AbstractEventLoop,
        *,
        is_child: bool = False,
    ) -> None:
        self._coroutine = coroutine
        self._loop = loop
        self._is_child = is_child

    def send(self, value: Any) -> Any:
        """Run one step."""
        return self._step(self._coroutine.send, value)

    def throw(self, error: Any, *more: Any) -> Any:
        """Run one step, which begins with an error."""
        if isinstance(error, _Carried):
            error = error.error
        return self._step(self._coroutine.throw, error, *more)

    def close(self) -> None:
        """Drop the coroutine."""
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:  # cr_frame and its like, for those who look
        return getattr(self._coroutine, name)

    def _step(self, advance: Callable[..., Any], *args: Any) -> Any:
        loop = self._loop
        outer = loop.get_task_factory()
        is_ours = _is_containing(outer)  # in an eager child's first step, within its parent's
        if not is_ours:
            loop.set_task_factory(_containing(outer))
        try:
            return advance(*args)
        except (KeyboardInterrupt, SystemExit) as error:
            if self._is_child:
                raise _Carried(error) from error
            raise
        finally:
            if not is_ours:
                loop.set_task_factory(outer)


class _ContainedTasks:
    """A task factory, for one step of a contained coroutine."""

    __slots__ = ("_outer",)

    def __init__(self, outer: Any) -> None:
        self._outer = outer

    def __call__(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any
    ) -> asyncio.Future[Any]:
        contained = _Contained(coroutine, loop, is_child=True)
        if self._outer is not None:
            return self._outer(loop, contained, **kwargs)  # type: ignore[no-any-return]
        return asyncio.Task(contained, loop=loop, **kwargs)


class _EagerTasks:
    """What stands for the task class in a factory of eager tasks, for the length of a step."""

    __slots__ = ("_outer",)

    def __init__(self, outer: Any) -> None:
        self._outer = outer

    def __call__(
        self, coroutine: Any, *, loop: asyncio.AbstractEventLoop, **kwargs: Any
    ) -> asyncio.Task[Any]:
        contained = _Contained(coroutine, loop, is_child=True)
        return self._outer(contained, loop=loop, **kwargs)  # type: ignore[no-any-return]


# eager_task_factory came with Python 3.12.
_eager_code: CodeType | None = getattr(
    getattr(asyncio, "eager_task_factory", None), "__code__", None
)


def _containing(outer: Any) -> Any:
    """A task factory that contains what ``outer`` makes.

    For a factory of eager tasks it is one, too: anyio knows these by their code, and must
    get past them to the task class in their closure.
    """
    if sys.version_info >= (3, 12) and getattr(outer, "__code__", None) is _eager_code:
        tasks: Any = _EagerTasks(outer.__closure__[0].cell_contents)
        return asyncio.create_eager_task_factory(tasks)
    return _ContainedTasks(outer)


def _is_containing(factory: Any) -> bool:
    if isinstance(factory, _ContainedTasks):
        return True
    return (
        _eager_code is not None
        and getattr(factory, "__code__", None) is _eager_code
        and isinstance(factory.__closure__[0].cell_contents, _EagerTasks)
    )
