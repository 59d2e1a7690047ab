"""The tasks and generators of one asynchronous run, kept from the loop that it is on.

Two things of a run would otherwise reach a loop that may not be ours:

KeyboardInterrupt and SystemExit
    asyncio lets these tear through the loop, out of whatever task they are raised in, and
    LangChain makes tasks for most of its steps.  Here they end the task, and are raised in
    whoever awaits it.

Generators that were not closed
    LangChain leaves a model's asynchronous generator where an exception hits it.  Its
    clean-up (the socket) is then a task that nobody waits for.  Here the run waits for it.

So for the length of each step of the run, the loop has a task factory and the thread has a
finalizer for asynchronous generators that are ours.  (Measured: 1 us a step.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from queuestream._turns import running_asyncio_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from types import CodeType

__all__ = ["Containment", "uncarried"]

T = TypeVar("T")

logger = logging.getLogger("queuestream")


class Containment:
    """What one run has made on one loop.

    Args:
        loop: The loop.
    """

    __slots__ = ("_closing", "finalizer", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.finalizer = self._drop
        self._closing: set[asyncio.Task[None]] = set()

    def contain(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Contain a coroutine, and with it all tasks that are made in its steps."""
        return _Contained(coroutine, self)

    async def wait_for_generators(self) -> None:
        """Wait until the generators are closed that were dropped before.

        **Cancellation**: ends the waiting; the generators go on closing.
        """
        await asyncio.sleep(0)  # what was dropped in this thread begins to close
        while self._closing:
            await asyncio.wait(set(self._closing))

    def _drop(self, generator: AsyncGenerator[Any, Any]) -> None:
        # As asyncio's own finalizer does; any thread, the collector may call.
        if running_asyncio_loop() is self.loop:
            self.loop.call_soon(self._close, generator)
        elif not self.loop.is_closed():
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._close, generator)

    def _close(self, generator: AsyncGenerator[Any, Any]) -> None:
        task = self.loop.create_task(_closed(generator))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _closed(generator: AsyncGenerator[Any, Any]) -> None:
    """Close a generator that nobody waits for; what it raises must not end its loop."""
    try:
        await generator.aclose()
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:
        logger.debug("a generator that was dropped raised %r in its clean-up", error)


class _Carried(BaseException):
    """A KeyboardInterrupt or SystemExit on its way out of a task."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


def uncarried(error: BaseException) -> BaseException:
    """The error itself, also from within a group."""
    if isinstance(error, _Carried):
        return error.error
    members = getattr(error, "exceptions", ())
    if isinstance(members, (tuple, list)) and any(
        isinstance(member, _Carried) for member in members
    ):
        group: Any = error
        return group.derive([uncarried(member) for member in members])  # type: ignore[no-any-return]  # no such type before 3.11
    return error


class _Task(asyncio.Task[T]):
    """A task whose outcome is the error, not how it was carried."""

    def result(self) -> T:
        if self.done() and not self.cancelled() and (error := self.exception()) is not None:
            raise error
        return super().result()

    def exception(self) -> BaseException | None:
        error = super().exception()
        return error.error if isinstance(error, _Carried) else error

    def set_name(self, value: object) -> None:
        if value is not None:  # as Python 3.13.0 says wherever there is a task factory
            super().set_name(value)


class _Contained(Coroutine[Any, Any, T]):
    """A coroutine, step by step in its containment."""

    __slots__ = ("_coroutine", "_home", "_is_child")

    def __init__(
        self, coroutine: Coroutine[Any, Any, T], home: Containment, *, is_child: bool = False
    ) -> None:
        self._coroutine = coroutine
        self._home = home
        self._is_child = is_child

    def send(self, value: Any) -> Any:
        """Run one step."""
        return self._step(self._coroutine.send, value)

    def throw(self, error: Any, *more: Any) -> Any:
        """Run one step, which begins with an error."""
        if isinstance(error, _Carried):  # from a task that a factory of the user's made
            error = error.error
        try:
            return self._step(self._coroutine.throw, error, *more)
        finally:
            # This frame is in the error's traceback: a cycle, in which a cancelled run's
            # generators and sockets would wait for the collector.  So, too, in `_step`.
            del error, more

    def close(self) -> None:
        """Drop the coroutine."""
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:  # cr_frame and its like, for those who look
        return getattr(self._coroutine, name)

    def _step(self, advance: Callable[..., Any], *args: Any) -> Any:
        loop = self._home.loop
        outer_factory = loop.get_task_factory()
        outer_finalizer = sys.get_asyncgen_hooks().finalizer
        factory: Any = None
        if not _is_containing(outer_factory):  # it is in an eager child's first step
            factory = _containing(outer_factory, self._home)
            loop.set_task_factory(factory)
        sys.set_asyncgen_hooks(finalizer=self._home.finalizer)
        try:
            return advance(*args)
        except (KeyboardInterrupt, SystemExit) as error:
            if self._is_child:
                raise _Carried(error) from error
            raise
        finally:
            del args
            sys.set_asyncgen_hooks(finalizer=outer_finalizer)
            if factory is not None and loop.get_task_factory() is factory:
                loop.set_task_factory(outer_factory)


class _ContainedTasks:
    """A task factory, for one step of a contained coroutine."""

    __slots__ = ("_home", "_outer")

    def __init__(self, outer: Any, home: Containment) -> None:
        self._outer = outer
        self._home = home

    def __call__(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any
    ) -> asyncio.Future[Any]:
        contained = _Contained[Any](coroutine, self._home, is_child=True)
        if self._outer is not None:
            return self._outer(loop, contained, **kwargs)  # type: ignore[no-any-return]  # user's
        return _Task(contained, loop=loop, **kwargs)


class _EagerTasks:
    """What stands for the task class in a factory of eager tasks, for the length of a step."""

    __slots__ = ("_home", "_outer")

    def __init__(self, outer: Any, home: Containment) -> None:
        self._outer = _Task if outer is asyncio.Task else outer
        self._home = home

    def __call__(
        self, coroutine: Any, *, loop: asyncio.AbstractEventLoop, **kwargs: Any
    ) -> asyncio.Task[Any]:
        contained = _Contained[Any](coroutine, self._home, is_child=True)
        return self._outer(contained, loop=loop, **kwargs)


# eager_task_factory came with Python 3.12.
_eager_code: CodeType | None = getattr(
    getattr(asyncio, "eager_task_factory", None), "__code__", None
)


def _containing(outer: Any, home: Containment) -> Any:
    """A task factory that contains what ``outer`` makes.

    For a factory of eager tasks it is one, too: anyio knows these by their code, and must
    get past them to the task class in their closure.
    """
    if sys.version_info >= (3, 12) and getattr(outer, "__code__", None) is _eager_code:
        tasks: Any = _EagerTasks(outer.__closure__[0].cell_contents, home)
        return asyncio.create_eager_task_factory(tasks)
    return _ContainedTasks(outer, home)


def _is_containing(factory: Any) -> bool:
    if isinstance(factory, _ContainedTasks):
        return True
    return (
        _eager_code is not None
        and getattr(factory, "__code__", None) is _eager_code
        and isinstance(factory.__closure__[0].cell_contents, _EagerTasks)
    )
