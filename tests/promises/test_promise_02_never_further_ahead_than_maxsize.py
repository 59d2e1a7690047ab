"""Promise 2: ``produced <= consumed + maxsize + one for each model run in progress``.

The consumer compares as soon as it was handed a token: its own count is exact then, and
the producers' can only have grown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.runnables import RunnableParallel

from tests.support.models import ScriptedChatModel, SyncOnlyChatModel, tokens
from tests.support.streams import CASES, DEFAULT_CASES, is_blocked, putters_of, queue_of

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable

    from tests.support.streams import Case


@pytest.mark.parametrize("maxsize", [1, 2, 16])
@pytest.mark.parametrize("case", CASES)
def test_bound_at_every_token(case: Case, maxsize: int) -> None:
    model = ScriptedChatModel(tokens=tokens(80))

    async def scenario() -> None:
        async with case.running(model, maxsize=maxsize) as running:
            consumed = 0
            async for _ in case.consumer.iterate(running):
                consumed += 1
                assert model.record.produced <= consumed + maxsize + 1
            assert consumed == 80

    case.consumer.run(scenario)


@pytest.mark.parametrize("maxsize", [1, 2, 16])
@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_the_run_goes_up_to_the_bound_and_no_further(case: Case, maxsize: int) -> None:
    """Hazard: a producer that waits makes a token more, or starts to wait too early.

    At first it goes exactly up to the bound.  Later it may go on waiting until the queue is
    half empty, which saves a change of threads for each token.
    """
    model = ScriptedChatModel(tokens=tokens(80))

    async def scenario() -> None:
        async with case.running(model, maxsize=maxsize) as running:
            await case.consumer.eventually(lambda: is_blocked(running))
            assert model.record.produced == maxsize + 1
            for consumed in range(1, 80 - maxsize):
                await case.consumer.next(running)
                await case.consumer.eventually(lambda: is_blocked(running))
                waiting = model.record.produced - 1 - consumed
                assert maxsize // 2 <= waiting <= maxsize
            assert len(await case.consumer.collect(running)) == maxsize + 1

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", CASES)
def test_one_more_for_each_model_run_in_progress(case: Case) -> None:
    """Hazard: each of several producers believes that the last free slot is its own."""
    models = {name: ScriptedChatModel(tokens=tokens(40)) for name in "abc"}
    target: Runnable[Any, Any] = RunnableParallel(dict(models))

    def produced() -> int:
        return sum(model.record.produced for model in models.values())

    async def scenario() -> None:
        async with case.running(target, maxsize=4) as running:
            consumed = 0
            async for _ in case.consumer.iterate(running):
                consumed += 1
                assert produced() <= consumed + 4 + 3
            assert consumed == 120

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_several_producers_wait_at_the_bound(case: Case) -> None:
    models = {name: ScriptedChatModel(tokens=tokens(40)) for name in "abc"}
    target: Runnable[Any, Any] = RunnableParallel(dict(models))

    async def scenario() -> None:
        async with case.running(target, maxsize=4) as running:
            await case.consumer.eventually(lambda: putters_of(running) == 3)
            assert sum(model.record.produced for model in models.values()) == 4 + 3

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_a_model_without_async_side_is_held_back_too(case: Case) -> None:
    """Hazard: on asynchronous runs its tokens come by another way."""
    model = SyncOnlyChatModel(tokens=tokens(60))

    async def scenario() -> None:
        async with case.running(model, maxsize=2) as running:
            consumed = 0
            async for _ in case.consumer.iterate(running):
                consumed += 1
                assert model.record.produced <= consumed + 2 + 1

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", CASES)
def test_zero_is_unbounded(case: Case) -> None:
    model = ScriptedChatModel(tokens=tokens(500))

    async def scenario() -> list[str]:
        async with case.running(model, maxsize=0) as running:
            await case.consumer.wait(lambda: model.record.wait_until_produced(500))
            return await case.consumer.collect(running)

    assert case.consumer.run(scenario) == tokens(500)


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_the_default_is_256(case: Case) -> None:
    model = ScriptedChatModel(tokens=tokens(300))

    async def scenario() -> None:
        async with case.running(model) as running:
            await case.consumer.eventually(lambda: is_blocked(running))
            assert model.record.produced == 256 + 1

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", CASES)
def test_no_more_than_maxsize_items_are_held(case: Case) -> None:
    """Promise 9, of the queue: its memory is what ``maxsize`` says.

    A handler's end is in it, too.
    """
    model = ScriptedChatModel(tokens=tokens(60))

    async def scenario() -> None:
        async with case.running(model, maxsize=5) as running:
            async for _ in case.consumer.iterate(running):
                assert queue_of(running)._sync_q.qsize() <= 5 + (not case.is_stream)

    case.consumer.run(scenario)
