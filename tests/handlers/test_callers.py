"""Runs that LangChain reports without a parent, and the run that calls them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda

from queuestream import QueueStreamHandler
from tests.support.gates import Gate, eventually_async
from tests.support.models import ScriptedChatModel, tokens


def test_a_run_that_outlives_its_caller_is_heard_to_its_end() -> None:
    """Hazard: it counts as the caller's child, and is dropped when that ends (promise 1)."""
    gate = Gate(1)
    model = ScriptedChatModel(tokens=["a", "b"], gate=gate)
    handler = QueueStreamHandler()

    async def main() -> None:
        begun: list[asyncio.Task[Any]] = []

        async def begin(question: str) -> str:
            run = model.ainvoke(question, {"callbacks": [handler]})
            begun.append(asyncio.create_task(run))
            await eventually_async(lambda: model.record.produced == 1)
            return question

        await RunnableLambda(begin).ainvoke("?", {"callbacks": [handler]})
        gate.open()
        assert [token async for token in handler] == ["a", "b"]
        await begun[0]

    asyncio.run(main())


def test_an_error_that_the_caller_has_caught_is_not_the_iterations() -> None:
    """Hazard: models in a fallback report no parent, and the first one's error is raised."""
    failing = ScriptedChatModel(tokens=tokens(3), failure=ValueError("no"), fail_at=1)
    handler = QueueStreamHandler()
    chain = failing.with_fallbacks([ScriptedChatModel(tokens=["b "])])
    chain.invoke("?", {"callbacks": [handler]})
    assert list(handler) == ["t0 ", "b "]


def test_calls_of_a_run_that_is_not_heard_are_no_restarts_of_each_other() -> None:
    """Hazard: the run around them, of which the handler knows nothing, makes them siblings."""
    gate = Gate()
    others = ScriptedChatModel(tokens=["other "], gate=gate)
    failing = ScriptedChatModel(tokens=tokens(3), failure=ValueError("no"), fail_at=1)
    handler = QueueStreamHandler(select="event")
    config: Any = {"callbacks": [handler]}

    async def main() -> None:
        async def call(question: str) -> str:
            open_run = asyncio.create_task(others.ainvoke(question, config))
            await eventually_async(lambda: gate.waiting)
            for model in (failing, ScriptedChatModel(tokens=["b "])):
                await asyncio.gather(model.ainvoke(question, config), return_exceptions=True)
            gate.open()
            await open_run
            return question

        await RunnableLambda(call).ainvoke("?")

    asyncio.run(main())
    told: list[tuple[str, str, int]] = []
    with pytest.raises(ValueError, match="no"):
        told.extend((event.kind, event.text, event.attempt) for event in handler)
    assert told == [("text", "t0 ", 1), ("text", "b ", 1), ("text", "other ", 1)]


def test_a_session_that_never_ends_keeps_nothing_of_its_runs() -> None:
    """Promise 9: a handler in a model's constructor, with a run that is always open."""
    gate = Gate()
    others = ScriptedChatModel(tokens=["other "], gate=gate)
    handler = QueueStreamHandler(0)
    config: Any = {"callbacks": [handler]}
    model = ScriptedChatModel(tokens=["a "])

    async def main() -> None:
        open_run = asyncio.create_task(others.ainvoke("?", config))
        await eventually_async(lambda: gate.waiting)
        for _ in range(20):
            await model.ainvoke("?", config)
        assert len(handler._runs) == 1
        assert len(handler.tokens.meter.counters) == 1  # of direct calls
        gate.open()
        await open_run

    asyncio.run(main())
    assert list(handler).count("a ") == 20
