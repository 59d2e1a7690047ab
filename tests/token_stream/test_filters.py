"""`include_*` and `exclude_*`: which model runs are heard (issue 3)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, Any, TypedDict

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda, RunnableParallel
from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph

from queuestream import QueueStreamHandler, TokenStream, stream
from queuestream.errors import StreamClosedError
from tests.support.consumers import in_another_thread, pairings
from tests.support.gates import Gate
from tests.support.models import ScriptedChatModel, ScriptedLLM, tokens
from tests.token_stream.test_select import StreamingLLM

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.consumers import Consumer, RunIn

PAIRINGS = pairings("for", "asyncio")
PLACES = [
    pairing
    for pairing in PAIRINGS
    if (pairing.values[0] == "task") == (pairing.values[1].name == "asyncio")
]
"""Each ``run_in`` once: who consumes makes no difference to what is heard."""
USAGE: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
OPTIONS = [f"{what}_{which}" for what in ("include", "exclude") for which in ("names", "tags")]
OPTIONS += ["include_nodes", "exclude_nodes"]


def consume(
    run_in: RunIn,
    consumer: Consumer,
    target: Any,
    data: Any = "?",
    config: Any = None,
    **options: Any,
) -> tuple[list[Any], TokenStream[Any]]:
    """Iterate a stream to its end; return the items, and the stream."""

    async def scenario() -> tuple[list[Any], TokenStream[Any]]:
        made = stream(target, data, run_in=run_in, **options)
        async with consumer.entered(made) as entered:
            return await consumer.collect(entered), entered

    return consumer.run(scenario)


# -- names and tags: as in astream_events ----------------------------------------------------------


def zoo() -> Runnable[Any, Any]:
    """Return a chain with models of many names and tags."""
    plain = ScriptedChatModel(tokens=["plain "])
    named = ScriptedChatModel(tokens=["named ", "twice "]).with_config(run_name="named")
    tagged = ScriptedChatModel(tokens=["tagged "]).with_config(tags=["red", "round"])
    both = ScriptedChatModel(tokens=["both "]).with_config(run_name="named", tags=["red"])
    own_tags = ScriptedChatModel(tokens=["own "], tags=["round"], name="its own")
    old = StreamingLLM(tokens=["old ", "style "]).with_config(tags=["blue"])
    inner = (RunnableLambda(str) | ScriptedChatModel(tokens=["inner "])).with_config(
        run_name="inner", tags=["blue"]
    )
    return RunnableParallel(
        plain=plain,
        named=named,
        tagged=tagged,
        both=both,
        own=own_tags,
        old=old,
        inner=inner,
    ).with_config(run_name="the zoo")


FILTERS: dict[str, dict[str, list[str]]] = {
    "all": {},
    "name": {"include_names": ["named"]},
    "names": {"include_names": ["named", "StreamingLLM", "none"]},
    "class name": {"include_names": ["ScriptedChatModel"]},
    "name given to the constructor": {"include_names": ["its own"]},
    "name of a chain": {"include_names": ["inner", "the zoo"]},
    "tag": {"include_tags": ["red"]},
    "tag of a chain": {"include_tags": ["blue"]},
    "tag of a step": {"include_tags": ["map:key:plain"]},
    "tags": {"include_tags": ["red", "blue"]},
    "name or tag": {"include_names": ["StreamingLLM"], "include_tags": ["red"]},
    "not the name": {"exclude_names": ["ScriptedChatModel"]},
    "not the tag": {"exclude_tags": ["round", "blue"]},
    "neither": {"exclude_names": ["named"], "exclude_tags": ["round"]},
    "name, not the tag": {"include_names": ["named"], "exclude_tags": ["red"]},
    "tag, not the name": {"include_tags": ["red"], "exclude_names": ["named"]},
    "the same in both": {"include_names": ["named"], "exclude_names": ["named"]},
    "no name": {"include_names": []},
    "no name, or tag": {"include_names": [], "include_tags": ["round"]},
    "not nothing": {"exclude_names": [], "exclude_tags": []},
    "other case": {"include_names": ["Named"], "include_tags": ["RED"]},
    "a part": {"include_names": ["name"], "include_tags": ["re"]},
}


def by_run(heard: list[tuple[object, str, str]]) -> list[tuple[str, str]]:
    """Join texts by run: the name and text of each run, sorted."""
    runs: defaultdict[tuple[object, str], str] = defaultdict(str)
    for run_id, name, text in heard:
        runs[run_id, name] += text
    return sorted((name, text) for (_, name), text in runs.items() if text)


@cache
def heard_by_astream_events(name: str) -> list[tuple[str, str]]:
    """Return what LangChain tells of the zoo with a filter, by run."""

    async def listen() -> list[tuple[object, str, str]]:
        listened: Any = zoo()
        return [
            (event["run_id"], event["name"], str(event["data"]["chunk"].text))
            async for event in listened.astream_events("?", version="v2", **FILTERS[name])
            if event["event"] in ("on_chat_model_stream", "on_llm_stream")
        ]

    return by_run(asyncio.run(listen()))


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("run_in, consumer", PLACES)
def test_names_and_tags_mean_what_they_mean_to_astream_events(
    run_in: RunIn, consumer: Consumer, name: str
) -> None:
    """Hazard: any instead of all, the parent's name, inherited tags, another default name."""
    received, made = consume(run_in, consumer, zoo(), select="event", **FILTERS[name])
    heard = by_run([(event.run_id, event.name, event.text) for event in received])
    assert heard == heard_by_astream_events(name)
    assert len(made.result) == 7
    assert made.statistics.tokens == len(received)


