"""Whole streams under schedules that chance picks: who pauses where, who stops, what fails.

A *plan* is drawn from a seed: where the run happens, who consumes, how many tokens, ``maxsize``,
``overflow``, before which tokens the model pauses for a turn and before which the consumer does,
whether the model fails, whether the consumer stops early.  What must come follows from the plan.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio
import anyio.lowlevel
import pytest

from queuestream import stream
from queuestream._buffer import Buffer
from queuestream.producers import Run
from tests.support.backends import EAGER
from tests.support.consumers import CONSUMERS, IMPOSSIBLE, RUN_IN
from tests.support.haste import hasty
from tests.support.models import ScriptedChatModel, tokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from langchain_core.outputs import ChatGenerationChunk

PLACES = [
    (run_in, consumer)
    for run_in in RUN_IN
    for consumer in CONSUMERS
    if (run_in, consumer.name) not in IMPOSSIBLE
]
SEEDS = range(40)
"""Of each pairing, in each run of the tests."""
BATCH = 50
"""Plans that one loop works off at the same time."""


class _ModelError(Exception):
    """The model's own."""


@dataclass(frozen=True)
class Plan:
    """One stream."""

    seed: int
    run_in: str
    length: int
    maxsize: int
    overflow: Literal["block", "merge"]
    model_pauses: frozenset[int]
    consumer_pauses: frozenset[int]
    fails: bool
    stops_after: int | None

    @classmethod
    def drawn(cls, seed: int, run_in: str) -> Plan:
        """Draw a plan."""
        lot = random.Random(f"{seed} {run_in}")
        length = lot.randrange(1, 12)
        positions = range(length + 1)
        return cls(
            seed,
            run_in,
            length,
            lot.choice([0, 1, 1, 2, 3, 256]),
            cast("Any", lot.choice(["block", "block", "merge"])),
            frozenset(lot.sample(positions, lot.randrange(len(positions)))),
            frozenset(lot.sample(positions, lot.randrange(len(positions)))),
            lot.random() < 0.2,
            lot.choice([None, None, None, lot.randrange(length + 1)]),
        )


class PausingModel(ScriptedChatModel):
    """A model that lets others run before some of its tokens."""

    pauses: frozenset[int] = frozenset()

    def _stream_script(self, messages: Any) -> Iterator[ChatGenerationChunk]:
        for position, chunk in enumerate(super()._stream_script(messages)):
            if position in self.pauses:
                time.sleep(0)
            yield chunk

    async def _astream_script(self, messages: Any) -> AsyncIterator[ChatGenerationChunk]:
        position = 0
        async for chunk in super()._astream_script(messages):
            if position in self.pauses:
                await asyncio.sleep(0)
            position += 1
            yield chunk


