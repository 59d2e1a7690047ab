"""The contract of `MixedQueue`, as janus's and CPython's own tests state it.

Nothing but what `tests.peers.deviations` lists may fail.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import janus
import pytest

from queuestream import _turns
from queuestream.mixed_queue import MixedQueue
from tests.peers.deviations import DEVIATIONS, Deviation
from tests.support.peers_suites import (
    Case,
    QueueClass,
    SuiteMissingError,
    asyncio_cases,
    face,
    janus_cases,
    queue_cases,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.peers


class Queue(MixedQueue[Any]):
    """`MixedQueue` under the name, and with the four counters, that janus's tests ask for."""

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        # Looked up here, because the tests look at the counters when threads wait already,
        # and would hang if there were none.
        self._get_line = self._buffer._getters
        self._put_line = self._buffer._putters

    @property
    def _sync_not_empty_waiting(self) -> int:
        return len(self._get_line)

    @property
    def _sync_not_full_waiting(self) -> int:
        return len(self._put_line)

    # One line for both faces; each test lets only one of them wait.
    _async_not_empty_waiting = _sync_not_empty_waiting
    _async_not_full_waiting = _sync_not_full_waiting


class Suite(NamedTuple):
    """A peer's suite.

    Attributes:
        load: Makes the cases over a class; takes the folder where downloads are kept.
        ours: Our queue as the class that the suite tests.
        theirs: The class that the suite was written for.
        broken: Another class of the peer's, which is not FIFO.
        at_least: How many of its tests pass over ``theirs``, on every Python.
    """

    load: Callable[[QueueClass, Path], list[Case]]
    ours: QueueClass
    theirs: QueueClass
    broken: QueueClass
    at_least: int


SUITES = {
    "janus": Suite(janus_cases, Queue, janus.Queue, janus.LifoQueue, 76),
    "queue": Suite(
        lambda queue_class, _: queue_cases(queue_class),
        face(lambda maxsize: MixedQueue[Any](maxsize).sync_q),
        queue.Queue,
        queue.LifoQueue,
        14,
    ),
    "asyncio": Suite(
        lambda queue_class, _: asyncio_cases(queue_class),
        face(lambda maxsize: MixedQueue[Any](maxsize).async_q),
        asyncio.Queue,
        asyncio.LifoQueue,
        34,
    ),
}


def load(suite: str, queue_class: QueueClass, config: pytest.Config) -> list[Case]:
    """All cases of a suite over a class, also those that are not run."""
    cache: pytest.Cache | None = getattr(config, "cache", None)
    if cache is None:  # -p no:cacheprovider
        raise SuiteMissingError("pytest's cache, where downloads are kept, is switched off")
    return SUITES[suite].load(queue_class, cache.mkdir("peers"))


def do_without(suite: str, why: SuiteMissingError) -> NoReturn:
    """End a test that cannot have its suite: on a developer's machine that is no failure."""
    if suite == "janus" and os.environ.get("CI") == "true":
        pytest.fail(str(why))
    pytest.skip(str(why))


def deviation_of(suite: str, case: Case) -> Deviation | None:
    return DEVIATIONS.get(f"{suite}.{case.group}") or DEVIATIONS.get(f"{suite}.{case.name}")


def is_run(suite: str, case: Case) -> bool:
    deviation = deviation_of(suite, case)
    return deviation is None or deviation.raises is not None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "peer_test" in metafunc.fixturenames:
        metafunc.parametrize("peer_test", list(peer_tests(metafunc.config)))
    elif "suite" in metafunc.fixturenames:
        metafunc.parametrize("suite", SUITES)


def peer_tests(config: pytest.Config) -> Iterator[Any]:
    """Each test of each suite, over our queue, as a parameter."""
    for suite, (_, ours, *_) in SUITES.items():
        try:
            cases = load(suite, ours, config)
        except SuiteMissingError as why:
            yield pytest.param(partial(do_without, suite, why), id=suite)
            continue
        for case in cases:
            if is_run(suite, case):
                deviation = deviation_of(suite, case)
                marks = deviation and pytest.mark.xfail(
                    strict=True, raises=deviation.raises, reason=deviation.reason
                )
                yield pytest.param(case.run, id=f"{suite}.{case.name}", marks=marks or ())


@pytest.fixture(autouse=True)
def _the_turn_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that count turns of the loop must not depend on how many tests ran before."""
    monkeypatch.setattr(_turns._here.turn, "left", _turns.TURN)


@pytest.mark.timeout(15)
def test_peer(peer_test: Callable[[], None]) -> None:
    """Whoever knows janus's or CPython's queue finds that ours does the same."""
    peer_test()


@pytest.mark.timeout(15)
@pytest.mark.parametrize("left", [1, 2, 3])
def test_the_end_of_a_turn_changes_no_order(
    left: int, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that lets others run, for fairness' sake, may lose its place to the next one."""
    try:
        cases = load("janus", Queue, pytestconfig)
    except SuiteMissingError as why:
        do_without("janus", why)
    for case in cases:
        if case.group.startswith("test_async.") and not deviation_of("janus", case):
            monkeypatch.setattr(_turns._here.turn, "left", left)
            case.run()


def test_each_deviation_is_a_test_of_the_peer(suite: str, pytestconfig: pytest.Config) -> None:
    """A deviation outlives the test that it was listed for, and hides the next of that name."""
    try:
        cases = load(suite, SUITES[suite].ours, pytestconfig)
    except SuiteMissingError as why:
        do_without(suite, why)
    there = {f"{suite}.{name}" for case in cases for name in (case.group, case.name)}
    assert {name for name in DEVIATIONS if name.startswith(f"{suite}.")} <= there


def test_the_peers_own_queue_passes(suite: str, pytestconfig: pytest.Config) -> None:
    """The control: what fails over ours fails for the queue, not for how it is run here."""
    try:
        cases = load(suite, SUITES[suite].theirs, pytestconfig)
    except SuiteMissingError as why:
        do_without(suite, why)
    cases = [case for case in cases if is_run(suite, case)]
    assert {case.name: problem for case in cases if (problem := problem_of(case))} == {}
    assert len(cases) >= SUITES[suite].at_least


def test_a_queue_that_is_not_fifo_fails(suite: str, pytestconfig: pytest.Config) -> None:
    """The canary: the suite may test its own queue all the while, whatever we put there."""
    try:
        cases = load(suite, SUITES[suite].broken, pytestconfig)
    except SuiteMissingError as why:
        do_without(suite, why)
    order = [case for case in cases if is_run(suite, case) and case.test == "test_order"]
    assert [bool(problem_of(case)) for case in order] == [True]


def problem_of(case: Case) -> BaseException | None:
    try:
        case.run()
    except (Exception, pytest.fail.Exception) as problem:
        return problem
    return None


@pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio.Queue.shutdown came with 3.13")
@pytest.mark.parametrize("test", ["test_shutdown_empty", "test_shutdown_nonempty"])
def test_shutdown_wakes_within_two_turns_of_the_loop(test: str) -> None:
    """A wake-up that comes late, though allowed, might be none: see the deviations."""

    async def sleep(delay: float) -> None:
        for _ in range(2):
            await asyncio.sleep(delay)

    try:
        cases = asyncio_cases(SUITES["asyncio"].ours, sleep=sleep)
    except SuiteMissingError as why:
        do_without("asyncio", why)
    (case,) = [case for case in cases if case.name == f"QueueShutdownTests.{test}"]
    case.run()
