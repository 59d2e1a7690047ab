"""How an answer ends, whatever carried it: what every surface of the web has in common."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

import anyio

from queuestream._checks import checked_seconds

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

__all__ = ["checked_stream", "close_stream", "seconds"]

_logger = logging.getLogger(__name__)

_CLEAN_UP = 5.0  # seconds that a run which was stopped may take before it is left alone


def checked_stream(given: AsyncIterable[object]) -> AsyncIterable[object]:
    """What is to be sent, if it can be iterated asynchronously.

    Raises:
        TypeError: If it cannot.
    """
    if not hasattr(given, "__aiter__"):
        raise TypeError(
            "stream must be a TokenStream or another asynchronous iterator, "
            f"not {type(cast('object', given)).__name__}"
        )
    return given


def seconds(name: str, given: float | None) -> float | None:
    """A number of seconds above 0, or None.

    Raises:
        TypeError: If it is neither.
        ValueError: If it is 0 or less.
    """
    found = checked_seconds(name, given)
    if found == 0:
        raise ValueError(f"{name} must be more than 0 seconds, or None; not {given!r}")
    return found


async def close_stream(stream: object) -> None:
    """Close a stream, also where everything is cancelled already.

    Waits a few seconds for the clean-up of a run that is a task.  Closing one that is closed
    does nothing.  What an iterator of others raises while it is closed is logged.
    """
    close = getattr(stream, "aclose", None)
    if close is not None:
        try:
            with anyio.move_on_after(_CLEAN_UP, shield=True):
                await close()
        except Exception:
            _logger.exception("what was sent could not be closed")
