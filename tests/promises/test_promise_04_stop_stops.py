"""Promise 4: what a stop reaches, and what is left of the run.

The full matrix of targets and ways to stop is in ``tests/stopping``.
"""

from __future__ import annotations

import gc
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableParallel

from queuestream.errors import StreamClosedError
from tests.support.aftermath import our_threads
from tests.support.gates import Gate
from tests.support.models import ScriptedChatModel, tokens
from tests.support.streams import CASES, DEFAULT_CASES, STREAM_CASES, is_blocked, putters_of

if TYPE_CHECKING:
    from tests.support.streams import Case


@pytest.mark.parametrize("case", CASES)
def test_leaving_the_block_releases_a_run_that_waits(case: Case) -> None:
    """Hazard: a producer waits for a free slot that no consumer will ever make."""
    model = ScriptedChatModel(tokens=tokens(500))

    async def scenario() -> None:
        async with case.running(model, maxsize=2) as running:
            assert await case.consumer.take(running, 3) == tokens(3)
        await case.consumer.wait(model.record.wait_until_finalized)
        await case.consumer.eventually(lambda: not our_threads())

    case.consumer.run(scenario)
    assert model.record.produced <= 3 + 2 + 1
    assert model.record.open == 0


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_every_waiting_producer_is_released(case: Case) -> None:
    """Hazard: the stop wakes one waiter, and that one has no reason to wake the next.

    The promise says within 100 ms.
    """
    models = {name: ScriptedChatModel(tokens=tokens(40)) for name in "abcdef"}
    target = RunnableParallel(dict(models))

    async def scenario() -> None:
        async with case.running(target, maxsize=1) as running:
            await case.consumer.eventually(lambda: putters_of(running) == 6)
            close = running.close if case.is_stream else running._handler.close
            close()
            await case.consumer.eventually(lambda: putters_of(running) == 0, 0.1)
        for model in models.values():
            await case.consumer.wait(model.record.wait_until_finalized)

    case.consumer.run(scenario)
    assert sum(model.record.produced for model in models.values()) == 6 + 1


@pytest.mark.parametrize("case", [case for case in STREAM_CASES if not case.values[0].is_sync])
def test_a_silent_asynchronous_run_ends_at_once(case: Case) -> None:
    """Hazard: it ends with its next token, and there is none."""
    model = ScriptedChatModel(tokens=tokens(4), gate=Gate(2))

    async def scenario() -> None:
        async with case.running(model) as running:
            assert await case.consumer.take(running, 2) == tokens(2)
        await case.consumer.wait(model.record.wait_until_finalized)

    case.consumer.run(scenario)
    assert model.record.produced == 2


@pytest.mark.parametrize("case", CASES)
def test_no_retry_and_no_fallback_after_a_stop(case: Case) -> None:
    """Hazard: what stops the run looks like a failure of the model's."""
    model = ScriptedChatModel(tokens=tokens(100))
    spare = ScriptedChatModel(tokens=["never "])
    target = model.with_retry(stop_after_attempt=3, wait_exponential_jitter=False)

    async def scenario() -> None:
        async with case.running(target.with_fallbacks([spare]), maxsize=1) as running:
            await case.consumer.take(running, 1)
        await case.consumer.wait(model.record.wait_until_finalized)

    case.consumer.run(scenario)
    assert (model.record.calls, spare.record.calls) == (1, 0)


@pytest.mark.parametrize("case", STREAM_CASES)
def test_dropping_the_last_reference_stops_the_run(case: Case) -> None:
    """Hazard: something that the producer holds refers to the stream."""
    model = ScriptedChatModel(tokens=tokens(100))

    async def scenario() -> None:
        answer: Any = case.stream(model, maxsize=1)
        assert await case.consumer.take(answer, 3) == tokens(3)
        del answer
        gc.collect()
        await case.consumer.wait(model.record.wait_until_finalized)
        await case.consumer.eventually(lambda: not our_threads())

    case.consumer.run(scenario)
    assert model.record.produced <= 3 + 1 + 1


@pytest.mark.parametrize("case", STREAM_CASES)
def test_no_collector_is_needed(case: Case) -> None:
    """Hazard: a stream is part of a cycle, and lives on until the collector comes."""
    model = ScriptedChatModel(tokens=tokens(100))
    was_enabled = gc.isenabled()
    gc.disable()

    async def scenario() -> None:
        answer: Any = case.stream(model, maxsize=1)
        await case.consumer.take(answer, 3)
        if case.queue == "default":
            await case.consumer.eventually(partial(is_blocked, answer))
        del answer
        await case.consumer.wait(model.record.wait_until_finalized)

    try:
        case.consumer.run(scenario)
    finally:
        if was_enabled:
            gc.enable()


@pytest.mark.parametrize("case", CASES)
def test_iteration_after_a_close(case: Case) -> None:
    """Hazard: what was buffered comes after all, or an early close looks like the end."""
    model = ScriptedChatModel(tokens=tokens(50))

    async def scenario() -> None:
        async with case.running(model, maxsize=8) as running:
            assert await case.consumer.take(running, 2) == tokens(2)
            close = running.close if case.is_stream else running._handler.close
            for _ in range(2):
                close()
                with pytest.raises(StreamClosedError):
                    await case.consumer.next(running)

    case.consumer.run(scenario)


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if case.values[0].producer in ("thread", "background", "handler-invoke")
    ],
)
def test_a_step_that_catches_everything_does_not_go_on(case: Case) -> None:
    """Hazard: the step's ``except Exception`` takes the stop for a failure of the model's."""
    model = ScriptedChatModel(tokens=tokens(100))
    excuses: list[str] = []

    def work(text: str, config: RunnableConfig) -> str:
        try:
            return str(model.invoke(text, config).content)
        except Exception as error:
            excuses.append(repr(error))
            return "sorry"

    async def scenario() -> None:
        async with case.running(RunnableLambda(work), maxsize=1) as running:
            await case.consumer.take(running, 1)
        await case.consumer.wait(model.record.wait_until_finalized)

    case.consumer.run(scenario)
    assert not excuses
