"""What a stream measures of itself, and `StreamStatistics`, which shows it.

Everything here is written from several threads and read from any, without a lock: a
reader must never wait, and a writer may be a finalizer that interrupted another writer.
So each number has one writer at a time (a `Counter` belongs to one model run, whose
tokens come one after the other), or is changed under a lock that its writers hold anyway,
or stands in a collection that changes atomically.
"""

from __future__ import annotations

import threading
from copy import deepcopy
from time import monotonic
from typing import TYPE_CHECKING, Protocol, cast

from langchain_core.messages.ai import add_usage

if TYPE_CHECKING:
    from langchain_core.messages.ai import UsageMetadata

__all__ = ["Buffered", "Counter", "Meter", "StreamStatistics"]

_FOLD = 512
"""Waits that are remembered one by one before they are added up."""


class Counter:
    """What one model run has produced.

    Attributes:
        tokens: Its items.
        characters: Those of its text.
        usage: The token usage that it has reported.
    """

    __slots__ = ("characters", "tokens", "usage")

    def __init__(self) -> None:
        self.tokens: int = 0
        self.characters: int = 0
        self.usage: UsageMetadata | None = None

    def note_usage(self, usage: UsageMetadata) -> None:
        """Add usage that the run reports."""
        # A cache hit adds a cost, which is no token.
        reported = {name: number for name, number in usage.items() if name != "total_cost"}
        if reported:
            self.usage = add_usage(self.usage, cast("UsageMetadata", reported))


class Buffered(Protocol):
    """What knows how many items waited in it."""

    peak: int


class _Wait:
    """One time that the run waits for its consumer: measures the ``with`` block that it is in.

    Attributes:
        lasted: How many seconds it lasted; None while it goes on.
    """

    __slots__ = ("_since", "lasted")

    def __init__(self) -> None:
        self._since = monotonic()
        self.lasted: float | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.lasted = monotonic() - self._since

    def until(self, now: float) -> float:
        """How many seconds it had lasted at a moment."""
        lasted = self.lasted
        return max(0.0, now - self._since) if lasted is None else lasted


class Meter:
    """What is measured of one stream.

    Attributes:
        counters: One for each model run.
        began: When the run was started, by the monotonic clock.
        first: When it had its first item.
        ended: When it ended, or its consumer closed.
        merged: Items that were joined to one that waited.  Changed under the buffer's lock.
        peak: The most items that waited at once, where ``buffer`` does not know it.
        buffer: The buffer that the items wait in, if it is ours.
        restarts: One entry for each restart of an attempt.
        finish_reason: Why the last heard model run stopped, in its provider's word.
    """

    __slots__ = (
        "_fold_at",
        "_folding",
        "_waits",
        "began",
        "buffer",
        "counters",
        "ended",
        "finish_reason",
        "first",
        "merged",
        "peak",
        "restarts",
    )

    def __init__(self) -> None:
        self.counters: list[Counter] = []
        self.began: float | None = None
        self.first: float | None = None
        self.ended: float | None = None
        self.merged: int = 0
        self.peak: int = 0
        self.buffer: Buffered | None = None
        self.restarts: list[object] = []
        self.finish_reason: str | None = None
        # Each wait is one entry from its beginning on, so that a reader counts it once.  Lists
        # append, copy and replace a slice in one step: by the GIL, or by a lock of their own.
        self._waits: list[_Wait] = []
        self._fold_at = _FOLD
        self._folding = threading.Lock()  # only ever tried, so that nobody waits for it

    def stop(self) -> None:
        """The run has ended, or its consumer has gone; perhaps just before it began."""
        if self.ended is None:
            self.ended = monotonic()

    def waiting(self) -> _Wait:
        """Measure how long the run waits for its consumer in a ``with`` block."""
        if len(self._waits) > self._fold_at:
            self._fold()
        wait = _Wait()
        self._waits.append(wait)
        return wait

    def _fold(self) -> None:
        """Make one entry of the waits that are over, in one step."""
        if not self._folding.acquire(blocking=False):  # another does it
            return
        try:
            waits = self._waits.copy()
            total = _Wait()
            total.lasted = 0.0
            going_on: list[_Wait] = []
            for wait in waits:
                if wait.lasted is None:
                    going_on.append(wait)
                else:
                    total.lasted += wait.lasted
            self._fold_at = len(going_on) + _FOLD
            self._waits[: len(waits)] = [total, *going_on]
        finally:
            self._folding.release()

    def blocked(self) -> float:
        """Seconds that the run waited for its consumer, those that it waits now included."""
        now = monotonic()
        return sum((wait.until(now) for wait in self._waits.copy()), 0.0)

    def usage(self) -> UsageMetadata | None:
        """The usage that all runs have reported."""
        total: UsageMetadata | None = None
        for counter in tuple(self.counters):
            if counter.usage is not None:
                total = add_usage(total, counter.usage)
        return deepcopy(total)  # parts of it may be a message's


class StreamStatistics:
    """What a stream has done so far; live, so that each look shows the moment.

    **Thread safety**: any thread may look, at any time.
    """

    __slots__ = ("_meter",)

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    @property
    def tokens(self) -> int:
        """The items that the runs which are heard have produced, before merging.

        With ``select="text"`` texts, with ``"message"`` messages, with ``"event"`` events,
        restarts not counted.  An item that waits for a free slot counts.
        """
        return sum(counter.tokens for counter in tuple(self._meter.counters))

    @property
    def characters(self) -> int:
        """The characters of the text among them."""
        return sum(counter.characters for counter in tuple(self._meter.counters))

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the start of the run to its first item; None before that."""
        began, first = self._meter.began, self._meter.first
        return None if began is None or first is None else first - began

    @property
    def duration(self) -> float:
        """Seconds from the start of the run to its end or its close, or until now."""
        began, ended = self._meter.began, self._meter.ended
        if began is None:
            return 0.0
        return max(0.0, (monotonic() if ended is None else ended) - began)

    @property
    def tokens_per_second(self) -> float:
        """`tokens` over `duration`; 0.0 before the start."""
        duration = self.duration
        return self.tokens / duration if duration else 0.0

    @property
    def peak_buffered(self) -> int:
        """The most items that waited for the consumer at once."""
        return self._meter.peak if self._meter.buffer is None else self._meter.buffer.peak

    @property
    def blocked(self) -> float:
        """Seconds that the run waited for the consumer; parallel branches each count."""
        return self._meter.blocked()

    @property
    def merged(self) -> int:
        """The items that ``overflow="merge"`` joined to one that waited already."""
        return self._meter.merged

    @property
    def attempts(self) -> int:
        """1, and 1 more for each retry or fallback that followed delivered text."""
        return 1 + len(self._meter.restarts)

    def __repr__(self) -> str:
        """Show all numbers."""
        numbers = ", ".join(f"{name}={getattr(self, name)!r}" for name in _NUMBERS)
        return f"StreamStatistics({numbers})"


_NUMBERS = (
    "tokens",
    "characters",
    "time_to_first_token",
    "duration",
    "tokens_per_second",
    "peak_buffered",
    "blocked",
    "merged",
    "attempts",
)
