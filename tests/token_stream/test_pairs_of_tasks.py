"""As `test_pairs.py`, with runs that are tasks: what puts can be cancelled, and lose its loop.

The run is on the shared loop or on its consumer's, with a branch in a task of its own (LangChain's
`RunnableParallel` under ``ainvoke``): two producers with three tokens, a queue for one, and a
consumer.  Beside it comes whatever may come at any moment, also two such things at once.  Looked
for: a token that is lost, doubled or reordered, somebody who waits for ever, a run that is not
gone, more than one buffered.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from queuestream import producers, stream
from queuestream._buffer import Buffer
from queuestream.errors import RunCancelledError, StreamClosedError
from queuestream.producers import TaskRun
from tests.support.schedule import explore, sample
from tests.support.scheduled_loop import ScheduledLoop
from tests.support.scheduled_queue import Now, put_into_schedules, schedule_stream
from tests.support.states import ALL_STATES, exhaust, visits_states
from tests.token_stream.test_pairs import (
    BRANCH,
    CONSUMERS,
    TOKENS,
    DropsAtTheEnd,
    EndsWithTheLastToken,
    PassesNoWakeUpOn,
    WakesNobodyAtTheEnd,
    WakesNoPutter,
    after_a_point,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Literal

    from tests.support.schedule import Schedule

OTHERS = [
    "nothing",
    "close",
    "the run fails",
    "closed by the run",
    "the run is cancelled",
    "close & close",
    "close & the run fails",
    "close & the run is cancelled",
]
WITH_A_LOOP = ["its loop is closed", "close & its loop is closed"]
PAIRS = [
    (run_in, consumer, other)
    for run_in in ("background", "task")
    for consumer in CONSUMERS
    if run_in == "background" or consumer.startswith("a")
    for other in OTHERS + WITH_A_LOOP * consumer.startswith("a")
    if run_in == "background"
    or consumer.endswith("cancelled")
    or other not in ("nothing", "the run fails", "closed by the run")  # with nobody else there
]


def begin(start: Any, _: Callable[[BaseException], None]) -> None:
    """Start a run on a loop of the schedule, which stands for the one that all runs share."""

    async def host() -> None:
        start()
        if task := start.__self__._task:  # else it was closed before
            await asyncio.wait({task})

    ScheduledLoop(Now.schedule, "run", host).is_exposed = True


@pytest.fixture(autouse=True)
def _all_is_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    put_into_schedules(monkeypatch)
    monkeypatch.setattr(producers, "on_background_loop", begin)


class _RunError(Exception):
    """The run's own."""


