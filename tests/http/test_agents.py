"""LangGraph agents over a real connection, with a tool whose own model call streams, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from langchain.agents import create_agent
from langchain_core.runnables import RunnableConfig  # noqa: TC002 - read at run time
from langchain_core.tools import StructuredTool

from queuestream import stream
from tests.support.callbacks import RunLog
from tests.support.clients import openai_client
from tests.support.consumers import PAIRINGS
from tests.support.models import tokens
from tests.support.server import chat_completion
from tests.support.stops import stopped_pairings

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable

    from tests.support.consumers import Consumer, RunIn
    from tests.support.server import ReplayServer, Scenario
    from tests.support.stops import Stop

CALL = chat_completion(["let me look "], tool_call=("look", '{"where": "there"}'))
INNER = [f"inner {token}" for token in tokens(3)]
OUTER = [f"outer {token}" for token in tokens(3)]
QUESTION = {"messages": [("user", "?")]}


def agent(scenario: Scenario) -> Runnable[Any, Any]:
    """Return an agent with one tool, which asks the same provider."""
    model = openai_client(scenario)

    def look(where: str, config: RunnableConfig) -> str:
        return str(model.invoke(where, config).content)

    async def alook(where: str, config: RunnableConfig) -> str:
        return str((await model.ainvoke(where, config)).content)

    tool = StructuredTool.from_function(look, alook, name="look", description="Look there.")
    made: Runnable[Any, Any] = create_agent(model, [tool])
    return made


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_tokens_of_the_agent_and_of_the_tools_model_arrive_one_by_one(
    server: ReplayServer, run_in: RunIn, consumer: Consumer
) -> None:
    """Promises 1 and 6.  Hazard: callbacks do not reach the model inside the tool."""
    (inner_pace, inner), (outer_pace, outer) = (
        chat_completion(texts).paced(1) for texts in (INNER, OUTER)
    )
    scenario = server.scenario(CALL, inner, outer)

    async def consume() -> None:
        async with consumer.entered(stream(agent(scenario), QUESTION, run_in=run_in)) as answer:
            assert await consumer.next(answer) == "let me look "
            for pace, texts in ((inner_pace, INNER), (outer_pace, OUTER)):
                for text in texts:
                    pace.release()
                    assert await consumer.next(answer) == text
                pace.open()
            assert await consumer.collect(answer) == []
            assert answer.result["messages"][-1].content == "".join(OUTER)

    consumer.run(consume)
    assert len(scenario.exchanges) == 3


@pytest.mark.parametrize("run_in, consumer, stop", stopped_pairings(PAIRINGS))
def test_a_stop_inside_the_tool_stops_the_agent(
    server: ReplayServer, run_in: RunIn, consumer: Consumer, stop: Stop
) -> None:
    """Promise 4.  Hazard: the tool's model is stopped, and the agent takes that for an answer."""
    pace, inner = chat_completion(INNER).paced(2)
    scenario = server.scenario(CALL, inner)
    log = RunLog()
    target = agent(scenario)

    async def consume() -> None:
        taken = await stop.after(
            consumer, lambda: stream(target, QUESTION, {"callbacks": [log]}, run_in=run_in), 2
        )
        assert taken == ["let me look ", INNER[0]]
        if run_in == "thread":
            pace.release()
        gone = scenario.exchanges[1].disconnected
        assert await consumer.wait(lambda: gone.wait(5)), "the connection stayed open"
        await consumer.wait(log.wait_until_outermost_ended)

    consumer.run(consume)
    assert scenario.exchanges[1].sent <= 3
    assert scenario.unexpected == 0
