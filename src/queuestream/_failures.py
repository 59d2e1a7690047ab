"""What a client may know of a failure: a status, one of a few sentences, and when to try again.

Errors are known by what most clients of providers have in common: a ``status_code``, a ``code``
or a ``response`` with one, and by their names.  An error that says nothing is judged by its
cause, so that one which a chain has wrapped is still that of the provider.  One that has come
through a relay says what its writer found.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from queuestream.errors import RemoteRunError, RunCancelledError, StreamClosedError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["retry_after", "safe_message", "status_of"]

_MESSAGES = {
    400: "The input is too long for the model.",
    429: "The model takes no more requests at the moment. Try again later.",
    500: "The run failed.",
    502: "The model's provider answered with an error, or could not be reached.",
    503: "The run was stopped before it ended, or the model is overloaded. Try again later.",
    504: "The model did not answer in time.",
}
_OWN = {408: 504, 429: 429, 503: 503, 504: 504, 529: 503}
"""Our status for that of a provider, 502 for any other.  529 is Anthropic's for overloaded."""
_DEPTH = 8  # causes that are looked at
_LONGEST_WAIT = 86_400  # seconds


def status_of(error: BaseException) -> int:
    """The HTTP status of a failure before the first token.

    504 for a timeout; 429 if the provider answered 429; 503 if the run was cancelled or closed,
    or the provider is overloaded (its 503 or 529); 502 if it answered another error, or could not
    be reached; 400 if it is LangChain's ``ContextOverflowError``; 500 for anything else.
    """
    for cause in _causes(error):
        if (status := _status_of_one(cause)) is not None:
            return status
    return 500


def safe_message(error: BaseException) -> str:
    """What a client may read of a failure: one of a few sentences, nothing of the error's own."""
    return _MESSAGES[status_of(error)]


def retry_after(error: BaseException) -> int | None:
    """Whole seconds after which the provider lets a client try again; None if it does not say."""
    for cause in _causes(error):
        if isinstance(cause, RemoteRunError):
            return cause.retry_after
        headers: Any = getattr(getattr(cause, "response", None), "headers", None)
        try:
            seconds = float(headers["retry-after"])
        except (KeyError, TypeError, ValueError):  # a date, or nothing
            continue
        if 0 <= seconds <= _LONGEST_WAIT:
            return math.ceil(seconds)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(_DEPTH):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__


def _status_of_one(error: BaseException) -> int | None:
    if isinstance(error, RemoteRunError):  # of another version, perhaps, which knows others
        return error.status if error.status in _MESSAGES else None
    names = {base.__name__ for base in type(error).__mro__}
    if isinstance(error, TimeoutError) or any(
        name.endswith(("Timeout", "TimeoutError", "TimeoutException")) for name in names
    ):
        return 504
    if isinstance(error, (RunCancelledError, StreamClosedError)):
        return 503
    # asyncio's and trio's, of a run that a relay was writing; Google has an error of that name.
    if names & {"CancelledError", "Cancelled"} and not isinstance(error, Exception):
        return 503
    if "ContextOverflowError" in names:
        return 400
    if (told := _told_by(error)) is not None:
        return _OWN.get(told, 502)
    # The last is what openai raises for an error that its server told in the middle of an answer.
    known = {"APIConnectionError", "TransportError", "APIError"}
    return 502 if isinstance(error, ConnectionError) or names & known else None


def _told_by(error: Any) -> int | None:
    """The status that a provider answered with, in one of the forms that its clients keep it."""
    response = getattr(error, "response", None)
    candidates = [
        getattr(error, "status_code", None),  # openai, anthropic
        getattr(response, "status_code", None),  # httpx, requests
        getattr(error, "code", None),  # google
    ]
    if isinstance(response, dict):  # botocore
        metadata = response.get("ResponseMetadata")
        candidates.append(metadata.get("HTTPStatusCode") if isinstance(metadata, dict) else None)
    for found in candidates:
        if isinstance(found, int) and 400 <= found < 600:  # noqa: PLR2004 - HTTP's errors
            return int(found)
    # A server of events tells an error in the middle of an answer that began with 200.
    return 502 if candidates[0] == 200 else None  # noqa: PLR2004
