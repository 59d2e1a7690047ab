"""Being told that an asyncio loop was closed, by somebody who has not cancelled its tasks.

asyncio has no call for that, and a loop that is closed drops all that it had scheduled without a
word.  So each loop that matters has a ``close`` of its own, which does the same, and then tells.
"""

from __future__ import annotations

import itertools
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["LOOP_CLOSED", "when_closed"]

_logger = logging.getLogger("queuestream")

LOOP_CLOSED = "the event loop that the run was on was closed"
"""What a consumer is told then."""

_numbers = itertools.count()


class _Close:
    """What a loop has for ``close``."""

    __slots__ = ("_loop", "told")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.told: dict[int, Callable[[], object]] = {}

    def __call__(self) -> None:
        loop = self._loop
        own = vars(loop)
        own.pop("close", None)  # and with it the cycle
        try:
            loop.close()
        finally:
            if loop.is_closed():
                told, self.told = self.told, {}
                for tell in tuple(told.values()):
                    try:
                        tell()
                    except Exception:  # noqa: PERF203 - the others are to hear of it, too
                        _logger.exception("whoever was told that a loop was closed has failed")
            else:  # it runs, and says so
                own["close"] = self


def _nothing() -> None:
    """There is nothing to take back."""


def when_closed(
    loop: asyncio.AbstractEventLoop, tell: Callable[[], object]
) -> Callable[[], object]:
    """Have something called when a loop is closed.

    A loop that has no attributes of its own, or somebody else's ``close``, tells nothing.

    Args:
        loop: The loop that runs in this thread.
        tell: Called in the thread that closes the loop, or in a finalizer; must neither wait
            nor raise.

    Returns:
        What takes that back.  Idempotent; any thread.
    """
    own: dict[str, Any] = getattr(loop, "__dict__", {})
    close = own.get("close")
    if close is None:
        close = own["close"] = _Close(loop)
    elif not isinstance(close, _Close):
        return _nothing
    number = next(_numbers)
    close.told[number] = tell
    return partial(close.told.pop, number, None)
