"""Timing: turns, the clock, the collector, and what a case must receive."""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import TYPE_CHECKING, Literal

import pytest
import trio

from benchmarks.harness import Calm, Case, Series, Stopwatch, absence_of, alternate, measure

if TYPE_CHECKING:
    from collections.abc import Callable


def clock_of(*times: float) -> Callable[[], float]:
    return iter(times).__next__


def test_each_round_turns_the_order_round_and_the_first_only_warms_up() -> None:
    done: list[str] = []

    def case(name: str) -> Callable[[], int]:
        def run() -> int:
            done.append(name)
            return len(done)

        return run

    results = alternate({name: case(name) for name in "abc"}, 2)
    assert "".join(done) == "abc" + "abc" + "cba"
    assert results == {"a": [4, 9], "b": [5, 8], "c": [6, 7]}


def test_the_watch_measures_what_is_between_with_the_collector_off() -> None:
    watch = Stopwatch(clock_of(1.0, 3.5))
    with watch:
        assert not gc.isenabled()
    assert gc.isenabled()
    assert watch.seconds == 2.5


def test_the_collector_is_on_again_after_a_case_that_fails() -> None:
    """Hazard: one broken case leaves all others without a collector."""
    with pytest.raises(ZeroDivisionError), Stopwatch():
        _ = 1 / 0
    assert gc.isenabled()


@pytest.mark.parametrize("place", ["thread", "asyncio", "trio"])
def test_a_case_runs_in_its_place(place: Literal["thread", "asyncio", "trio"]) -> None:
    def in_thread(watch: Stopwatch) -> str:
        with watch:
            return "thread"

    async def in_task(watch: Stopwatch) -> str:
        with watch:
            if place == "asyncio":
                await asyncio.sleep(0)
            else:
                await trio.lowlevel.checkpoint()
            return place

    case = Case("c", in_thread if place == "thread" else in_task, place, place)
    assert case.time_once(clock_of(1.0, 2.0)) == 1.0


@pytest.mark.parametrize(
    "received", [["a"], ["a", "a", "b"], ["b", "a"], []], ids=["lost", "twice", "order", "none"]
)
def test_a_case_that_does_not_receive_all_in_order_is_an_error(received: list[str]) -> None:
    """Hazard: a queue that loses tokens is the fastest."""

    def run(watch: Stopwatch) -> list[str]:
        with watch:
            return received

    with pytest.raises(AssertionError, match="every token once, in order"):
        Case("c", run, ["a", "b"]).time_once(clock_of(1.0, 2.0))


def test_a_number_is_microseconds_for_one_of_its_units() -> None:
    times = itertools.accumulate(itertools.cycle([0.0, 0.5]))

    def run(watch: Stopwatch) -> None:
        with watch:
            pass

    (series,) = measure(
        [Case("c", run, None, floor="f")],
        rounds=3,
        units=100,
        unit="us a token",
        clock=lambda: next(times),
    )
    assert series == Series("c", "us a token", [5_000.0] * 3, floor="f")


def machine(*looks: float) -> Callable[[], float]:
    """A clock by which the calculation takes 1, while it is made calm, and then so long."""
    steps = ((0.0, took) for took in itertools.chain([1.0] * 20, looks))
    return itertools.accumulate(itertools.chain.from_iterable(steps)).__next__


@pytest.mark.parametrize(
    "looks, timed",
    [
        ([1.0, 1.2], [10.0]),
        ([1.3, 1.0, 1.0, 1.0], [10.0, 20.0]),  # somebody was there before
        ([1.0, 1.3, 1.0, 1.0], [10.0, 20.0]),  # somebody came meanwhile
        ([2.0] * 10, [10.0, 20.0, 30.0, 40.0, 50.0]),  # somebody stays
        ([0.5, 0.5], [10.0]),  # the machine was slower before
    ],
)
def test_what_was_disturbed_is_timed_again(looks: list[float], timed: list[float]) -> None:
    times: list[float] = []

    def once() -> float:
        times.append(10.0 * (len(times) + 1))
        return times[-1]

    clock = machine(*looks)
    assert Calm(clock).time(once) == timed[-1]
    assert times == timed
    with pytest.raises(StopIteration):
        clock()


def test_what_is_not_installed_says_so_and_does_not_vanish() -> None:
    def run(watch: Stopwatch) -> None:
        raise AssertionError("it cannot run")

    (series,) = measure(
        [Case("c", run, None, needs="no_such_module")], rounds=1, units=1, unit="us"
    )
    assert (series.values, series.missing) == ([], "not installed: no_such_module")
    assert absence_of("json") == ""


def test_median_and_quartiles() -> None:
    series = Series("s", "us", [5.0, 1.0, 2.0, 4.0, 100.0])
    assert series.median == 4.0
    assert series.quartiles == (2.0, 5.0)
    assert Series("s", "us", [3.0]).quartiles == (3.0, 3.0)
