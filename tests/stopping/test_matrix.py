"""Promise 4 over targets, placements, consumers and ways to stop.

A run can be in two states when it is stopped: the model is silent, or it waits for the
consumer because the buffer is full.  Both are brought about here, by a gate and by a
buffer of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from queuestream import TokenStream, stream
from tests.support.aftermath import nothing_is_left
from tests.support.callbacks import RunLog
from tests.support.consumers import PAIRINGS, pairings
from tests.support.gates import Gate
from tests.support.models import ScriptedChatModel, tokens
from tests.support.stops import stopped_pairings
from tests.support.targets import TARGETS

if TYPE_CHECKING:
    from tests.support.consumers import Consumer, RunIn
    from tests.support.stops import Stop
    from tests.support.targets import Target

TAKEN = 3
"""How many tokens the consumer takes before it stops."""

ALL_TARGETS = [
    pytest.param(target, run_in, consumer, stop, id=f"{target}-{run_in}-{consumer}-{stop}")
    for target in TARGETS
    for run_in, consumer, stop in (
        case.values for case in stopped_pairings(pairings("for", "asyncio", "trio"))
    )
    if not (target.needs_loop and run_in == "thread")  # such a target has no `invoke`
]
ALL_LOOPS = stopped_pairings(PAIRINGS)


class Run:
    """One run of a target, with all that sees it from within."""

    def __init__(self, target: Target, run_in: RunIn, *, gate: Gate | None, maxsize: int) -> None:
        self.model = ScriptedChatModel(tokens=tokens(50), gate=gate)
        self.spare = ScriptedChatModel(tokens=["never "])
        self.log = RunLog()
        self._target = target
        self._options: dict[str, Any] = {"run_in": run_in, "maxsize": maxsize}

    def stream(self) -> TokenStream[str]:
        """Make the stream of the run."""
        runnable = self._target.build(self.model, self.spare)
        return stream(runnable, self._target.input, {"callbacks": [self.log]}, **self._options)

    async def has_ended(self, consumer: Consumer) -> None:
        """Wait for the end and check that nothing is left, and that nothing was begun anew."""
        await nothing_is_left(consumer, [self.model.record, self.spare.record], self.log)
        assert (self.model.record.calls, self.spare.record.calls) == (1, 0)


@pytest.mark.parametrize("target, run_in, consumer, stop", ALL_TARGETS)
def test_a_silent_run_stops(target: Target, run_in: RunIn, consumer: Consumer, stop: Stop) -> None:
    """Promise 4.  Hazard: nobody looks for the stop while the model says nothing.

    An async run ends at once, without another token; a sync run at the token in hand.
    """
    gate = Gate(TAKEN)
    run = Run(target, run_in, gate=gate, maxsize=256)

    async def scenario() -> None:
        assert await stop.after(consumer, run.stream, TAKEN) == tokens(TAKEN)
        if target.is_sync(run_in):
            gate.release()
        await run.has_ended(consumer)

    consumer.run(scenario)
    assert run.model.record.produced <= TAKEN + target.is_sync(run_in)


@pytest.mark.parametrize("target, run_in, consumer, stop", ALL_TARGETS)
def test_a_blocked_run_stops(target: Target, run_in: RunIn, consumer: Consumer, stop: Stop) -> None:
    """Promises 2 and 4.  Hazard: the run waits for a consumer who has gone.

    It makes no token more than the one that it holds.
    """
    run = Run(target, run_in, gate=None, maxsize=1)
    taken: list[str] = []

    async def scenario() -> None:
        taken.extend(await stop.after(consumer, run.stream, TAKEN))
        await run.has_ended(consumer)

    consumer.run(scenario)
    assert taken == tokens(len(taken))
    assert run.model.record.produced <= len(taken) + 1 + 1


@pytest.mark.parametrize("run_in, consumer, stop", ALL_LOOPS)
def test_a_silent_run_stops_on_every_loop(run_in: RunIn, consumer: Consumer, stop: Stop) -> None:
    """Promise 4.  Hazard: uvloop and eager tasks cancel and finalise in another order."""
    test_a_silent_run_stops(TARGETS[1], run_in, consumer, stop)


@pytest.mark.parametrize("run_in, consumer, stop", ALL_LOOPS)
def test_a_blocked_run_stops_on_every_loop(run_in: RunIn, consumer: Consumer, stop: Stop) -> None:
    """Promise 4.  Hazard: the same, while the run waits in our queue."""
    test_a_blocked_run_stops(TARGETS[1], run_in, consumer, stop)
