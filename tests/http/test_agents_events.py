"""Events of LangGraph agents over a real connection: whose each is, and that none is mixed up.

The measure is what LangChain's own `astream_events` says of the same run.
"""

from __future__ import annotations

import operator
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from queuestream import QueueStreamHandler, TokenEvent, stream
from tests.http.test_agents import CALL, INNER, OUTER, QUESTION, agent
from tests.support.callbacks import RunLog
from tests.support.clients import openai_client
from tests.support.consumers import pairings
from tests.support.gates import Gate
from tests.support.models import tokens
from tests.support.server import chat_completion
from tests.support.streams import DEFAULT_CASES, HandlerRun

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from uuid import UUID

    from langchain_core.runnables import Runnable

    from tests.support.consumers import Consumer
    from tests.support.server import Answer, ReplayServer, Scenario
    from tests.support.streams import Case

CASES = [case for case in DEFAULT_CASES if case.values[0].consumer.name in ("for", "asyncio")]
"""`stream()` in each place, and a handler in each, with each kind of consumer."""
BRANCHES = ("left", "middle", "right")
START_DATA = {"branch": "", "answers": []}
Whose: TypeAlias = tuple[str, tuple[str, ...], str | None, str, str]
"""Name, tags and node of a run; the text and the arguments of calls that it told."""


class State(TypedDict):
    """What the graphs below pass on."""

    branch: str
    answers: Annotated[list[str], operator.add]


def asking(model: Runnable[Any, Any]) -> RunnableLambda[Any, Any]:
    """Return a node that asks a model."""

    def ask(state: State, config: RunnableConfig) -> dict[str, Any]:
        return {"answers": [str(model.invoke("?", config).content)]}

    async def aask(state: State, config: RunnableConfig) -> dict[str, Any]:
        return {"answers": [str((await model.ainvoke("?", config)).content)]}

    return RunnableLambda(ask, aask, name="asking")


def nested(scenario: Scenario) -> Runnable[Any, Any]:
    """Return a graph that asks, and then has a subgraph ask; two nodes have one name."""
    model = openai_client(scenario)
    inner = StateGraph(State)
    inner.add_node("ask", asking(model.with_config(tags=["deep"], run_name="the inner one")))
    inner.add_edge(START, "ask")
    outer = StateGraph(State)
    outer.add_node("ask", asking(model))
    outer.add_node("below", inner.compile())
    outer.add_edge(START, "ask")
    outer.add_edge("ask", "below")
    made: Runnable[Any, Any] = outer.compile()
    return made


def fan_out(scenarios: Sequence[Scenario]) -> Runnable[Any, Any]:
    """Return a graph whose node runs once for each branch, all at the same time."""
    models = {
        branch: openai_client(scenario).with_config(tags=[branch], run_name=f"{branch} voice")
        for branch, scenario in zip(BRANCHES, scenarios, strict=True)
    }

    def ask(state: State, config: RunnableConfig) -> dict[str, Any]:
        answer = models[state["branch"]].invoke("?", config)
        return {"answers": [str(answer.content)]}

    async def aask(state: State, config: RunnableConfig) -> dict[str, Any]:
        answer = await models[state["branch"]].ainvoke("?", config)
        return {"answers": [str(answer.content)]}

    def send(_: State) -> list[Send]:
        return [Send("voice", {"branch": branch, "answers": []}) for branch in BRANCHES]

    graph = StateGraph(State)
    graph.add_node("voice", RunnableLambda(ask, aask, name="asking"))
    graph.add_conditional_edges(START, send, ["voice"])
    graph.add_edge("voice", END)
    made: Runnable[Any, Any] = graph.compile()
    return made


@asynccontextmanager
async def events_of(
    case: Case, target: Runnable[Any, Any], data: Any, log: RunLog
) -> AsyncIterator[Any]:
    """Start a run; its events are iterated."""
    if case.is_stream:
        run_in: Any = case.producer
        made = stream(target, data, {"callbacks": [log]}, run_in=run_in, select="event")
        async with case.consumer.entered(made) as entered:
            yield entered
        return
    handler = QueueStreamHandler(select="event")
    run = HandlerRun(case.producer, target, data, [log, handler])
    try:
        yield iter(handler)
    finally:
        handler.close()
        await run.wait(case.consumer)
    assert run.error is None


def whose(events: Sequence[TokenEvent], log: RunLog) -> list[Whose]:
    """Each run that the events are of, and what they tell; all of a run say the same of it."""
    runs: dict[UUID | None, list[TokenEvent]] = {}
    for event in events:
        runs.setdefault(event.run_id, []).append(event)
    found: list[Whose] = []
    for run_id, own in runs.items():
        assert run_id is not None
        ((name, node, tags, parent),) = {(e.name, e.node, e.tags, e.parent_run_id) for e in own}
        assert parent == log.started[run_id]
        assert all(event.attempt == 1 and event.streamed for event in own)
        text, arguments = (
            "".join(event.text for event in own if event.kind == kind)
            for kind in ("text", "tool_call")
        )
        found.append((name, tags, node, text, arguments))
    return sorted(found)


def said_by_langchain(target: Runnable[Any, Any], data: Any) -> list[Whose]:
    """What `astream_events` tells of a run of the target."""
    runs: dict[str, Whose] = {}

    async def consume() -> None:
        reported: AsyncIterator[Any] = target.astream_events(data, version="v2")
        async for event in reported:
            if event["event"] != "on_chat_model_stream":
                continue
            chunk: Any = event["data"]["chunk"]
            node: str = event["metadata"]["langgraph_node"]
            start = event["name"], tuple(event["tags"]), node, "", ""
            name, tags, node_, text, arguments = runs.get(event["run_id"], start)
            text += str(chunk.text)
            arguments += "".join(call["args"] or "" for call in chunk.tool_call_chunks)
            runs[event["run_id"]] = name, tags, node_, text, arguments

    asyncio_consumer: Consumer = pairings("asyncio")[0].values[1]
    asyncio_consumer.run(consume)
    return sorted(runs.values())