def test_the_filters_tell_runs_apart() -> None:
    """Hazard: the test above compares nothing with nothing."""
    sizes = {name: len(heard_by_astream_events(name)) for name in FILTERS}
    assert sizes["all"] == 7
    assert len(set(sizes.values())) > 4
    assert [name for name, size in sizes.items() if not size] == [
        "name of a chain",
        "the same in both",
        "no name",
        "other case",
        "a part",
    ]


# -- LangGraph nodes -------------------------------------------------------------------------------


class State(TypedDict):
    """The state of the graphs."""

    text: str


def node_of(model: Runnable[Any, Any]) -> Any:
    """Return a node that calls a model, both ways."""

    def node(state: State, config: RunnableConfig) -> State:
        return {"text": model.invoke(state["text"], config).text}

    async def in_task(state: State, config: RunnableConfig) -> State:  # config: fact 10
        return {"text": (await model.ainvoke(state["text"], config)).text}

    return RunnableLambda(node, in_task)


def graph_of(**nodes: Any) -> Runnable[Any, Any]:
    """Return a graph of nodes that follow each other."""
    builder = StateGraph(State)
    before = START
    for name, node in nodes.items():
        builder.add_node(name, node)
        builder.add_edge(before, name)
        before = name
    graph: Runnable[Any, Any] = builder.compile()
    return graph


def three_times(graph: Runnable[Any, Any]) -> Any:
    """Return a node that runs a graph three times."""

    def node(state: State, config: RunnableConfig) -> State:
        results: list[State] = [graph.invoke(state, config) for _ in range(3)]
        return results[-1]

    async def in_task(state: State, config: RunnableConfig) -> State:
        results: list[State] = [await graph.ainvoke(state, config) for _ in range(3)]
        return results[-1]

    return RunnableLambda(node, in_task)


def nested() -> Runnable[Any, Any]:
    """Return a graph whose nodes ``sub`` and ``loop`` hold graphs."""

    def model(text: str) -> Runnable[Any, Any]:
        return ScriptedChatModel(tokens=[text]).with_config(run_name=text, tags=[f"is {text}"])

    deep = graph_of(plan=node_of(model("A")), deepest=graph_of(act=node_of(model("B"))))
    return graph_of(
        plan=node_of(model("C")),
        sub=deep,
        loop=three_times(graph_of(act=node_of(model("D")))),
        last=node_of(model("E")),
    )


