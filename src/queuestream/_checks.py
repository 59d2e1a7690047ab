"""What arguments have to be: checked at the call, with errors that say what is allowed."""

from __future__ import annotations

from math import inf
from threading import TIMEOUT_MAX

__all__ = ["checked_count", "checked_seconds"]


def checked_count(name: str, given: object, *, least: int) -> int:
    """``given`` if it is a whole number from ``least`` up.

    Raises:
        TypeError: If it is no ``int`` (a ``bool`` is none).
        ValueError: If it is less.
    """
    if not isinstance(given, int) or isinstance(given, bool):
        raise TypeError(f"{name} must be an int, not {given!r}")
    if given < least:
        raise ValueError(f"{name} must be {least} or more, not {given}")
    return given


def checked_seconds(name: str, given: object) -> float | None:
    """A time limit as it is used: seconds, or None for none.

    Raises:
        TypeError: If it is neither a number nor None.
        ValueError: If it is negative or no number at all (NaN).
    """
    if given is None:
        return None
    if not isinstance(given, (int, float)) or isinstance(given, bool):
        raise TypeError(f"{name} must be a number of seconds or None, not {given!r}")
    if not given >= 0:
        raise ValueError(f"{name} must be 0 seconds or more, or None; not {given!r}")
    return None if given == inf else float(min(given, TIMEOUT_MAX))