class Followed:
    """A plan that is followed, and what came."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.model = PausingModel(
            tokens=tokens(plan.length),
            pauses=plan.model_pauses,
            failure=_ModelError("the model's own") if plan.fails else None,
            fail_at=plan.length,
        )
        options: Any = {"maxsize": plan.maxsize, "overflow": plan.overflow}
        self.answer = stream(self.model, "?", run_in=cast("Any", plan.run_in), **options)
        self.received: list[str] = []
        self.error: BaseException | None = None

    @property
    def has_enough(self) -> bool:
        """Whether the consumer stops here."""
        return self.plan.stops_after is not None and len(self.received) >= self.plan.stops_after

    def in_thread(self) -> None:
        """Consume with ``for``."""
        try:
            with self.answer as answer:
                while not self.has_enough:
                    if len(self.received) in self.plan.consumer_pauses:
                        time.sleep(0)
                    self.received.append(next(answer))
        except StopIteration:
            pass
        except _ModelError as error:
            self.error = error

    async def in_task(self) -> None:
        """Consume with ``async for``."""
        try:
            async with self.answer as answer:
                while not self.has_enough:
                    if len(self.received) in self.plan.consumer_pauses:
                        await anyio.lowlevel.checkpoint()
                    self.received.append(await answer.__anext__())
        except StopAsyncIteration:
            pass
        except _ModelError as error:
            self.error = error

    def check(self) -> None:
        """Hold what came against the plan."""
        came, whole = "".join(self.received), "".join(tokens(self.plan.length))
        assert whole.startswith(came), f"{self.plan}: {came!r}"
        if self.plan.stops_after is None:
            assert came == whole, f"{self.plan}: {came!r}"
            assert (self.error is None) == (not self.plan.fails), f"{self.plan}: {self.error!r}"
        if self.plan.overflow == "block":
            assert self.received == tokens(len(self.received)), f"{self.plan}"
            ahead = self.model.record.produced - len(self.received)
            assert self.plan.maxsize == 0 or ahead <= self.plan.maxsize + 1, f"{self.plan}: {ahead}"


def follow(run_in: str, consumer: Any, seeds: range) -> int:
    """Follow the plans of some seeds; return how many."""
    print(f"{run_in} to {consumer}: seeds {seeds.start} to {seeds.stop - 1}")
    all_of_them = [Followed(Plan.drawn(seed, run_in)) for seed in seeds]

    async def side_by_side() -> None:
        for start in range(0, len(all_of_them), BATCH):
            async with anyio.create_task_group() as tasks:
                for one in all_of_them[start : start + BATCH]:
                    tasks.start_soon(one.in_task)

    if consumer.is_async:
        consumer.run(side_by_side)
    else:
        for one in all_of_them:
            one.in_thread()
    for one in all_of_them:
        one.check()
    return len(all_of_them)


@pytest.mark.parametrize(
    "run_in, consumer", PLACES, ids=[f"{run_in}-{consumer}" for run_in, consumer in PLACES]
)
def test_streams_by_lot(run_in: str, consumer: Any) -> None:
    """Promises 1 to 4, under plans nobody thought of."""
    if consumer.backend is EAGER and not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("eager tasks came with Python 3.12")
    with hasty():
        assert follow(run_in, consumer, SEEDS) == len(SEEDS)


def loses_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    put_now, try_put = Buffer.put_now, Buffer.try_put

    def is_lost(item: Any) -> bool:  # a text comes with its model run
        return isinstance(item, tuple) and "t2 " in item

    def put_now_or_lose(self: Any, item: Any) -> bool:
        return is_lost(item) or put_now(self, item)

    def try_put_or_lose(self: Any, item: Any, *args: Any, **kwargs: Any) -> Any:
        return None if is_lost(item) else try_put(self, item, *args, **kwargs)

    monkeypatch.setattr(Buffer, "put_now", put_now_or_lose)
    monkeypatch.setattr(Buffer, "try_put", try_put_or_lose)


def forgets_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    finish: Any = Run._finish
    monkeypatch.setattr(Run, "_finish", lambda self, value=None, error=None: finish(self, value))


@pytest.mark.parametrize("plant", [loses_a_token, forgets_the_error])
@pytest.mark.parametrize("run_in, name", [("thread", "for"), ("task", "asyncio")])
def test_a_planted_bug_is_noticed(
    run_in: str, name: str, plant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canary: plans that fit whatever comes prove nothing."""
    plant(monkeypatch)
    (consumer,) = (one for one in CONSUMERS if one.name == name)
    with hasty(), pytest.raises(AssertionError, match="Plan"):
        follow(run_in, consumer, SEEDS)


@pytest.mark.stress
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "run_in, consumer", PLACES, ids=[f"{run_in}-{consumer}" for run_in, consumer in PLACES]
)
def test_ten_thousand_streams_by_lot(run_in: str, consumer: Any) -> None:
    """As above: ten thousand of them over all placements and consumers."""
    if consumer.backend is EAGER and not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("eager tasks came with Python 3.12")
    count = -(-10_000 // len(PLACES))
    with hasty():
        assert follow(run_in, consumer, range(1_000, 1_000 + count)) == count
