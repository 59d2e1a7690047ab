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
import inspect
import sys
import threading
from typing import TYPE_CHECKING, Any

from queuestream._background import RUN_THREAD, death_of, on_background_loop, start_daemon
from queuestream._containment import Containment, uncarried
from queuestream._loop_end import LOOP_CLOSED, when_closed
from queuestream._token_queue import consumer_error, logger
from queuestream._turns import running_asyncio_loop
from queuestream._wakeups import Latch
from queuestream.errors import RunCancelledError, RunStopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream._calls import Call

__all__ = ["Run", "TaskRun", "ThreadRun"]


class Run:
    """One run.

    Attributes:
        value: What the target returned.
        error: What the consumer is to get instead; both are final once the queue has ended.
        gone: Set when nothing of the run is left.
        loop: The loop that it is a task of, if any.
        in_background: Whether that is the shared one, also before it is known.
    """

    __slots__ = ("_call", "_is_finished", "error", "gone", "in_background", "loop", "value")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._is_finished = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.gone: Latch = Latch()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.in_background: bool = False

    def cancel(self) -> None:
        """Stop the run by its own means, if it has any.  Idempotent; takes no lock."""

    def is_running_here(self) -> bool:
        """Whether the caller is the run itself."""
        return False

    def lose(self, error: BaseException) -> None:
        """The run is no more.  If it has not said so itself, it ended with ``error``."""
        self._finish(error=error)
        self.gone.set()

    def _finish(self, value: object = None, error: BaseException | None = None) -> None:
        if self._is_finished:
            return
        self._is_finished = True
        call = self._call
        if call.tokens.closed:
            # Nobody gets the outcome; an error would keep the run's frames alive.
            if error is not None and not isinstance(error, RunStopped):
                logger.debug("%s: after its close the run ended with %r", call.tokens.name, error)
            return
        self.value = value
        self.error = error
        try:
            self.error = None if error is None else consumer_error(uncarried(error))
            if isinstance(self.error, RunCancelledError) and (death := death_of(self.loop)):
                self.error.__cause__ = death
        finally:  # whatever an error does that is not ours
            call.tokens.end()


class ThreadRun(Run):
    """A run in a daemon thread of its own."""

    __slots__ = ()

    def start(self) -> None:
        """Start the thread."""
        start_daemon(f"{RUN_THREAD} of {self._call.tokens.name}", self._work)

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


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # it is not ours
        return ""


def _say_what_helps(error: BaseException) -> None:
    """Where a target turns out to be asynchronous only, name the place for it."""
    if (
        isinstance(error, (TypeError, NotImplementedError))
        and any(word in _text_of(error) for word in ("async", "ainvoke", "synchronous", "sync "))
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

    __slots__ = ("_cancelled", "_take_back", "_task")

    loop: asyncio.AbstractEventLoop | None

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._task: asyncio.Task[None] | None = None
        self._cancelled = threading.Lock()  # taken by the first who cancels, for good
        self._take_back: Callable[[], object] | None = None

    def start_here(self) -> None:
        """Start the task on the loop that runs in this thread."""
        loop = asyncio.get_running_loop()
        self.loop = loop
        containment = Containment(loop)
        work = containment.contain(self._work(containment))
        task = self._task = self._call.context.run(loop.create_task, work)
        # A loop refers to its tasks weakly only, and the consumer may be gone before it.
        _tasks.add(task)
        task.add_done_callback(self._task_done)
        if not self.in_background:  # which cancels its tasks before it is closed
            self._take_back = when_closed(loop, self._lose_loop)
        if self._call.tokens.closed:  # before there was a task to cancel
            self.cancel()

    def start_in_background(self) -> None:
        """Start the task on the shared loop."""
        self.in_background = True
        on_background_loop(self._start_on_background, self.lose)

    def _start_on_background(self) -> None:
        if self._call.tokens.closed:
            self.lose(RunStopped(self._call.tokens.name))
        else:
            self.start_here()

    async def _work(self, containment: Containment) -> None:
        self._task = asyncio.current_task()  # an eager task works before it is returned
        try:
            assert self._call.coroutine is not None
            value = await self._call.coroutine()
        except BaseException as error:
            self._finish(error=error)
            if running_asyncio_loop() is not self.loop:  # dropped with a loop that was closed
                raise
            await self._call.feed.report_end_in_task(error)
        else:
            self._finish(value)
        # Out here the error, and with it the run's frames, are gone.
        await containment.wait_for_generators()

    def _task_done(self, task: asyncio.Task[None]) -> None:
        _tasks.discard(task)
        if self._take_back is not None:
            self._take_back()
        self.lose(asyncio.CancelledError("before its first step"))

    def cancel(self) -> None:
        """Cancel the task, once."""
        task, loop = self._task, self.loop
        if task is None or loop is None or not self._cancelled.acquire(blocking=False):
            return
        try:
            loop.call_soon_threadsafe(task.cancel)
        except RuntimeError:  # the loop is closed
            self._lose_loop()

    def _lose_loop(self) -> None:
        """Its loop was closed, by somebody who has not cancelled it: it will do nothing more."""
        if self._task is not None:
            _tasks.discard(self._task)
        self.lose(RunCancelledError(LOOP_CLOSED))

    def is_running_here(self) -> bool:
        """Whether the calling task is the run's."""
        return running_asyncio_loop() is not None and asyncio.current_task() is self._task


_tasks: set[asyncio.Task[None]] = set()
