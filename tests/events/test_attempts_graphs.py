"""Attempts in LangGraph: nodes that are executed again, agents, and what is no failure."""

from __future__ import annotations

import operator
import sys
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelFallbackMiddleware
from langchain_core.messages import AIMessageChunk
from langchain_core.runnables import RunnableConfig  # noqa: TC002 - read at run time
from langchain_core.tools import StructuredTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, RetryPolicy, Send, interrupt

from queuestream import stream
from tests.events.test_attempts import (
    FOR_AND_ASYNCIO,
    NO,
    NoError,
    contents,
    flaky,
    parser,
    retried,
    texts,
    told,
)
from tests.support.gates import Gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.runnables import Runnable

    from tests.events.test_attempts import Flaky
    from tests.support.consumers import Consumer, RunIn

POLICY = RetryPolicy(initial_interval=0.0, jitter=False, max_attempts=4, retry_on=NoError)


class State(TypedDict):
    """The state of the graphs."""

    said: Annotated[list[str], operator.add]


def asking(model: Runnable[Any, Any], run_in: RunIn) -> Callable[..., Any]:
    """Return a node that asks a model: the plain one for ``thread``, else the other."""

    def node(state: State, config: RunnableConfig) -> State:
        return {"said": [str(model.invoke("?", config).content)]}

    async def anode(state: State, config: RunnableConfig) -> State:  # config: fact 10
        return {"said": [str((await model.ainvoke("?", config)).content)]}

    return node if run_in == "thread" else anode


def in_row(*nodes: Any, policy: RetryPolicy | None = POLICY, **options: Any) -> Any:
    """Return a graph of nodes that come one after the other."""
    builder = StateGraph(State)
    before = START
    for number, node in enumerate(nodes):
        builder.add_node(f"node {number}", node, retry_policy=policy)
        builder.add_edge(before, f"node {number}")
        before = f"node {number}"
    return builder.compile(**options)


async def read(consumer: Consumer, answer: Any, select: str) -> list[str]:
    """Collect what a stream gives: events in the short form, texts of the rest."""
    received = await consumer.collect(answer)
    if select == "event":
        return told(received)
    return contents(received) if select == "message" else list(received)


@pytest.mark.parametrize("select", ["text", "message", "event"])
@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_a_node_that_is_executed_again(run_in: RunIn, consumer: Consumer, select: Any) -> None:
    """Hazard: the retry of a node, which is LangGraph's own, is missed, or voids other nodes."""
    models = flaky(["first "]), flaky(["a ", NO], ["b ", NO], [NO], ["c "]), flaky(["last "])
    graph = in_row(*(asking(model, run_in) for model in models))
    expected = [
        *("1:first ", "1:a ", "restart 2", "2:b "),
        *("restart 3", "3:c ", "3:last "),
    ]

    async def scenario() -> None:
        answer: Any = stream(graph, {"said": []}, run_in=run_in, select=select)
        received = await read(consumer, answer, select)
        assert received == (expected if select == "event" else texts(expected))
        assert answer.text == "first c last "
        assert answer.result == {"said": ["first ", "c ", "last "]}
        assert answer.statistics.attempts == 3

    consumer.run(scenario)


