"""Faults of the consumer: cancelled at every await, closed in the middle of every line."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from queuestream import stream
from queuestream._buffer import Buffer
from queuestream.errors import StreamClosedError
from tests.support.endings import A_MOMENT
from tests.support.gates import eventually
from tests.support.lines import AtLine, new_threads_traced, who_runs
from tests.support.models import ScriptedChatModel, tokens
from tests.support.shared_loop import a_background_loop_of_its_own
from tests.support.streams import CASES, STREAM_CASES, Case

if TYPE_CHECKING:
    from tests.support.lines import Place

LENGTH = 24


# -- cancelled ------------------------------------------------------------------------------------

ON_A_LOOP = [case for case in CASES if case.values[0].consumer.is_async]


async def cancelled_after(turns: int, running: Any, received: list[str]) -> None:
    """Iterate, and be cancelled after so many turns of the loop."""

    async def iterate() -> None:
        async for token in running:
            received.append(token)  # noqa: PERF401 - what came before the cancellation is kept

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(iterate)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("case", ON_A_LOOP)
def test_the_consumer_is_cancelled_at_every_await(case: Case) -> None:
    """Promise 1.  Hazard: a token is taken, and its consumer is not there any more.

    Where the run is a task of the same loop, each number of turns is another await, of the
    consumer and of the run.  Elsewhere the turns fall where they may.
    """
    turns = range(2 * LENGTH if case.producer.endswith(("task", "ainvoke")) else LENGTH)

    async def scenario(turn: int, maxsize: int) -> None:
        received: list[str] = []
        model = ScriptedChatModel(tokens=tokens(LENGTH))
        async with case.running(model, maxsize=maxsize) as running:
            await cancelled_after(turn, running, received)
            await cancelled_after(1, running, received)
            received += await case.consumer.collect(running)
        assert received == tokens(LENGTH)

    async def all_of_them() -> None:
        for turn in turns:
            await scenario(turn, maxsize=1 + 2 * (turn % 2))

    case.consumer.run(all_of_them)


@pytest.mark.parametrize(
    "case", [case for case in STREAM_CASES if case.values[0].consumer.is_async]
)
def test_a_consumer_of_pieces_is_cancelled_at_every_await(case: Case) -> None:
    """Promise 1.  Hazard: what a piece has gathered is lost with it."""

    async def scenario(turn: int) -> None:
        received: list[str] = []
        model = ScriptedChatModel(tokens=tokens(LENGTH))
        async with case.running(model, maxsize=2) as running:
            await cancelled_after(turn, running.pieces(3, max_delay=60), received)
            received += [piece async for piece in running.pieces(3, max_delay=60)]
        assert "".join(received) == "".join(tokens(LENGTH))

    async def all_of_them() -> None:
        for turn in range(LENGTH):
            await scenario(turn)

    case.consumer.run(all_of_them)


# -- closed by the collector, at any moment, in any thread ----------------------------------------


class Closes:
    """Garbage, whose finalizer closes a stream: the collector runs it wherever it happens to be."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.itself = self

    def __del__(self) -> None:
        self.answer.close()


CONSUMER = "the consumer's"
"""How its thread is called."""


def closed_at_line(line: int, run_in: Any, within: float = 10.0) -> AtLine:
    """Stream, and close in a finalizer at a line."""
    model = ScriptedChatModel(tokens=tokens(4))
    received: list[str] = []
    errors: list[BaseException] = []
    answers: list[Any] = []

    def close(_: object) -> None:
        Closes(answers[0])
        gc.collect(0)

    at_line = AtLine(line, close)

    def begin() -> Any:
        answers.append(answer := stream(model, "?", run_in=run_in, maxsize=1))
        at_line.consumer = who_runs()
        at_line.is_counting = True
        return answer

    async def iterate() -> None:
        async with begin() as answer:  # who leaves otherwise does not wait for the model's end
            async for token in answer:
                received.append(token)  # noqa: PERF401 - what came before the close is kept

    def consume() -> None:
        try:
            if run_in == "task":
                asyncio.run(iterate())
            else:
                received.extend(begin())
        except BaseException as error:
            errors.append(error)
        finally:
            at_line.is_counting = False

    consumer = threading.Thread(target=consume, name=CONSUMER, daemon=True)
    with new_threads_traced(at_line.trace):
        consumer.start()
        consumer.join(within)
    assert not consumer.is_alive(), f"the consumer hangs after a close at line {line}"
    if errors:
        assert isinstance(errors[0], StreamClosedError)
        assert received == tokens(len(received))
    else:
        assert received == tokens(4)
    eventually(lambda: model.record.open == 0, within)
    return at_line


def close_at_every_line(
    run_in: str, first: int, step: int, monkeypatch: pytest.MonkeyPatch, within: float = 10.0
) -> set[Place]:
    """Return at which lines.

    The shared loop is made anew each time: its thread is traced only if it starts meanwhile.
    """
    places: set[Place] = set()
    line = first
    for line in itertools.count(first, step):
        with a_background_loop_of_its_own(monkeypatch):
            at_line = closed_at_line(line, run_in, within)
        if not at_line.has_happened:
            break
        places.add(at_line.place)
    assert line > 100, "where are the lines?"
    by_consumer = [place for place in places if place.by_consumer]
    assert by_consumer, "where are the consumer's lines?"
    assert len(by_consumer) < len(places), "where are the producer's lines?"
    return places


@pytest.mark.parametrize("run_in, step", [("thread", 11), ("task", 29), ("background", 29)])
def test_the_collector_closes_a_stream_in_the_middle_of_any_line(
    run_in: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 7.  Hazard: the finalizer waits for a lock that the very same thread holds.

    Consumer, producer, start and end: whichever thread or task comes to a line.  Here few.
    """
    close_at_every_line(run_in, 5, step, monkeypatch)


@pytest.mark.stress
@pytest.mark.parametrize("run_in, step", [("thread", 1), ("task", 11), ("background", 11)])
def test_the_collector_closes_a_stream_in_the_middle_of_many_lines(
    run_in: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, at every line, or at every 11th where there are thousands."""
    places = close_at_every_line(run_in, 0, step, monkeypatch)
    by_consumer = sum(place.by_consumer for place in places)
    print(f"closed at {len(places)} lines, {by_consumer} of them the consumer's")


@pytest.mark.parametrize("by_consumer", [True, False], ids=["consumer", "producer"])
@pytest.mark.parametrize("run_in", ["thread", "background"])
def test_a_finalizer_that_waits_for_the_lock_is_noticed(
    run_in: str, by_consumer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canary: a close waits for the lock that its own thread holds, on one of the two sides."""
    settle = Buffer._settle

    def wait_and_settle(buffer: Buffer[Any]) -> None:
        is_consumer = threading.current_thread().name == CONSUMER
        if is_consumer is by_consumer and buffer._lock.acquire(timeout=3 * A_MOMENT):
            buffer._lock.release()
        settle(buffer)

    monkeypatch.setattr(Buffer, "_settle", wait_and_settle)
    with pytest.raises(AssertionError, match=r"the consumer hangs|not within"):
        close_at_every_line(run_in, 0, 5, monkeypatch, A_MOMENT)