class Case:
    """A stream of a schedule, whose run is a task.

    Args:
        schedule: The schedule.
        pair: Where the run is, the consumer, and what comes beside it.
        buffer_class: The buffer to test.
        is_short: As of `test_pairs.Case`.
    """

    def __init__(
        self,
        schedule: Schedule,
        pair: tuple[Literal["background", "task"], str, str],
        buffer_class: type[Buffer[Any]],
        *,
        is_short: bool = False,
    ) -> None:
        Now.schedule, Now.is_short = schedule, is_short
        self.schedule = schedule
        self.run_in, self.consumer, others = pair
        self.others = others.split(" & ")
        self.received: list[str] = []
        self.end: BaseException | None = None
        self.branches: list[Coroutine[Any, Any, None]] = []
        self.is_over = False
        self.loop: ScheduledLoop | None = None
        answer: Any = stream(self.run, "?", run_in=self.run_in, maxsize=1)
        self.answer = answer
        self.buffer = schedule_stream(answer, buffer_class)
        self.feed = answer._call.feed
        self.iterable = answer.pieces() if "pieces" in self.consumer else answer
        if self.run_in == "background":
            answer.__enter__()
        if self.consumer in ("next", "pieces"):
            schedule.thread("consumer", self.consume)
        else:
            loop = self.loop = ScheduledLoop(schedule, "consumer", self.consume_in_task)
            loop.is_exposed = self.run_in == "task"
            if self.consumer.endswith("cancelled"):
                loop.may_be_cancelled = True
                schedule.thread("cancels", loop.cancel)
        for other in self.others:
            if other == "close":
                schedule.thread("closes", lambda: after_a_point(answer.close))
            elif other == "the run is cancelled":
                schedule.thread("cancels the run", self.cancel_the_run)
            elif other == "its loop is closed":
                assert self.loop is not None
                self.loop.may_be_shut = True
                schedule.thread("closes the loop", self.loop.shut)
                schedule.thread("heir", self.inherit)

    # The run.

    async def run(self, _: str, callbacks: list[Any]) -> str:
        self.branches = [self.produce(TOKENS), self.produce(BRANCH)]
        await asyncio.gather(*self.branches)
        if "closed by the run" in self.others:
            self.answer.close()
        if "the run fails" in self.others:
            raise _RunError
        return "done"

    async def produce(self, tokens: list[str]) -> None:
        for token in tokens:
            await self.feed.on_llm_new_token(token)

    def cancel_the_run(self) -> None:
        """Cancel it for reasons of one's own, as soon as there is a task."""
        self.schedule.point(lambda: self.is_over or self.task is not None)
        if self.task is not None:
            with contextlib.suppress(RuntimeError):  # closed
                self.task.get_loop().call_soon_threadsafe(self.task.cancel)

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The run's, once it has begun."""
        return None if self.answer._run is None else self.answer._run._task

    # The consumer.

    def consume(self) -> None:
        try:
            for token in self.iterable:
                self.received.append(token)
            assert self.answer.result == "done"
        except (StreamClosedError, RunCancelledError, _RunError) as error:
            self.end = error
        self.is_over = True

    async def consume_in_task(self) -> None:
        if self.run_in == "task":
            await self.answer.__aenter__()
        while True:
            try:
                async for token in self.iterable:
                    self.received.append(token)
                assert self.answer.result == "done"
            except asyncio.CancelledError:
                continue  # and wants the rest all the same
            except (StreamClosedError, RunCancelledError, _RunError) as error:
                self.end = error
            break
        self.is_over = True
        while (run := self.answer._run) is not None and not run.gone._set:
            with contextlib.suppress(asyncio.CancelledError):
                await self.answer.aclose()

    def inherit(self) -> None:
        """Go on for a consumer whose loop was closed, once its task is dropped."""
        assert self.loop is not None
        self.schedule.point(self.loop.is_closed)
        self.loop.forget()
        if not self.is_over and self.answer._run is not None:
            self.consume()
        if self.run_in == "task" and self.task is not None:
            coroutine: Any
            for coroutine in (self.task.get_coro(), *self.branches):
                coroutine.close()

    def check(self) -> None:
        came = "".join(self.received).split()
        for tokens in (TOKENS, BRANCH):
            mine = [token for token in came if token[0] == tokens[0][0]]
            assert mine == [token.strip() for token in tokens][: len(mine)], f"{came}"
        assert self.buffer.peak <= 1, "past maxsize"
        if self.answer._run is None:  # closed before it began
            return
        assert self.answer._run.gone._set, "the run is not gone"
        if isinstance(self.end, StreamClosedError):
            assert {"close", "closed by the run"} & set(self.others)
        elif isinstance(self.end, RunCancelledError):
            assert {"the run is cancelled", "its loop is closed"} & set(self.others)
        else:
            assert len(came) == 3, f"lost: {came}"
            assert isinstance(self.end, _RunError) == ("the run fails" in self.others)
        assert not self.buffer._getters.waiters
        assert not list.__len__(self.buffer._putters.waiters)
        self.answer.close()


