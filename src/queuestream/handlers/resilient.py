"""`ResilientStreamHandler`: tries again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import tenacity

from queuestream._checks import checked_count, checked_seconds
from queuestream._token_queue import logger
from queuestream.handlers.base import StreamHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from langchain_core.outputs import LLMResult

    from queuestream.events import About

__all__ = ["ResilientStreamHandler"]

_ON_EXHAUSTED = ("keep", "drop", "raise")

_LONGEST = 60.0
"""Seconds that the wait for the next try grows to."""


class _Kept:
    """What could not be delivered yet, of one run.

    Attributes:
        text: That.
        joined: What of it is in the delivery that goes on.
    """

    __slots__ = ("__weakref__", "joined", "text")

    def __init__(self) -> None:
        self.text = ""
        self.joined = ""


class ResilientStreamHandler(StreamHandler):
    """Delivers a token again where its delivery failed.

    The waits between the tries grow exponentially and have jitter.  On asynchronous runs
    they are awaited, also where ``on_token`` is a plain function; on synchronous ones the
    run's thread sleeps.

    >>> class Socket:
    ...     def __init__(self):
    ...         self.is_broken, self.sent = True, []
    ...
    ...     def send(self, token):
    ...         self.is_broken = not self.is_broken
    ...         if not self.is_broken:
    ...             raise ConnectionError("broken")
    ...         self.sent.append(token)
    >>> socket = Socket()
    >>> ResilientStreamHandler(socket.send, backoff=0.001)("Hi")
    >>> socket.sent
    ['Hi']

    Args:
        on_token: See `StreamHandler`.  Have the function itself here, and other handlers around
            this one: what they have joined or counted would be so again at each try.
        max_retries: How often a delivery is tried again after it failed.
        backoff: Seconds to wait before the first retry; twice as long before each that
            follows, up to a minute, and up to ``backoff`` more at random.
        retry_on: The exceptions that are worth another try.  Others are errors of
            ``on_token``, as of `StreamHandler`.
        on_exhausted: What happens to a token when the last try has failed.  ``"keep"``: it is
            joined to the next delivery; what is left at the end of the run is tried once
            more, and if that fails, it is logged and found in ``undelivered``.  ``"drop"``:
            it is counted and logged.  ``"raise"``: the exception ends the run.
        raise_error: As of `StreamHandler`; true with ``on_exhausted="raise"``.

    Attributes:
        retry_count: The number of retries that were made.
        dropped_count: The number of texts that were not delivered.
        undelivered: With ``"keep"``, what the last run that ended in this way left over.

    Raises:
        TypeError: If ``on_token`` is not callable, ``max_retries`` no integer, ``backoff`` no
            number or ``retry_on`` neither an exception class nor a tuple of them.
        ValueError: If ``max_retries`` or ``backoff`` is negative or ``on_exhausted`` none of the
            above.

    **Cancellation**: ends the waiting for the next try, as if the one before had been the last.

    **Thread safety**: as of `StreamHandler`.
    """

    holds_back: bool = True

    def __init__(
        self,
        on_token: Callable[[str], object],
        max_retries: int = 3,
        *,
        backoff: float = 0.1,
        retry_on: type[Exception] | tuple[type[Exception], ...] = (ConnectionError,),
        on_exhausted: Literal["keep", "drop", "raise"] = "keep",
        raise_error: bool = False,
    ) -> None:
        if on_exhausted not in _ON_EXHAUSTED:
            allowed = ", ".join(map(repr, _ON_EXHAUSTED))
            raise ValueError(f"on_exhausted must be one of {allowed}; got {on_exhausted!r}")
        super().__init__(on_token, raise_error=raise_error or on_exhausted == "raise")
        self.max_retries: int = checked_count("max_retries", max_retries, least=0)
        seconds = checked_seconds("backoff", backoff)
        if seconds is None:
            raise TypeError(f"backoff must be a finite number of seconds, not {backoff!r}")
        self.backoff = seconds
        self.retry_on: tuple[type[Exception], ...] = _checked_exceptions(retry_on)
        self.on_exhausted = on_exhausted
        self.may_wait = True
        self.retry_count: int = 0
        self.dropped_count: int = 0
        self.undelivered: str = ""
        options: dict[str, Any] = {
            "stop": tenacity.stop_after_attempt(1 + max_retries),
            "wait": tenacity.wait_exponential(multiplier=seconds, max=_LONGEST)
            + tenacity.wait_random(0, seconds),
            "retry": tenacity.retry_if_exception_type(self.retry_on),
            "before_sleep": self._note_retry,
            "reraise": True,
        }
        self._retrying = tenacity.Retrying(**options)
        self._retrying_in_task = tenacity.AsyncRetrying(sleep=asyncio.sleep, **options)

    def _note_retry(self, _: tenacity.RetryCallState) -> None:
        self.retry_count += 1

    def _new_state(self, about: About) -> _Kept:
        return _Kept()

    def _texts_of_token(self, state: _Kept, token: str) -> Iterable[str]:
        state.joined, state.text = state.text, ""
        return (state.joined + token,)

    def _texts_at_end(self, state: _Kept, response: LLMResult | None) -> Iterable[str]:
        return (state.text,) if state.text else ()

    def _deliver(self, text: str, run_id: UUID | None) -> None:
        failure: Exception | None = None  # of the try before, while the next is waited for
        deliver = super()._deliver

        def attempt() -> None:
            nonlocal failure
            failure = None
            try:
                deliver(text, run_id)
            except self.retry_on as error:
                failure = error
                raise

        try:
            self._retrying(attempt)
        except self.retry_on as error:
            self._exhausted(text, run_id, error)
        except BaseException as error:
            self._broken_off(text, run_id, error, failure)
            raise

    async def _deliver_in_task(self, text: str, run_id: UUID | None, loop: object) -> None:
        failure: Exception | None = None
        deliver = super()._deliver_in_task

        async def attempt() -> None:
            nonlocal failure
            failure = None
            try:
                await deliver(text, run_id, loop)
            except self.retry_on as error:
                failure = error
                raise

        try:
            await self._retrying_in_task(attempt)
        except self.retry_on as error:
            self._exhausted(text, run_id, error)
        except BaseException as error:
            self._broken_off(text, run_id, error, failure)
            raise

    def _broken_off(
        self, text: str, run_id: UUID | None, error: BaseException, failure: Exception | None
    ) -> None:
        """A delivery came to no end, or to one that is not worth another try."""
        state: _Kept | None = self._open_state(run_id)
        if failure is not None:
            if self.on_exhausted != "raise":
                self._exhausted(text, run_id, failure)
        elif state is not None:
            state.text = state.joined  # the error is the token's, not of what was kept before it

    def _exhausted(self, text: str, run_id: UUID | None, error: Exception) -> None:
        """The last try has failed."""
        if self.on_exhausted == "raise":
            raise error
        state: _Kept | None = self._open_state(run_id)
        if self.on_exhausted == "keep" and state is not None:
            state.text = text
            return
        self.dropped_count += 1
        if self.on_exhausted == "keep":
            self.undelivered = text
        tries = 1 + self.max_retries
        logger.error("%d characters were not delivered after %d tries: %r", len(text), tries, error)


def _checked_exceptions(given: object) -> tuple[type[Exception], ...]:
    classes: tuple[object, ...] = given if isinstance(given, tuple) else (given,)
    found = tuple(
        each for each in classes if isinstance(each, type) and issubclass(each, Exception)
    )
    if len(found) < len(classes):
        raise TypeError(
            f"retry_on must be a class of exceptions, or a tuple of such classes; not {given!r}"
        )
    return found
