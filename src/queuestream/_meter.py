"""What a stream measures of itself, and `StreamStatistics`, which shows it.

Everything here is written from several threads and read from any, without a lock: a
reader must never wait, and a writer may be a finalizer that interrupted another writer.
So each number has one writer at a time (a `Counter` belongs to one model run, whose
tokens come one after the other), or is changed under a lock that its writers hold anyway,
or stands in a collection that changes atomically.
"""

from __future__ import annotations

import contextlib
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Protocol, cast

from langchain_core.messages.ai import add_usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TypeVar

    from langchain_core.messages.ai import UsageMetadata

    T = TypeVar("T")

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
        self.tokens = 0
        self.characters = 0
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
    """

    __slots__ = (
        "_waited",
        "_waits",
        "began",
        "buffer",
        "counters",
        "ended",
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
        self.merged = 0
        self.peak = 0
        self.buffer: Buffered | None = None
        self.restarts: list[object] = []
        self._waits: dict[object, float] = {}  # that go on: since when
        self._waited: deque[float] = deque()  # that are over: how long

    def stop(self) -> None:
        """The run has ended, or its consumer has gone."""
        if self.ended is None and self.began is not None:
            self.ended = monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure how long the run waits for its consumer in this block."""
        me = object()
        self._waits[me] = monotonic()
        try:
            yield
        finally:
            self._waited.append(monotonic() - self._waits.pop(me))
            if len(self._waited) > _FOLD:
                self._fold()

    def _fold(self) -> None:
        """Add waits up.  Whoever takes one adds it to a sum that is put back."""
        total = 0.0
        with contextlib.suppress(IndexError):  # another folds, too
            for _ in range(_FOLD):
                total += self._waited.popleft()
        self._waited.append(total)

    def blocked(self) -> float:
        """Seconds that the run waited for its consumer, those that it waits now included."""
        now = monotonic()
        going_on = (now - since for since in _snapshot(self._waits.values()))
        return sum(going_on, 0.0) + sum(_snapshot(self._waited))

    def usage(self) -> UsageMetadata | None:
        """The usage that all runs have reported."""
        total: UsageMetadata | None = None
        for counter in tuple(self.counters):
            if counter.usage is not None:
                total = add_usage(total, counter.usage)
        return total


def _snapshot(values: Iterable[T]) -> list[T]:
    """The values now.  Another thread, or the collector, may change them meanwhile."""
    while True:
        with contextlib.suppress(RuntimeError):
            return list(values)


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
        return (monotonic() if ended is None else ended) - began

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
