"""Promise 4 where the matrix does not reach: early, late, twice, and against resistance."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import (
    RunnableConfig,
    RunnableLambda,
    RunnableParallel,
    RunnableSequence,
)

from queuestream import stream
from queuestream.errors import StreamClosedError
from tests.support.aftermath import nothing_is_left
from tests.support.callbacks import RunLog
from tests.support.consumers import PAIRINGS, pairings
from tests.support.gates import Gate
from tests.support.models import (
    AsyncOnlyChatModel,
    ScriptedChatModel,
    SyncOnlyChatModel,
    WholeAnswerChatModel,
    silent_model,
    tokens,
)
from tests.support.stops import stopped_pairings

if TYPE_CHECKING:
    from tests.support.consumers import Consumer, RunIn
    from tests.support.stops import Stop

BY_KIND = pairings("for", "asyncio", "trio")
STOPPED = stopped_pairings(BY_KIND)
KINDS = [
    pytest.param(kind, *case.values, id=f"{kind.__name__}-{case.id}")
    for kind in (SyncOnlyChatModel, AsyncOnlyChatModel)
    for case in STOPPED
    if kind is SyncOnlyChatModel or case.values[0] != "thread"  # which needs `invoke`
]


def as_tasks(cases: list[Any]) -> list[Any]:
    """Return the cases whose run is a task."""
    return [case for case in cases if case.values[0] != "thread"]


class OwnError(Exception):
    """Raised by a model."""


# Early and late


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_close_before_the_start_starts_nothing(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: entering or iterating a closed stream makes the run that nobody will stop."""
    model = ScriptedChatModel(tokens=tokens(3))

    async def scenario() -> None:
        answer = stream(model, "?", run_in=run_in)
        answer.close()
        with pytest.raises(StreamClosedError):
            await consumer.next(answer)
        with pytest.raises(StreamClosedError):
            _ = answer.result

    consumer.run(scenario)
    assert model.record.calls == 0


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_leaving_the_block_before_the_first_token_stops_the_run(
    run_in: RunIn, consumer: Consumer
) -> None:
    """Hazard: the run has not got as far as the thing that would stop it."""
    model = silent_model()
    log = RunLog()

    async def scenario() -> None:
        answer = stream(model, "?", {"callbacks": [log]}, run_in=run_in)
        async with consumer.entered(answer):
            await consumer.eventually(lambda: model.gate is not None and model.gate.waiting)
        if run_in == "thread" and model.gate is not None:
            model.gate.release()
        await nothing_is_left(consumer, [model.record], log)

    consumer.run(scenario)
    assert model.record.produced == (run_in == "thread")


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_entering_and_leaving_at_once_leaves_nothing(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: the stop overtakes the start: a thread, or a task, that begins after its end."""
    model = ScriptedChatModel(tokens=tokens(3))

    async def scenario() -> None:
        for _ in range(20):
            async with consumer.entered(stream(model, "?", run_in=run_in, maxsize=1)):
                pass
        await consumer.eventually(
            lambda: not [t for t in threading.enumerate() if "queuestream run" in t.name]
        )
        await consumer.eventually(lambda: model.record.open == 0)

    consumer.run(scenario)
    assert model.record.produced <= 20 * 2


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_close_after_the_end_changes_nothing(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: a late close takes the result away."""

    async def scenario() -> None:
        async with consumer.entered(
            stream(ScriptedChatModel(tokens=["a", "b"]), "?", run_in=run_in)
        ) as answer:
            assert await consumer.collect(answer) == ["a", "b"]
            answer.close()
            await consumer.close(answer)
        assert (answer.result.content, answer.text) == ("ab", "ab")

    consumer.run(scenario)


@pytest.mark.parametrize(
    "run_in, consumer, stop",
    [case for case in stopped_pairings(PAIRINGS) if case.values[2].name != "reference dropped"],
)
def test_text_survives_an_early_stop(run_in: RunIn, consumer: Consumer, stop: Stop) -> None:
    """`text` is what was delivered; `result` and iteration raise."""
    seen: list[Any] = []

    async def scenario() -> None:
        def make() -> Any:
            seen.append(stream(ScriptedChatModel(tokens=tokens(50)), "?", run_in=run_in, maxsize=1))
            return seen[0]

        taken = await stop.after(consumer, make, 3)
        assert seen[0].text == "".join(taken)
        with pytest.raises(StreamClosedError):
            _ = seen[0].result
        with pytest.raises(StreamClosedError):
            await consumer.next(seen[0])

    consumer.run(scenario)


# How soon


@pytest.mark.parametrize("run_in, consumer", BY_KIND)
def test_every_waiting_producer_is_released_within_100_ms(
    run_in: RunIn, consumer: Consumer
) -> None:
    """Promise 4.  Hazard: one wake-up for many producers, or a producer that polls.

    Whatever keeps this machine busy is no fault of ours: the best of five counts.
    """
    delays: list[float] = []

    async def once() -> None:
        models = [ScriptedChatModel(tokens=tokens(9)) for _ in range(6)]
        branches = RunnableParallel({str(n): model for n, model in enumerate(models)})
        log = RunLog()
        config: RunnableConfig = {"callbacks": [log], "max_concurrency": 6}
        answer = stream(branches, "?", config, run_in=run_in, maxsize=1)
        await consumer.next(answer)
        # One item consumed, one in the queue, and each model waits with one in hand.
        await consumer.eventually(lambda: sum(model.record.produced for model in models) == 8)
        before = time.monotonic()
        answer.close()
        for model in models:
            await consumer.wait(model.record.wait_until_finalized)
        delays.append(time.monotonic() - before)
        await nothing_is_left(consumer, [model.record for model in models], log)
        assert sum(model.record.produced for model in models) == 8

    async def scenario() -> None:
        for _ in range(5):
            await once()
            if min(delays) < 0.1:
                break

    consumer.run(scenario)
    assert min(delays) < 0.1


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_dropping_the_last_reference_needs_no_collector(run_in: RunIn, consumer: Consumer) -> None:
    """Promise 4.  Hazard: a cycle, or the run itself, holds the stream until some later day."""
    gate = Gate(1)
    model = ScriptedChatModel(tokens=tokens(9), gate=gate)
    log = RunLog()

    async def scenario() -> None:
        answer = stream(model, "?", {"callbacks": [log]}, run_in=run_in)
        await consumer.next(answer)
        reference = weakref.ref(answer)
        gc.disable()
        try:
            del answer
            assert reference() is None
            gate.release()
            await nothing_is_left(consumer, [model.record], log)
        finally:
            gc.enable()

    consumer.run(scenario)
    assert model.record.produced <= 2


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_a_closed_stream_that_is_kept_holds_nothing_of_the_run(
    run_in: RunIn, consumer: Consumer
) -> None:
    """Promise 4.  Hazard: the error that ended the run holds its frames, and those a socket.

    A model without `_astream` is the hard case: LangChain leaves its generator to the frames.
    """
    gate = Gate(1)
    model = SyncOnlyChatModel(tokens=tokens(9), gate=gate)
    log = RunLog()

    async def scenario() -> None:
        async with consumer.entered(
            stream(model, "?", {"callbacks": [log]}, run_in=run_in)
        ) as answer:
            await consumer.next(answer)
        gc.disable()
        try:
            gate.release()
            await nothing_is_left(consumer, [model.record], log)
        finally:
            gc.enable()
        assert answer.text == "t0 "

    consumer.run(scenario)


# Against resistance


@pytest.mark.parametrize("kind, run_in, consumer, stop", KINDS)
def test_a_model_with_one_side_only_stops(
    kind: type[SyncOnlyChatModel | AsyncOnlyChatModel],
    run_in: RunIn,
    consumer: Consumer,
    stop: Stop,
) -> None:
    """Promise 4.  Hazard: without `_astream` a model runs in a thread even under `ainvoke`."""
    gate = Gate(3)
    model = kind(tokens=tokens(9), gate=gate)
    log = RunLog()

    async def scenario() -> None:
        await stop.after(
            consumer, lambda: stream(model, "?", {"callbacks": [log]}, run_in=run_in), 3
        )
        if kind is SyncOnlyChatModel:
            gate.release()
        await nothing_is_left(consumer, [model.record], log)

    consumer.run(scenario)
    assert model.record.produced <= 3 + (kind is SyncOnlyChatModel)


@pytest.mark.parametrize("run_in, consumer, stop", STOPPED)
def test_no_model_starts_after_a_stop_in_one_that_does_not_stream(
    run_in: RunIn, consumer: Consumer, stop: Stop
) -> None:
    """Promise 4.  Hazard: no token comes at which a sync run could notice the stop."""
    gate = Gate()
    first, never = (ScriptedChatModel(tokens=[text]) for text in ("a", "never"))
    whole = WholeAnswerChatModel(tokens=["b"], gate=gate)
    log = RunLog()
    chain: Any = RunnableSequence(first, StrOutputParser(), whole, never)

    async def scenario() -> None:
        await stop.after(
            consumer, lambda: stream(chain, "?", {"callbacks": [log]}, run_in=run_in), 1
        )
        gate.open()
        await nothing_is_left(consumer, [first.record, whole.record, never.record], log)

    consumer.run(scenario)
    assert never.record.calls == 0


@pytest.mark.parametrize("run_in, consumer", BY_KIND)
def test_code_that_swallows_the_stop_gets_no_further_token(
    run_in: RunIn, consumer: Consumer
) -> None:
    """Promise 4.  Hazard: ``except BaseException`` around a model, and another model after it."""
    model = ScriptedChatModel(tokens=tokens(9), gate=Gate(1))
    never = ScriptedChatModel(tokens=["never"])
    log, swallowed = RunLog(), threading.Event()

    def node(question: str, config: RunnableConfig) -> str:
        try:
            model.invoke(question, config)
        except BaseException:
            swallowed.set()
        return str(never.invoke(question, config).content)

    async def anode(question: str, config: RunnableConfig) -> str:
        try:
            await model.ainvoke(question, config)
        except BaseException:
            swallowed.set()
        return str((await never.ainvoke(question, config)).content)

    async def scenario() -> None:
        answer = stream(RunnableLambda(node, anode), "?", {"callbacks": [log]}, run_in=run_in)
        await consumer.next(answer)
        answer.close()
        assert model.gate is not None
        model.gate.release()
        await nothing_is_left(consumer, [model.record, never.record], log)

    consumer.run(scenario)
    assert swallowed.is_set()
    assert (model.record.produced <= 2, never.record.produced) == (True, 0)


@pytest.mark.parametrize("run_in, consumer", as_tasks(pairings("asyncio", "for")))
def test_sync_code_on_a_loops_thread_stops_when_its_call_returns(
    run_in: RunIn, consumer: Consumer, caplog: pytest.LogCaptureFixture
) -> None:
    """Promises 4 and 5.  Hazard: it waits for a consumer on its own loop, for ever.

    It goes past `maxsize`, with one warning, and starts no further model after the stop.
    """
    model = ScriptedChatModel(tokens=tokens(9))
    never = ScriptedChatModel(tokens=["never"])
    go_on, log = Gate(), RunLog()

    async def node(question: str, config: RunnableConfig) -> str:
        model.invoke(question, config)
        await go_on.wait_async()
        never.invoke(question, config)
        return "the end"

    async def scenario() -> None:
        answer = stream(RunnableLambda(node), "?", {"callbacks": [log]}, run_in=run_in, maxsize=1)
        async with consumer.entered(answer):
            await consumer.eventually(lambda: go_on.waiting > 0)  # all are made, none is taken
            assert await consumer.take(answer, 9) == tokens(9)
            answer.close()
            go_on.open()
        await nothing_is_left(consumer, [model.record, never.record], log)

    with caplog.at_level(logging.WARNING, "queuestream"):
        consumer.run(scenario)
    assert never.record.produced == 0
    assert [record.name for record in caplog.records].count("queuestream") == 1


@pytest.mark.parametrize("run_in, consumer", BY_KIND)
def test_an_error_of_the_run_after_the_stop_is_logged_and_not_raised(
    run_in: RunIn, consumer: Consumer, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: the clean-up of a stopped run fails, and tears down whoever stopped it."""
    gate = Gate(1)
    ended = threading.Event()

    def fail() -> None:
        ended.set()
        raise OwnError

    def node(_: str, config: RunnableConfig) -> None:
        try:
            model.invoke("?", config)
        finally:
            fail()

    async def anode(_: str, config: RunnableConfig) -> None:
        try:
            await model.ainvoke("?", config)
        finally:
            fail()

    model = ScriptedChatModel(tokens=tokens(9), gate=gate)

    async def scenario() -> None:
        async with consumer.entered(
            stream(RunnableLambda(node, anode), "?", run_in=run_in)
        ) as answer:
            await consumer.next(answer)
            answer.close()
            gate.open()
        await consumer.wait(lambda: ended.wait(5))
        await consumer.eventually(lambda: [r for r in caplog.records if "OwnError" in r.message])

    with caplog.at_level(logging.DEBUG, "queuestream"):
        consumer.run(scenario)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


@pytest.mark.parametrize(
    "run_in, consumer", as_tasks(pairings("asyncio", "uvloop", "eager", "trio"))
)
def test_a_stop_stands_when_aclose_is_cancelled(run_in: RunIn, consumer: Consumer) -> None:
    """Promise 4.  Hazard: the clean-up is slow, the waiting for it cancelled, the run forgotten."""
    cleaning, finish, cleaned = threading.Event(), Gate(), threading.Event()
    model = silent_model("a")
    log = RunLog()

    async def node(_: str, config: RunnableConfig) -> None:
        try:
            await model.ainvoke("?", config)
        finally:
            cleaning.set()
            await finish.wait_async()
            cleaned.set()

    async def scenario() -> None:
        answer = stream(RunnableLambda(node), "?", {"callbacks": [log]}, run_in=run_in)
        await consumer.next(answer)
        with anyio.move_on_after(0.01) as scope:
            await answer.aclose()
        assert scope.cancelled_caught
        await consumer.eventually(cleaning.is_set)
        assert not cleaned.is_set()
        finish.open()
        await nothing_is_left(consumer, [model.record], log)
        assert cleaned.is_set()

    consumer.run(scenario)
    assert model.record.produced == 1


# Nested


@pytest.mark.parametrize("run_in, consumer, stop", STOPPED)
def test_the_outer_stop_reaches_a_stream_inside_the_run(
    run_in: RunIn, consumer: Consumer, stop: Stop
) -> None:
    """Promise 4.  Hazard: the inner ``for`` takes the stop for its end, and the node goes on."""
    gate = Gate(2)
    model = ScriptedChatModel(tokens=tokens(9), gate=gate)
    went_on = threading.Event()
    log = RunLog()

    def node(_: str) -> None:
        with stream(model, "?") as inner:
            for _ in inner:
                pass
        went_on.set()

    async def anode(_: str) -> None:
        async with stream(model, "?") as inner:
            async for _ in inner:
                pass
        went_on.set()

    async def scenario() -> None:
        taken = await stop.after(
            consumer,
            lambda: stream(RunnableLambda(node, anode), "?", {"callbacks": [log]}, run_in=run_in),
            2,
        )
        assert taken == tokens(2)
        gate.release()
        await nothing_is_left(consumer, [model.record], log)

    consumer.run(scenario)
    assert model.record.produced <= 3
    assert not went_on.is_set()
