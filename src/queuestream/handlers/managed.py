"""`ManagedStreamHandler`: closes what it was given."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, cast

from queuestream._token_queue import logger
from queuestream.handlers.base import StreamHandler, awaited

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["ManagedStreamHandler"]


class ManagedStreamHandler(StreamHandler):
    """A handler that is a context manager, and closes resources at the end of its block.

    ``with`` calls ``close()`` of each, or, of one that has none, ``aclose()``; ``async with``
    prefers ``aclose()``.  What has to be awaited is, in synchronous code as a coroutine of
    `StreamHandler` is.  The last resource is closed first, and each is closed whatever
    happened in the block or to the others.

    >>> import io
    >>> file = io.StringIO()
    >>> with ManagedStreamHandler(file.write, file) as handler:
    ...     handler("Hi")
    >>> file.closed
    True

    Args:
        on_token: See `StreamHandler`.
        resources: What to close: anything with ``close()`` or ``aclose()``.
        raise_error: As of `StreamHandler`.

    Raises:
        TypeError: If ``on_token`` is not callable, or a resource has neither method.
        Exception: At the end of the block, the first error of a resource that fails to
            close, unless the block has an error of its own.  Each is logged with its traceback.

    **Cancellation**: is raised in what is being closed; the others are closed after that.

    **Thread safety**: as of `StreamHandler`; the block is one thread's or task's.
    """

    def __init__(
        self, on_token: Callable[[str], object], *resources: object, raise_error: bool = False
    ) -> None:
        for resource in resources:
            if not any(callable(getattr(resource, name, None)) for name in ("close", "aclose")):
                raise TypeError(f"a resource must have close() or aclose(); {resource!r} has none")
        super().__init__(on_token, raise_error=raise_error)
        self.resources = resources

    def __enter__(self) -> Self:
        """Return the handler."""
        return self

    async def __aenter__(self) -> Self:
        """Return the handler."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the resources, the last one first."""
        _raise_first([self._close(resource) for resource in reversed(self.resources)], error)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the resources, the last one first."""
        failures = [await self._close_in_task(resource) for resource in reversed(self.resources)]
        _raise_first(failures, error)

    def _close(self, resource: object) -> BaseException | None:
        """Close a resource; return what it raised."""
        try:
            waiting = _method(resource, "close", "aclose")()
            if inspect.isawaitable(waiting):
                # One that may not run is closed, not what it is wrapped in.
                self.finish_in_thread(waiting if inspect.iscoroutine(waiting) else awaited(waiting))
        except BaseException as failure:
            return _logged(failure, resource)
        return None

    async def _close_in_task(self, resource: object) -> BaseException | None:
        try:
            waiting = _method(resource, "aclose", "close")()
            if inspect.isawaitable(waiting):
                await waiting
        except BaseException as failure:
            return _logged(failure, resource)
        return None


def _method(resource: object, *names: str) -> Callable[[], object]:
    """The first of the methods that a resource has."""
    methods = (getattr(resource, name, None) for name in names)
    return cast("Callable[[], object]", next(filter(callable, methods)))


def _logged(failure: BaseException, resource: object) -> BaseException:
    logger.error("%r failed to close", resource, exc_info=failure)
    return failure


def _raise_first(failures: list[BaseException | None], error: BaseException | None) -> None:
    """Raise what is no ``Exception``, a cancellation say; else the first, if nothing else is."""
    happened = [failure for failure in failures if failure is not None]
    for failure in happened:
        if not isinstance(failure, Exception):
            raise failure
    if happened and error is None:
        raise happened[0]