NODES: dict[str, tuple[dict[str, Any], str]] = {
    "all": ({}, "CABDDDE"),
    "one": ({"include_nodes": ["last"]}, "E"),
    "two": ({"include_nodes": ["last", "loop"]}, "DDDE"),
    "of a name, anywhere": ({"include_nodes": ["plan"]}, "CA"),
    "outer": ({"include_nodes": ["sub"]}, "AB"),
    "middle": ({"include_nodes": ["deepest"]}, "B"),
    "inner": ({"include_nodes": ["act"]}, "BDDD"),
    "not outer": ({"exclude_nodes": ["sub"]}, "CDDDE"),
    "not inner": ({"exclude_nodes": ["act"]}, "CAE"),
    "outer, not inner": ({"include_nodes": ["sub"], "exclude_nodes": ["act"]}, "A"),
    "inner, not outer": ({"include_nodes": ["act"], "exclude_nodes": ["sub"]}, "DDD"),
    "or a name": ({"include_nodes": ["last"], "include_names": ["A"]}, "AE"),
    "or a tag": ({"include_nodes": ["sub"], "include_tags": ["is C"]}, "CAB"),
    "not a name": ({"include_nodes": ["sub"], "exclude_names": ["B"]}, "A"),
    "not a tag": ({"include_nodes": ["plan"], "exclude_tags": ["is C"]}, "A"),
    "none": ({"include_nodes": []}, ""),
    # LangGraph counts the graphs that a node runs, in the same string that names the nodes.
    "no count of subgraphs": ({"include_nodes": ["1", "2"]}, ""),
    "unknown": ({"include_nodes": ["sub:plan", "pla", "LangGraph", "*", ""]}, ""),
}


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("run_in, consumer", PLACES)
def test_nodes(run_in: RunIn, consumer: Consumer, name: str) -> None:
    """A node's name covers the subgraphs in it.  Hazard: the innermost node alone counts."""
    options, expected = NODES[name]
    received, made = consume(run_in, consumer, nested(), {"text": "?"}, **options)
    assert "".join(received) == made.text == expected
    assert made.result == {"text": "E"}


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_an_event_names_the_innermost_node(run_in: RunIn, consumer: Consumer) -> None:
    received, _ = consume(run_in, consumer, nested(), {"text": "?"}, select="event")
    told = [(event.text, event.node) for event in received]
    assert told == [
        ("C", "plan"),
        ("A", "plan"),
        ("B", "act"),
        *[("D", "act")] * 3,
        ("E", "last"),
    ]


def test_functions_of_langgraph_are_nodes() -> None:
    """``@task`` and ``@entrypoint``: nodes without a graph to be seen."""

    @task
    def think(text: str) -> str:
        return str(ScriptedChatModel(tokens=["A"]).invoke(text).text)

    @entrypoint()
    def work(text: str) -> str:
        return think(text).result() + str(ScriptedChatModel(tokens=["B"]).invoke(text).text)

    told = [(event.text, event.node) for event in stream(work, "?", select="event")]
    assert told == [("A", "think"), ("B", "work")]
    assert list(stream(work, "?", include_nodes=["think"])) == ["A"]
    assert list(stream(work, "?", include_nodes=["work"])) == ["A", "B"]
    assert list(stream(work, "?", exclude_nodes=["think"])) == ["B"]


# -- nostream --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["nostream", "langsmith:nostream"])
@pytest.mark.parametrize(
    "options", [{}, {"include_tags": ["nostream", "langsmith:nostream"]}, {"exclude_tags": ["x"]}]
)
@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_nostream(run_in: RunIn, consumer: Consumer, options: dict[str, Any], tag: str) -> None:
    """Hazard: an exclude option replaces what is always excluded, or include wins."""
    quiet = ScriptedChatModel(tokens=["quiet "]).with_config(tags=[tag])
    chain = (RunnableLambda(str) | ScriptedChatModel(tokens=["inner "])).with_config(tags=[tag])
    whole = ScriptedLLM(tokens=["old "]).with_config(tags=[tag])
    # "nostreaming" is another tag
    heard = ScriptedChatModel(tokens=["heard "]).with_config(tags=["nostreaming"])
    target = quiet | RunnableLambda(str) | chain | RunnableLambda(str) | whole | heard
    received, made = consume(run_in, consumer, target, **options)
    assert received == ([] if "include_tags" in options else ["heard "])
    assert made.result.text == "heard "