def fan_out_said_by_langchain(server: ReplayServer, answers: dict[str, Answer]) -> list[Whose]:
    """What `astream_events` tells of a fan-out whose branches get these answers."""
    return said_by_langchain(fan_out([*map(server.scenario, answers.values())]), START_DATA)


def told(case: Case, target: Runnable[Any, Any], data: Any) -> list[Whose]:
    """What the events of a run tell."""
    log = RunLog()

    async def consume() -> list[Whose]:
        async with events_of(case, target, data, log) as events:
            return whose(await case.consumer.collect(events), log)

    return case.consumer.run(consume)


@pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="fact 10: astream_events does not hear the tool's model",
)
@pytest.mark.parametrize("case", CASES)
def test_a_tool_loop_says_which_step_and_which_tool_speaks(
    server: ReplayServer, case: Case
) -> None:
    """Promise 6.  Hazard: what the tool's own model says is taken for the agent's."""
    answers = [CALL, chat_completion(INNER), chat_completion(OUTER)]
    target = agent(server.scenario(*answers, *answers))
    expected = said_by_langchain(target, QUESTION)
    assert [(node, text) for _, _, node, text, _ in expected] == [
        ("model", "let me look "),
        ("model", "".join(OUTER)),
        ("tools", "".join(INNER)),
    ]
    assert told(case, target, QUESTION) == expected


@pytest.mark.parametrize("case", CASES)
def test_a_subgraph_says_the_innermost_node(server: ReplayServer, case: Case) -> None:
    """Promise 6.  Hazard: what a subgraph says bears the name of the node that it stands in."""
    answers = [chat_completion(OUTER), chat_completion(INNER)]
    target = nested(server.scenario(*answers, *answers))
    expected = said_by_langchain(target, START_DATA)
    assert {(name, node, text) for name, _, node, text, _ in expected} == {
        ("ChatOpenAI", "ask", "".join(OUTER)),
        ("the inner one", "ask", "".join(INNER)),
    }
    assert [("deep" in tags) for _, tags, *_ in expected] == [False, True]
    assert told(case, target, START_DATA) == expected


@pytest.mark.parametrize("case", CASES)
def test_parallel_branches_stay_apart_and_in_order(server: ReplayServer, case: Case) -> None:
    """Promise 1.  Hazard: branches that speak in turns get each other's words, or lose the order.

    Each round lets one token of each branch out, in another order of the branches.
    """
    texts = {branch: [f"{branch} {token}" for token in tokens(4)] for branch in BRANCHES}
    answers = {branch: chat_completion(texts[branch]) for branch in BRANCHES}
    expected = fan_out_said_by_langchain(server, answers)
    assert {(name, node, text) for name, _, node, text, _ in expected} == {
        (f"{branch} voice", "voice", "".join(texts[branch])) for branch in BRANCHES
    }
    paces = {branch: Gate(1) for branch in BRANCHES}
    paced = [replace(answers[branch], pace=paces[branch]) for branch in BRANCHES]
    target = fan_out([*map(server.scenario, paced)])
    log = RunLog()
    rounds = [BRANCHES[turn:] + BRANCHES[:turn] for turn in (0, 1, 2, 0)]

    async def consume() -> None:
        consumer = case.consumer
        async with events_of(case, target, START_DATA, log) as stream_:
            events: list[TokenEvent] = []
            for position, branches in enumerate(rounds):
                for branch in branches:
                    paces[branch].release()
                    event = await consumer.next(stream_)
                    assert event.text == texts[branch][position]
                    assert branch in event.tags
                    events.append(event)
            for pace in paces.values():
                pace.open()
            assert await consumer.collect(stream_) == []
            assert len({event.run_id for event in events}) == len(BRANCHES)
            assert whose(events, log) == expected

    case.consumer.run(consume)


@pytest.mark.parametrize("case", CASES)
def test_branches_at_full_speed_stay_apart_and_in_order(server: ReplayServer, case: Case) -> None:
    """Promise 1.  Hazard: events of one chunk are put between those of another run's."""
    texts = {branch: [f"{branch} {token}" for token in tokens(40)] for branch in BRANCHES}
    answers = {branch: chat_completion(texts[branch]) for branch in BRANCHES}
    expected = fan_out_said_by_langchain(server, answers)
    target = fan_out([*map(server.scenario, answers.values())])
    assert told(case, target, START_DATA) == expected


@pytest.mark.parametrize("case", [case for case in CASES if case.values[0].is_stream])
def test_one_branch_can_be_heard_alone(server: ReplayServer, case: Case) -> None:
    """Hazard: a filter hears another branch of the same node, or usage and result go with it."""
    texts = {branch: [f"{branch} {token}" for token in tokens(4)] for branch in BRANCHES}
    scenarios = [server.scenario(chat_completion(texts[branch])) for branch in BRANCHES]
    run_in: Any = case.producer
    made = stream(
        fan_out(scenarios),
        START_DATA,
        run_in=run_in,
        select="event",
        include_tags=["middle"],
    )

    async def consume() -> None:
        async with case.consumer.entered(made) as events:
            heard = [event.text for event in await case.consumer.collect(events)]
            assert heard == texts["middle"]
            assert events.text == "".join(heard)
            assert events.result["answers"] == ["".join(texts[branch]) for branch in BRANCHES]

    case.consumer.run(consume)
