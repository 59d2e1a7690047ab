"""Faults of the consumer: cancelled at every await, closed in the middle of every line."""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

import queuestream
from queuestream import stream
from queuestream.errors import StreamClosedError
from tests.support.gates import eventually
from tests.support.models import ScriptedChatModel, tokens
from tests.support.streams import CASES, STREAM_CASES, Case

if TYPE_CHECKING:
    from types import FrameType

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

SOURCE = str(Path(queuestream.__file__).parent)


class Closes:
    """Garbage, whose finalizer closes a stream: the collector runs it wherever it happens to be."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.itself = self

    def __del__(self) -> None:
        self.answer.close()


class Interrupted:
    """Has the collector run at a certain line of this package, whichever thread comes to it."""

    def __init__(self, line: int) -> None:
        self.answer: Any = None
        self._left = line

    @property
    def has_happened(self) -> bool:
        """Whether there were so many lines."""
        return self._left < 0

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        """Count, as `sys.settrace` has it."""
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        if event == "line" and self.answer is not None:
            self._left -= 1
            if self._left == -1:
                Closes(self.answer)
                gc.collect(0)
        return self.trace


def closed_at_line(line: int, run_in: Any) -> bool:
    """Stream, and close in a finalizer at a line; whether there was such a line."""
    model = ScriptedChatModel(tokens=tokens(4))
    interrupted = Interrupted(line)
    received: list[str] = []
    has_ended = threading.Event()

    def consume() -> None:
        answer = stream(model, "?", run_in=run_in, maxsize=1)
        interrupted.answer = answer
        try:
            received.extend(answer)
        except StreamClosedError:
            pass
        else:
            assert len(received) == 4
        finally:
            interrupted.answer = None
            has_ended.set()

    before = sys.gettrace()
    threading.settrace(interrupted.trace)
    try:
        consumer = threading.Thread(target=consume, daemon=True)
        consumer.start()
        assert has_ended.wait(10), f"the consumer hangs after a close at line {line}"
        consumer.join(10)
    finally:
        threading.settrace(before)
    assert received == tokens(len(received))
    eventually(lambda: model.record.open == 0)
    return interrupted.has_happened


def close_at_every_line(run_in: str, first: int, step: int) -> int:
    """Return at how many lines."""
    line = first
    while closed_at_line(line, run_in):
        line += step
    assert line > 100, "where are the lines?"
    return len(range(first, line, step))


@pytest.mark.parametrize("run_in", ["thread", "background"])
def test_the_collector_closes_a_stream_in_the_middle_of_any_line(run_in: str) -> None:
    """Promise 7.  Hazard: the finalizer waits for a lock that the very same thread holds.

    Consumer, producer, start and end: whichever thread comes to a line.  Here every 11th.
    """
    print(f"closed at {close_at_every_line(run_in, first=5, step=11)} lines")


@pytest.mark.stress
@pytest.mark.parametrize("run_in", ["thread", "background"])
def test_the_collector_closes_a_stream_in_the_middle_of_each_line(run_in: str) -> None:
    """As above, at every line."""
    print(f"closed at {close_at_every_line(run_in, first=0, step=1)} lines")