# -- what is not heard -----------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["text", "message", "event"])
@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_filters_that_match_nothing(run_in: RunIn, consumer: Consumer, select: Any) -> None:
    """An empty iteration, the result, the usage.  Hazard: what nobody hears waits for a slot."""
    usage = AIMessageChunk(content="", usage_metadata=USAGE)
    model = ScriptedChatModel(tokens=[*tokens(50), usage])
    target = model | RunnableLambda(str) | ScriptedLLM(tokens=["whole"])

    async def scenario() -> None:
        made = stream(target, "?", run_in=run_in, select=select, maxsize=1, include_names=["none"])
        async with consumer.entered(made) as entered:
            await consumer.wait(lambda: model.record.wait_until_produced(51))
            assert await consumer.collect(entered) == []
        assert made.result == "whole"
        assert made.usage == USAGE
        assert made.text == ""
        statistics = made.statistics
        assert (statistics.tokens, statistics.characters, statistics.peak_buffered) == (0, 0, 0)
        assert (statistics.blocked, statistics.time_to_first_token) == (0, None)

    consumer.run(scenario)


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_the_error_of_a_run_that_is_not_heard(run_in: RunIn, consumer: Consumer) -> None:
    """Promise 3.  It is no attempt either: none of its text was delivered."""
    failure = ValueError("unheard")
    model = ScriptedChatModel(tokens=tokens(3), failure=failure, fail_at=2)
    spare = ScriptedChatModel(tokens=["spare "])
    target = model.with_config(run_name="unheard").with_fallbacks([spare])
    received, made = consume(run_in, consumer, target, exclude_names=["unheard"], select="event")
    assert [(event.kind, event.text, event.attempt) for event in received] == [
        ("text", "spare ", 1)
    ]
    assert made.statistics.attempts == 1
    with pytest.raises(ValueError, match="unheard") as raised:
        consume(run_in, consumer, model, include_names=[])
    assert raised.value is failure


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_a_stop_reaches_a_run_that_is_not_heard(run_in: RunIn, consumer: Consumer) -> None:
    """Promise 4.  Hazard: a run that puts nothing into the queue never asks whether to stop."""
    gate = Gate(2)
    model = ScriptedChatModel(tokens=tokens(50), gate=gate)
    target = model.with_retry(stop_after_attempt=3, wait_exponential_jitter=False)

    async def scenario() -> None:
        made = stream(target, "?", run_in=run_in, exclude_names=["ScriptedChatModel"])
        async with consumer.entered(made):
            await consumer.eventually(lambda: model.record.produced == 2 and gate.waiting)
            made.close()
            gate.open()
            with pytest.raises(StreamClosedError):
                await consumer.next(made)
        await consumer.wait(model.record.wait_until_finalized)

    consumer.run(scenario)
    assert model.record.produced <= 3
    assert model.record.calls == 1


# -- what the options take -------------------------------------------------------------------------


def by_stream(model: Any, **options: Any) -> list[str]:
    return list(stream(model, "?", **options))


def by_handler(model: Any, **options: Any) -> list[str]:
    handler: Any = QueueStreamHandler(**options)
    thread = in_another_thread(lambda: model.invoke("?", {"callbacks": [handler]}))
    received = list(handler)
    thread.join()
    return received


@pytest.mark.parametrize("hear", [by_stream, by_handler])
@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        set,
        frozenset,
        dict.fromkeys,
        lambda names: dict.fromkeys(names).keys(),
        iter,
        lambda names: (name for name in names),
    ],
    ids=["list", "tuple", "set", "frozenset", "dict", "keys", "iterator", "generator"],
)
def test_a_collection_of_strings(
    hear: Callable[..., list[str]], make: Callable[[list[str]], Any]
) -> None:
    """Hazard: a generator is used up by the first run."""
    one = ScriptedChatModel(tokens=["a"]).with_config(run_name="one")
    other = ScriptedChatModel(tokens=["b"]).with_config(run_name="other")
    target = one | RunnableLambda(str) | other | RunnableLambda(str) | one
    assert hear(target, include_names=make(["one", "three"])) == ["a", "a"]
    assert hear(target, exclude_names=make(["one", "three"])) == ["b"]


def test_the_options_are_read_at_the_call() -> None:
    """Hazard: a list that the caller changes later filters a run that goes on."""
    names = ["ScriptedChatModel"]
    made = stream(ScriptedChatModel(tokens=["a"]), "?", include_names=names)
    handler = QueueStreamHandler(include_names=names)
    names.clear()
    assert list(made) == ["a"]
    ScriptedChatModel(tokens=["a"]).invoke("?", {"callbacks": [handler]})
    assert list(handler) == ["a"]


@pytest.mark.parametrize("make", [lambda **given: stream(zoo(), "?", **given), QueueStreamHandler])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    "given", ["red", "", b"red", 1, True, object, ["red", 1], [None], [b"red"], [["red"]], b""]
)
def test_bad_filters(make: Callable[..., object], option: str, given: Any) -> None:
    """Hazard: ``include_tags="red"`` is taken for the tags r, e and d, and nothing is heard."""
    with pytest.raises(TypeError) as raised:
        make(**{option: given})
    message = str(raised.value)
    assert option in message
    assert repr(given) in message
    assert "list (or set, tuple) of strings" in message