@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_the_restart_of_a_node_says_which_it_is(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: a screen that shows nodes side by side does not know which one to clear."""
    subgraph = in_row(asking(flaky(["a ", NO], ["b "]), run_in))
    graph = in_row(subgraph)

    async def scenario() -> None:
        answer = stream(graph, {"said": []}, run_in=run_in, select="event")
        first, restart, second = await consumer.collect(answer)
        assert told([first, restart, second]) == ["1:a ", "restart 2", "2:b "]
        assert first.node == restart.node == second.node == "node 0"
        assert restart.name == "node 0"
        assert restart.run_id == second.parent_run_id

    consumer.run(scenario)


@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_a_subgraph_that_is_executed_again(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: the nodes of it that had succeeded keep their text, and it is there twice."""
    inner = flaky(["a "], ["b "]), flaky(["c ", NO], ["d "])
    subgraph = in_row(*(asking(model, run_in) for model in inner), policy=None)
    graph = in_row(asking(flaky(["first "]), run_in), subgraph)

    async def scenario() -> None:
        answer = stream(graph, {"said": []}, run_in=run_in, select="event")
        assert told(await consumer.collect(answer)) == [
            *("1:first ", "1:a ", "1:c "),
            *("restart 2", "2:b ", "2:d "),
        ]
        assert answer.text == "first b d "
        assert answer.statistics.attempts == 2

    consumer.run(scenario)


@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_one_of_several_sends_is_executed_again(run_in: RunIn, consumer: Consumer) -> None:
    """Promise 1.  Hazard: branches of one parent take the restart of one for their own."""
    fail, go_on = Gate(), Gate(1)
    models = {
        "steady": flaky(["s1 ", "s2 ", "s3 "], gate=go_on),
        "flaky": flaky(["a ", NO], ["b "], gate=fail),
    }

    def branch(state: State, config: RunnableConfig) -> State:
        model = models[state["said"][0]]
        return {"said": [str(model.invoke("?", config).content)]}

    async def abranch(state: State, config: RunnableConfig) -> State:
        model = models[state["said"][0]]
        return {"said": [str((await model.ainvoke("?", config)).content)]}

    def fan_out(state: State) -> list[Send]:
        return [Send("branch", {"said": [name]}) for name in models]

    builder = StateGraph(State)
    node: Any = branch if run_in == "thread" else abranch
    builder.add_node("branch", node, retry_policy=POLICY)
    builder.add_conditional_edges(START, fan_out, ["branch"])
    graph: Any = builder.compile()

    async def scenario() -> None:
        async with consumer.entered(
            stream(graph, {"said": []}, run_in=run_in, select="event")
        ) as answer:
            assert told(await consumer.take(answer, 1)) == ["1:s1 "]
            fail.open()
            assert told(await consumer.take(answer, 3)) == ["1:a ", "restart 2", "2:b "]
            go_on.open()
            assert told(await consumer.collect(answer)) == ["1:s2 ", "1:s3 "]
            assert answer.text == "s1 b s2 s3 "
            assert answer.result == {"said": ["s1 s2 s3 ", "b "]}
            assert answer.statistics.attempts == 2

    consumer.run(scenario)


# -- agents ----------------------------------------------------------------------------------------

QUESTION = {"messages": [("user", "?")]}


def tool_call(name: str) -> AIMessageChunk:
    """Return an answer that calls a tool."""
    call = {"name": name, "args": "{}", "id": "call 1", "index": 0, "type": "tool_call_chunk"}
    return AIMessageChunk(content="", tool_call_chunks=[call])  # type: ignore[list-item] # a TypedDict


def with_tools(model: Flaky) -> Flaky:
    """Return a model that takes tools, as an agent's must; it knows its answers anyway."""
    object.__setattr__(model, "bind_tools", lambda *_, **__: model)
    return model


@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_an_agents_tool_that_tries_again(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: the text that the agent said before its tool failed is void, too."""
    model = with_tools(flaky(["let me look ", tool_call("look")], ["done "]))
    inner = retried(flaky(["a "], ["b "]) | parser(1))

    def look(config: RunnableConfig) -> str:
        return str(inner.invoke("?", config))

    async def alook(config: RunnableConfig) -> str:
        return str(await inner.ainvoke("?", config))

    tool = StructuredTool.from_function(look, alook, name="look", description="Look.")

    async def scenario() -> None:
        answer = stream(create_agent(model, [tool]), QUESTION, run_in=run_in, select="event")
        events = [e for e in await consumer.collect(answer) if e.kind != "tool_call"]
        assert told(events) == ["1:let me look ", "1:a ", "restart 2", "2:b ", "2:done "]
        assert answer.text == "let me look b done "
        assert answer.statistics.attempts == 2

    consumer.run(scenario)


@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_a_tool_whose_failure_is_told_to_the_model_is_no_attempt(
    run_in: RunIn, consumer: Consumer
) -> None:
    """Hazard: the agent goes on with the error for an answer, and that is called a restart."""
    model = with_tools(flaky(["let me look ", tool_call("look")], ["sorry "]))
    inner = flaky(["a ", NO])

    def look(config: RunnableConfig) -> str:
        return str(inner.invoke("?", config))

    async def alook(config: RunnableConfig) -> str:
        return str(await inner.ainvoke("?", config))

    tool = StructuredTool.from_function(look, alook, name="look", description="Look.")
    tools = ToolNode([tool], handle_tool_errors=True)

    def ask(state: MessagesState, config: RunnableConfig) -> Any:
        return {"messages": [model.invoke(state["messages"], config)]}

    async def aask(state: MessagesState, config: RunnableConfig) -> Any:
        return {"messages": [await model.ainvoke(state["messages"], config)]}

    builder = StateGraph(MessagesState)
    builder.add_node("agent", ask if run_in == "thread" else aask)
    builder.add_node("tools", tools)
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", tools_condition)
    builder.add_edge("tools", "agent")
    agent: Any = builder.compile()

    async def scenario() -> None:
        answer = stream(agent, QUESTION, run_in=run_in, select="event")
        events = [e for e in await consumer.collect(answer) if e.kind != "tool_call"]
        assert told(events) == ["1:let me look ", "1:a ", "1:sorry "]
        assert answer.statistics.attempts == 1

    consumer.run(scenario)


@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_an_agents_model_that_is_replaced(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: middleware retries in Python, with no run of its own around the models."""
    model, spare = with_tools(flaky(["a ", NO])), with_tools(flaky(["b "]))
    agent: Any = create_agent(model, [], middleware=[ModelFallbackMiddleware(spare)])

    async def scenario() -> None:
        answer = stream(agent, QUESTION, run_in=run_in, select="event")
        assert told(await consumer.collect(answer)) == ["1:a ", "restart 2", "2:b "]
        assert answer.text == answer.result["messages"][-1].content == "b "

    consumer.run(scenario)


# -- no failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_an_interrupt_is_no_failure(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: it is an exception, and a branch that starts after it is called its restart."""
    if run_in != "thread" and sys.version_info < (3, 11):
        pytest.skip("interrupt() in an async node needs Python 3.11")
    inner = asking(flaky(["a "], ["b "]), run_in)

    def node(state: State, config: RunnableConfig) -> State:
        said: State = inner(state, config)
        interrupt("sure?")
        return said

    async def anode(state: State, config: RunnableConfig) -> State:
        said: State = await inner(state, config)
        interrupt("sure?")
        return said

    subgraph = in_row(node if run_in == "thread" else anode)
    graph = in_row(subgraph, asking(flaky(["c "]), run_in), checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}

    async def scenario() -> None:
        for data, expected in (
            ({"said": []}, ["1:a "]),
            (Command(resume=True), ["1:b ", "1:c "]),
        ):
            answer = stream(graph, data, config, run_in=run_in, select="event")
            assert told(await consumer.collect(answer)) == expected
            assert answer.statistics.attempts == 1

    consumer.run(scenario)


@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_a_handoff_to_the_parent_graph_is_no_failure(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: it travels as an exception, and voids what the agent said before it."""
    inner = asking(flaky(["over to you "]), run_in)

    def node(state: State, config: RunnableConfig) -> Any:
        return Command(goto="other", graph=Command.PARENT, update=inner(state, config))

    async def anode(state: State, config: RunnableConfig) -> Any:
        return Command(goto="other", graph=Command.PARENT, update=await inner(state, config))

    builder = StateGraph(State)
    builder.add_node("one", in_row(node if run_in == "thread" else anode))
    builder.add_node("other", asking(flaky(["hello "]), run_in))
    builder.add_edge(START, "one")
    graph: Any = builder.compile()

    async def scenario() -> None:
        answer = stream(graph, {"said": []}, run_in=run_in, select="event")
        assert told(await consumer.collect(answer)) == ["1:over to you ", "1:hello "]
        assert answer.text == "over to you hello "
        assert answer.statistics.attempts == 1

    consumer.run(scenario)
