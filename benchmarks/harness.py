"""How everything here is timed, so that a ratio means something on a noisy machine.

All cases of a part run in one process and in turns, and each round turns the order round: what
comes and goes on the machine meets all alike.  A round before the first warms up and is
thrown away.  Around a timed part the garbage collector has run and is off.  What a case
returns is compared with what it must return after the clock has stopped.  A number is the
median of its rounds; the quartiles are kept beside it.

Wall time is also that of whoever else has work for the cores.  So a fixed calculation is
timed before and after each part that is measured by it, and where that took longer than it
can, the part is timed again.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import statistics
import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

__all__ = [
    "FULL",
    "QUICK",
    "Calm",
    "Case",
    "Series",
    "Sizes",
    "Stopwatch",
    "absence_of",
    "alternate",
    "import_quietly",
    "measure",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    rounds_of_short_parts: int = 3
    """Bursts and queues, of which a round takes a second or two, have so many for one."""
    burst_tokens: int = 3_000
    queue_items: int = 10_000
    paced: tuple[tuple[int, int], ...] = ((10, 50), (100, 50), (1_000, 5))
    """Streams, and the tokens of each."""
    latency_tokens: int = 200
    open_streams: tuple[int, ...] = (1_000, 2_500, 5_000, 10_000)
    opened_and_closed: int = 1_000
    http_tokens: int = 1_000


FULL = Sizes()
QUICK = Sizes(
    rounds_of_short_parts=1,
    burst_tokens=20,
    queue_items=20,
    paced=((1, 2), (2, 2), (3, 2)),
    latency_tokens=5,
    open_streams=(5, 10),
    opened_and_closed=3,
    http_tokens=20,
)


@dataclass
class Series:
    """The numbers of one case, one for each round."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list[float])
    missing: str = ""
    """Why there are none."""
    floor: str = ""
    """The name of the series that LangChain costs by itself, where there is one."""
    curve: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """Points to draw, where the numbers are those of a curve's end or middle."""

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """What a quarter is below, and what a quarter is above."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high


class Stopwatch:
    """What a case starts and stops around the part of it that counts."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = 0.0
        self.seconds = 0.0

    def start(self) -> None:
        """Clear away what others left, and start."""
        gc.collect()
        gc.disable()
        self._began = self._clock()

    def stop(self) -> None:
        """Stop."""
        self.seconds = self._clock() - self._began
        gc.enable()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()


@dataclass(frozen=True)
class Case:
    """One thing to time."""

    name: str
    run: Callable[[Stopwatch], Any]
    """A function, or a coroutine function unless ``place`` is ``"thread"``; it answers what
    it received."""
    expected: object
    """What it must receive."""
    place: Literal["thread", "asyncio", "trio"] = "thread"
    needs: str = ""
    """A module that not everybody has."""
    floor: str = ""
    """The name of the case that LangChain costs by itself, where there is one."""

    def time_once(self, clock: Callable[[], float]) -> float:
        """Run it, see that it received all, and return its seconds."""
        watch = Stopwatch(clock)
        if self.place == "thread":
            received = self.run(watch)
        elif self.place == "asyncio":
            received = asyncio.run(self.run(watch))
        else:
            received = trio.run(self.run, watch)
        if received != self.expected:
            raise AssertionError(f"{self.name} did not receive every token once, in order")
        return watch.seconds


class Calm:
    """Whether the machine has time for nothing but us."""

    SLOWER = 1.25
    """So much longer than its quickest the calculation may take."""
    TRIES = 5
    """So often a part is timed until it was calm; the last one counts in any case."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._quickest = float("inf")
        for _ in range(20):
            self.is_now()

    def is_now(self) -> bool:
        """Time a calculation of about a millisecond; whether it took as long as it must."""
        began = self._clock()
        total = 0
        for number in range(40_000):
            total += number & 3
        taken = self._clock() - began
        self._quickest = min(self._quickest, taken)
        return taken <= self.SLOWER * self._quickest

    def time(self, once: Callable[[], float]) -> float:
        """Return what a timing answers that nothing disturbed."""
        left = self.TRIES
        while True:
            left -= 1
            was_calm = self.is_now()
            seconds = once()
            if (self.is_now() and was_calm) or not left:
                return seconds


def import_quietly(module: str) -> Any:
    """Import what not everybody has, without what it has to say about it."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it misses a torch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def absence_of(module: str) -> str:
    """Why a module cannot be had; empty if it can."""
    try:
        import_quietly(module)
    except ImportError as error:
        return f"not installed: {error.name or module}"
    return ""


def alternate(cases: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Do all in turns, so many times; each round turns the order round.

    Before them one more, which warms up; not before a single one, which only shows that all runs.
    """
    results: dict[str, list[T]] = {name: [] for name in cases}
    order = list(cases)
    for name in order if rounds > 1 else ():
        cases[name]()
    gc.collect()
    gc.freeze()  # what is there by now need not be looked at each time
    try:
        for _ in range(rounds):
            for name in order:
                results[name].append(cases[name]())
            order.reverse()
    finally:
        gc.unfreeze()
    return results


def measure(
    cases: list[Case],
    *,
    rounds: int,
    units: int,
    unit: str,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Series]:
    """Time all cases in turns; each number is microseconds for one of ``units``."""
    absent = {case.name: absence_of(case.needs) if case.needs else "" for case in cases}
    present = [case for case in cases if not absent[case.name]]

    calm = Calm() if clock is time.perf_counter else None  # CPU time is nobody else's

    def once(case: Case) -> Callable[[], float]:
        def seconds() -> float:
            return case.time_once(clock)

        return lambda: (calm.time(seconds) if calm else seconds()) / units * 1e6

    values = alternate({case.name: once(case) for case in present}, rounds)
    return [
        Series(case.name, unit, values.get(case.name, []), absent[case.name], case.floor)
        for case in cases
    ]
