"""`create_safe_handler`: errors of the callback stay away from the run."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from queuestream._token_queue import logger
from queuestream.handlers.base import StreamHandler, awaited, is_async

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from langchain_core.outputs import LLMResult

    from queuestream.events import About

__all__ = ["create_safe_handler"]


def create_safe_handler(
    on_token: Callable[[str], object], *, on_error: Callable[[Exception], object] | None = None
) -> StreamHandler:
    """Make a handler that goes on after an exception in its callback.

    The exception is logged with its traceback (logger ``queuestream``), and the token for
    which it was raised is not passed on again; see `ResilientStreamHandler` for that.

    >>> def fail(token):
    ...     raise ValueError(token)
    >>> errors = []
    >>> handler = create_safe_handler(fail, on_error=errors.append)
    >>> handler("Hi")
    >>> errors
    [ValueError('Hi')]

    Args:
        on_token: See `StreamHandler`.
        on_error: Called with each exception, after it was logged; may be a coroutine
            function.  If it raises one itself, that is logged.

    Raises:
        TypeError: If ``on_token`` or ``on_error`` is not callable.

    **Thread safety**: as of `StreamHandler`.
    """
    return _SafeStreamHandler(on_token, on_error)


class _SafeStreamHandler(StreamHandler):
    def __init__(
        self, on_token: Callable[[str], object], on_error: Callable[[Exception], object] | None
    ) -> None:
        if on_error is not None and not callable(on_error):
            raise TypeError(f"on_error must be a function of one exception or None: {on_error!r}")
        super().__init__(on_token)
        self.raise_error = False  # also where that of a handler within would end the run
        self.may_wait = self.may_wait or is_async(on_error)
        self._on_error = on_error

    def _begin(self, about: About) -> None:
        try:
            super()._begin(about)
        except Exception as error:
            self._caught(error, about.run_id)

    async def _begin_in_task(self, about: About, loop: object) -> None:
        try:
            await super()._begin_in_task(about, loop)
        except Exception as error:
            await self._caught_in_task(error)

    def _finish(self, run_id: UUID | None, response: LLMResult | None) -> None:
        try:
            super()._finish(run_id, response)
        except Exception as error:
            self._caught(error, run_id)

    async def _finish_in_task(
        self, run_id: UUID | None, loop: object, response: LLMResult | None
    ) -> None:
        try:
            await super()._finish_in_task(run_id, loop, response)
        except Exception as error:
            await self._caught_in_task(error)

    def _deliver(self, text: str, run_id: UUID | None) -> None:
        try:
            super()._deliver(text, run_id)
        except Exception as error:
            self._caught(error, run_id)

    async def _deliver_in_task(self, text: str, run_id: UUID | None, loop: object) -> None:
        try:
            await super()._deliver_in_task(text, run_id, loop)
        except Exception as error:
            await self._caught_in_task(error)

    def _caught(self, error: Exception, run_id: UUID | None) -> None:
        logger.error("an exception in the callback %r", self.on_token, exc_info=error)
        if self._on_error is None:
            return
        try:
            waiting: Any = self._on_error(error)
            if inspect.isawaitable(waiting):
                # One that may not run is closed, not what it is wrapped in.
                coroutine = waiting if inspect.iscoroutine(waiting) else awaited(waiting)
                self.finish_in_thread(coroutine, run_id)
        except Exception:
            logger.exception("an exception in on_error %r", self._on_error)

    async def _caught_in_task(self, error: Exception) -> None:
        logger.error("an exception in the callback %r", self.on_token, exc_info=error)
        if self._on_error is None:
            return
        try:
            waiting: Any = self._on_error(error)
            if inspect.isawaitable(waiting):
                await waiting
        except Exception:
            logger.exception("an exception in on_error %r", self._on_error)
