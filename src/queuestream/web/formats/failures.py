"""What a client may know of a failure: a status and one of a few sentences."""

from __future__ import annotations

from queuestream.errors import RunCancelledError, StreamClosedError

__all__ = ["safe_message", "status_of"]


def status_of(error: BaseException) -> int:
    """The HTTP status of a failure before the first token.

    504 for a timeout, 429 if the provider answered 429, 502 if it answered another error,
    503 if the run was cancelled or closed, 500 for anything else.
    """
    status = getattr(error, "status_code", None)
    if isinstance(error, TimeoutError) or type(error).__name__.endswith("TimeoutError"):
        return 504
    if isinstance(error, (RunCancelledError, StreamClosedError)):
        return 503
    if isinstance(status, int):
        return 429 if status == 429 else 502  # noqa: PLR2004 - HTTP's numbers
    return 500


_MESSAGES = {
    429: "The model takes no more requests at the moment. Try again later.",
    500: "The run failed.",
    502: "The model's provider answered with an error.",
    503: "The run was stopped before it ended.",
    504: "The model did not answer in time.",
}


def safe_message(error: BaseException) -> str:
    """What a client may read of a failure: one of a few sentences, nothing of the error's own."""
    return _MESSAGES[status_of(error)]