def of(
    pair: tuple[Any, str, str], buffer_class: type[Buffer[Any]] = Buffer, *, is_short: bool = False
) -> Callable[[Schedule], Callable[[], object]]:
    """Return the case of a pair, for the explorer."""

    def case(schedule: Schedule) -> Callable[[], object]:
        return Case(schedule, pair, buffer_class, is_short=is_short).check

    return case


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if "&" not in pair[2]], ids="-".join)
def test_no_schedule_of_a_pair_loses_anything(pair: tuple[Any, str, str]) -> None:
    """Promises 1 to 4 and 7: one that breaks only if two things interleave in one certain way."""
    count = explore(of(pair), delays=1)
    print(f"{pair}: {count} schedules")
    assert count > 20, "where are the points?"


@pytest.mark.stress
@pytest.mark.parametrize(
    "pair",
    [pair for pair in PAIRS if "&" in pair[2] and "pieces" not in pair[1]],
    ids="-".join,
)
def test_no_schedule_of_three_at_once_loses_anything(pair: tuple[Any, str, str]) -> None:
    """As above, where two things come beside the consumer and the run."""
    assert explore(of(pair), delays=1) > 20, "where are the points?"


@pytest.mark.stress
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_no_wild_schedule_of_a_pair_loses_anything(pair: tuple[Any, str, str]) -> None:
    """As above, and chance picks every turn."""
    sample(of(pair), count=50, seed=1_000)


FEW_STATES = [("background", "next", "nothing"), ("task", "anext", "the run is cancelled")]
"""Pairs with no more than 3,000 states."""
MORE_STATES = [("task", "apieces", "the run is cancelled")]
"""One more."""


@visits_states
@pytest.mark.parametrize("pair", FEW_STATES, ids="-".join)
def test_no_state_that_a_pair_can_come_to_is_wrong(pair: tuple[Any, str, str]) -> None:
    """Hazard: what needs more changes of threads than the explorers above try."""
    count = exhaust(of(pair, is_short=True))
    print(f"{pair}: {count} states")
    assert count > 500, "where are the points?"


@visits_states
@pytest.mark.stress
@pytest.mark.parametrize("pair", PAIRS if ALL_STATES else MORE_STATES, ids="-".join)
def test_no_state_of_many_that_a_pair_can_come_to_is_wrong(pair: tuple[Any, str, str]) -> None:
    """As above.  All pairs: ``QUEUESTREAM_STATES=all tox -e stress -- -k of_many --timeout 0``."""
    count = exhaust(of(pair, is_short=True))
    print(f"{pair}: {count} states")
    assert count > 10, "where are the points?"


PLANTED = [
    (WakesNobodyAtTheEnd, ("background", "next", "nothing")),
    (WakesNobodyAtTheEnd, ("task", "anext", "close")),
    (DropsAtTheEnd, ("background", "anext", "nothing")),
    (WakesNoPutter, ("background", "next", "nothing")),
    (PassesNoWakeUpOn, ("background", "apieces cancelled", "nothing")),
]


@pytest.mark.parametrize("planted, pair", PLANTED, ids=str)
def test_a_planted_bug_is_found(planted: type[Buffer[Any]], pair: tuple[Any, str, str]) -> None:
    """The canary: an explorer that finds nothing may look at nothing."""
    with pytest.raises(AssertionError, match="repeated by"):
        explore(of(pair, planted), delays=1)


@visits_states
@pytest.mark.parametrize(
    "planted, pair", [*PLANTED[:4], (EndsWithTheLastToken, PLANTED[0][1])], ids=str
)
def test_a_state_that_is_wrong_is_found(
    planted: type[Buffer[Any]], pair: tuple[Any, str, str]
) -> None:
    """The canary of the states: it must come to those in which a planted bug shows."""
    with pytest.raises(AssertionError, match="repeated by"):
        exhaust(of(pair, planted, is_short=True))


def test_a_run_that_is_lost_without_a_word_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary: nobody says that the run's loop was closed."""
    monkeypatch.setattr(TaskRun, "_lose_loop", lambda _: None)
    with pytest.raises(AssertionError, match="the run is not gone"):
        explore(of(("task", "anext", "its loop is closed")), delays=1)
