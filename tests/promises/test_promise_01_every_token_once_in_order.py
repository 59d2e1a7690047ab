"""Promise 1: per run, no token is lost, doubled or moved, on every pairing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel

from tests.support.gates import Gate
from tests.support.models import (
    AsyncOnlyChatModel,
    ScriptedChatModel,
    SyncOnlyChatModel,
    WholeAnswerChatModel,
    tokens,
)
from tests.support.streams import CASES, DEFAULT_CASES, STREAM_CASES

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable

    from tests.support.streams import Case


@pytest.mark.parametrize("maxsize", [1, 3, 256])
@pytest.mark.parametrize("case", CASES)
def test_all_tokens_once_in_order(case: Case, maxsize: int) -> None:
    """Hazard: each full and each empty queue is a chance to lose a wake-up or an item."""
    model = ScriptedChatModel(tokens=tokens(120))

    async def scenario() -> list[str]:
        async with case.running(model, maxsize=maxsize) as running:
            return await case.consumer.collect(running)

    assert case.consumer.run(scenario) == tokens(120)


@pytest.mark.parametrize("case", CASES)
def test_each_token_arrives_before_the_next_is_made(case: Case) -> None:
    """Hazard: tokens are gathered somewhere, and arrive late and together."""
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(20), gate=gate)

    async def scenario() -> None:
        async with case.running(model) as running:
            for number, token in enumerate(tokens(20), start=1):
                gate.release()
                assert await case.consumer.next(running) == token
                assert model.record.produced == number

    case.consumer.run(scenario)


@pytest.mark.parametrize("maxsize", [1, 256])
@pytest.mark.parametrize("case", CASES)
def test_runs_side_by_side_keep_their_own_order(case: Case, maxsize: int) -> None:
    """Hazard: several producers wait for one slot, and a later token gets it first."""
    branches = {
        name: ScriptedChatModel(tokens=[f"{name}{number}" for number in range(50)])
        for name in ("a", "b", "c")
    }
    target: Runnable[Any, Any] = RunnableParallel(dict(branches))

    async def scenario() -> list[str]:
        async with case.running(target, maxsize=maxsize) as running:
            return await case.consumer.collect(running)

    received = case.consumer.run(scenario)
    for name, model in branches.items():
        assert [token for token in received if token.startswith(name)] == model.tokens
    assert len(received) == 150


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_a_model_without_async_side(case: Case) -> None:
    """Hazard: under ``ainvoke`` LangChain moves such a model to threads, token by token."""
    model = SyncOnlyChatModel(tokens=tokens(60))

    async def scenario() -> list[str]:
        async with case.running(model, maxsize=2) as running:
            return await case.consumer.collect(running)

    assert case.consumer.run(scenario) == tokens(60)


@pytest.mark.parametrize("case", [case for case in DEFAULT_CASES if not case.values[0].is_sync])
def test_a_model_without_sync_side(case: Case) -> None:
    model = AsyncOnlyChatModel(tokens=tokens(60))

    async def scenario() -> list[str]:
        async with case.running(model, maxsize=2) as running:
            return await case.consumer.collect(running)

    assert case.consumer.run(scenario) == tokens(60)


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_does_not_stream_gives_its_text_once(case: Case) -> None:
    """Hazard: its text comes at the end of the run, outside of all tokens (fact 7)."""
    model = WholeAnswerChatModel(tokens=["all ", "at ", "once"])

    async def scenario() -> list[str]:
        async with case.running(model) as running:
            return await case.consumer.collect(running)

    assert case.consumer.run(scenario) == ["all at once"]


@pytest.mark.parametrize("case", CASES)
def test_models_one_after_the_other_deep_in_a_chain(case: Case) -> None:
    """Hazard: only the tokens of the last step are heard, as with the built-in stream."""
    first = ScriptedChatModel(tokens=tokens(30))
    second = ScriptedChatModel(tokens=tokens(30, start=30))
    prompt = ChatPromptTemplate.from_template("Tell me about {topic}.")
    again: RunnableLambda[str, str] = RunnableLambda(lambda text: f"Shorter: {text}")
    chain = prompt | first | StrOutputParser() | again | second | StrOutputParser()

    async def scenario() -> list[str]:
        async with case.running(chain, {"topic": "rivers"}, maxsize=1) as running:
            return await case.consumer.collect(running)

    assert case.consumer.run(scenario) == tokens(60)


@pytest.mark.parametrize("case", STREAM_CASES)
def test_the_result_is_what_invoke_returns(case: Case) -> None:
    model = ScriptedChatModel(tokens=tokens(5))

    async def scenario() -> None:
        async with case.running(model | StrOutputParser()) as running:
            received = await case.consumer.collect(running)
        assert running.result == "".join(tokens(5)) == "".join(received) == running.text

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", CASES)
def test_several_streams_at_the_same_time_do_not_mix(case: Case) -> None:
    """Hazard: whatever streams share (a loop, a doorbell) delivers to the wrong one."""
    models = [
        ScriptedChatModel(tokens=[f"{name}{number}" for number in range(20)]) for name in "abc"
    ]

    async def scenario() -> None:
        async with (
            case.running(models[0], maxsize=1) as a,
            case.running(models[1], maxsize=1) as b,
            case.running(models[2], maxsize=1) as c,
        ):
            for number in range(20):
                for name, running in (("a", a), ("b", b), ("c", c)):
                    assert await case.consumer.next(running) == f"{name}{number}"

    case.consumer.run(scenario)
