"""The one asyncio loop that background runs share, in a daemon thread of ours.

It starts with the first use, lives as long as the process, and is made anew when it has
died or the process was forked.  Whatever was handed to it is either started on it or
told that it is lost, so that nobody waits for a run that will never be.

Its executor gives each call a daemon thread of its own: synchronous steps of a run may
wait for the consumer there for as long as they like without keeping others, or the
interpreter's exit, from going on.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "RUN_THREAD",
    "death_of",
    "in_daemon_thread",
    "is_background_loop",
    "on_background_loop",
    "start_daemon",
    "use_daemon_threads",
]

R = TypeVar("R")

RUN_THREAD = "queuestream run"
"""How the names of the threads begin that work for a run."""


def start_daemon(name: str, work: Callable[[], object]) -> None:
    """Run ``work`` in a daemon thread of its own."""
    threading.Thread(target=work, name=name, daemon=True).start()


class _Executor(ThreadPoolExecutor):
    """A thread for each call.  Derived, because a loop accepts no other kind of executor."""

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        future: Future[R] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        start_daemon(f"{RUN_THREAD}'s worker", work)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing: no thread waits for work, and none is waited for."""


_executor = _Executor()


def use_daemon_threads(loop: asyncio.AbstractEventLoop) -> None:
    """Give a loop that is ours the same executor: a daemon thread for each call."""
    loop.set_default_executor(_executor)


async def in_daemon_thread(work: Callable[[], R]) -> R:
    """Do what may wait in a thread of its own, in a copy of the caller's context."""
    context = contextvars.copy_context()

    def do() -> R:
        try:
            return context.run(work)
        except StopIteration as error:  # no future may have it, and the caller would wait for ever
            raise RuntimeError(
                "a function that was called in a thread raised StopIteration"
            ) from error

    return await asyncio.get_running_loop().run_in_executor(_executor, do)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
    loop.run_until_complete(loop.shutdown_asyncgens())


_deaths: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, BaseException]
_deaths = weakref.WeakKeyDictionary()


def death_of(loop: asyncio.AbstractEventLoop | None) -> BaseException | None:
    """What a shared loop has died of, if it has."""
    return None if loop is None else _deaths.get(loop)


class _Loop:
    """One life of the loop.

    Attributes:
        lost: What to tell those who were accepted and have not been started; None once
            the loop is dead and accepts nobody.
    """

    def __init__(self) -> None:
        self.lost: dict[object, Callable[[BaseException], None]] | None = {}
        self.lock = threading.Lock()
        # Made here and not in the thread: whoever asks first need not wait for the thread,
        # and is told why where there can be no loop.
        self.loop = asyncio.new_event_loop()
        try:
            use_daemon_threads(self.loop)
            start_daemon("queuestream background loop", self._live)
        except Exception:
            self.loop.close()
            raise
        except BaseException:  # Ctrl-C, once the thread has begun, which closes the loop itself
            self.loop.call_soon_threadsafe(self.loop.stop)
            raise

    def _live(self) -> None:
        loop = self.loop
        error: BaseException
        try:
            loop.run_forever()
        except BaseException as why:  # whatever tore through the loop is told to all
            error = why
        else:
            error = RuntimeError("somebody stopped the background loop that all streams share")
        _deaths[loop] = error
        with self.lock:
            lost, self.lost = self.lost or {}, None
        for tell in lost.values():
            cancelled = asyncio.CancelledError()
            cancelled.__cause__ = error
            tell(cancelled)
        try:
            _cancel_all(loop)  # each run that had begun tells its own consumer
        finally:
            loop.close()

    def accept(self, start: Callable[[], object], lost: Callable[[BaseException], None]) -> bool:
        key = object()

        def begin() -> None:
            if self.lost is not None and self.lost.pop(key, None) is not None:
                start()

        with self.lock:
            if self.lost is None:
                return False
            self.lost[key] = lost
            try:
                self.loop.call_soon_threadsafe(begin)
            except RuntimeError:  # closed a moment ago
                del self.lost[key]
                return False
            except BaseException:  # Ctrl-C: whoever asks is not there any more
                self.lost.pop(key, None)
                raise
        return True


_current: _Loop | None = None
_current_lock = threading.Lock()


def on_background_loop(start: Callable[[], object], lost: Callable[[BaseException], None]) -> None:
    """Call ``start`` on the shared loop; or ``lost``, if the loop dies before that.

    **Thread safety**: any thread; never waits.

    Raises:
        OSError: If there can be no loop: too many open files, say.
        RuntimeError: If there can be no more threads.
    """
    global _current  # noqa: PLW0603 - one loop a process
    while True:
        with _current_lock:
            if _current is None:
                _current = _Loop()
            current = _current
        if current.accept(start, lost):
            return
        with _current_lock:
            if _current is current:
                _current = None


def is_background_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop is the shared one."""
    current = _current
    return current is not None and current.loop is loop


def _forget_in_child() -> None:
    global _current, _current_lock  # noqa: PLW0603 - the parent's thread did not come along
    _current = None
    _current_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
