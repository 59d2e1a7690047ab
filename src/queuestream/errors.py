"""Every exception that the package raises on its own account.

::

    QueueStreamError
     ├── ConcurrentIterationError  a RuntimeError: two overlapping ``next`` calls
     ├── NotFinishedError          a RuntimeError: ``result`` before the consumer had the end
     ├── StreamClosedError         a RuntimeError: iteration or ``result`` after an early close
     ├── StreamTimeoutError        a TimeoutError: a wait of the consumer lasted too long
     ├── RunCancelledError         a RuntimeError: somebody else cancelled the run
     ├── PlacementError            a ValueError and RuntimeError: the run cannot happen there
     └── RelayError                of `queuestream.relay`; also what Redis refuses
          ├── RelayUnavailableError  a ConnectionError: Redis stays away
          ├── GapError             a LookupError: entries that a reader has not got are gone
          ├── ProducerLostError    the writer died
          ├── ProducerReplacedError  another writer has taken over
          ├── EntryTooLargeError   a ValueError: an event is larger than an entry may be
          └── RemoteRunError       a RuntimeError: the run failed, in another process

    RunStopped                     a BaseException, only inside a synchronous run that was stopped

The run's own exception is never wrapped in one of these: it is raised unchanged,
after the tokens that came before it.  A wrong argument is a plain ``TypeError`` or
``ValueError`` at the call.
"""

from __future__ import annotations

__all__ = [
    "ConcurrentIterationError",
    "EntryTooLargeError",
    "GapError",
    "NotFinishedError",
    "PlacementError",
    "ProducerLostError",
    "ProducerReplacedError",
    "QueueStreamError",
    "RelayError",
    "RelayUnavailableError",
    "RemoteRunError",
    "RunCancelledError",
    "RunStopped",
    "StreamClosedError",
    "StreamTimeoutError",
]


class QueueStreamError(Exception):
    """The root of the package's exceptions."""


class ConcurrentIterationError(QueueStreamError, RuntimeError):
    """A second consumer asked for an item while the first was still waiting for one.

    The first consumer is not disturbed, and no item is lost.
    """


class NotFinishedError(QueueStreamError, RuntimeError):
    """``result`` was read before the consumer had received the end of the stream."""


class StreamClosedError(QueueStreamError, RuntimeError):
    """The stream was closed early.

    Raised by iteration and by ``result`` after an early close, in a consumer that was
    waiting when another thread or task closed, and inside an asynchronous run that asks
    for more after its consumer has gone.
    """


class StreamTimeoutError(QueueStreamError, TimeoutError):
    """One wait of the consumer lasted longer than it was allowed to; the run was stopped."""


class RunCancelledError(QueueStreamError, RuntimeError):
    """The run was cancelled by somebody other than its consumer; ``__cause__`` says how."""


class PlacementError(QueueStreamError, ValueError, RuntimeError):
    """The run cannot happen where ``run_in`` or ``queue`` would put it.

    A ``ValueError``, because another value of the argument would do, and a
    ``RuntimeError``, because whether it does depends on the thread or loop that asks, as
    with asyncio's own complaints about a wrong loop.  The message names the alternatives.
    """


class RelayError(QueueStreamError):
    """Something of `queuestream.relay`; by itself, what Redis refused."""


class RelayUnavailableError(RelayError, ConnectionError):
    """Redis stayed away for longer than ``outage``; a run that was written is stopped."""


class GapError(RelayError, LookupError):
    """Entries that a reader has not got are gone: trimmed, expired, or lost by Redis.

    What the reader has is right as far as it goes; the rest cannot be had.
    """


class ProducerLostError(RelayError):
    """The writer of a run died: its lease has run out, and everything it wrote was read.

    A restarted writer goes on under the same id; subscribe again with the last event's id.
    """


class ProducerReplacedError(RelayError):
    """Another writer has begun under the same id: told to the earlier one, whose run is stopped."""


class EntryTooLargeError(RelayError, ValueError):
    """An event is larger, as JSON, than ``max_entry`` allows; the run is stopped."""


class RemoteRunError(RelayError, RuntimeError):
    """The run failed in the process that wrote it.

    Attributes:
        type_name: The name of its own error's class.
        message: That error's message.
        status: The HTTP status that tells a client of it; None if its writer has not said.
        retry_after: Seconds after which the provider lets a client try again, if it has said.
    """

    def __init__(
        self,
        type_name: str,
        message: str,
        *,
        status: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(type_name, message)
        self.type_name = type_name
        self.message = message
        self.status = status
        self.retry_after = retry_after

    def __str__(self) -> str:
        """Both."""
        return f"{self.type_name}: {self.message}" if self.message else self.type_name


class RunStopped(BaseException):
    """Ends a synchronous run whose consumer has gone.

    Raised inside the run, from our callback, at its next token or start.  It is no
    ``Exception``, so that retries, fallbacks and ``except Exception`` let it pass.  It
    never reaches the consumer that asked for the stop; let it pass where you meet it.

    Attributes:
        stream: The name of the stream or handler that was closed.  Where streams are
            nested, it tells whose stop this is.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(f"{stream} was closed by its consumer")
        self.stream = stream
