"""Promise 6: context variables, tracing parents and tags reach the model and the tools."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import anyio
import anyio.lowlevel
import pytest
from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langchain_core.runnables import (
    RunnableConfig,
    RunnableLambda,
)
from langchain_core.tools import tool

from queuestream import stream
from queuestream.errors import RunStopped
from tests.support.gates import Gate
from tests.support.models import ScriptedChatModel, seen_by_model, tokens
from tests.support.streams import STREAM_CASES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.streams import Case

needs_context_in_tasks = pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="fact 10: on Python 3.10 LangChain passes no callbacks on in async functions",
)


class Spy(BaseCallbackHandler):
    """Notes with what each run starts."""

    run_inline = True

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.tokens: list[str] = []

    def _note(self, *_: Any, **about: Any) -> None:
        self.starts.append(about)

    on_chain_start = on_chat_model_start = on_tool_start = _note

    def on_llm_new_token(self, token: Any, **_: Any) -> None:
        self.tokens.append(token)

    def parent_of(self, run_id: UUID) -> UUID | None:
        """Return the parent of a run."""
        parents: dict[UUID, UUID | None] = {
            start["run_id"]: start["parent_run_id"] for start in self.starts
        }
        return parents[run_id]


@pytest.fixture(autouse=True)
def _clean_context() -> Iterator[None]:
    token = seen_by_model.set("")
    yield
    seen_by_model.reset(token)


@pytest.mark.parametrize("case", STREAM_CASES)
def test_context_variables_are_those_of_the_call(case: Case) -> None:
    """Hazard: a thread, a task of another loop, or one that starts later has others."""
    model = ScriptedChatModel(tokens=tokens(3))

    async def scenario() -> None:
        seen_by_model.set("when stream() was called")
        answer = case.stream(model)
        seen_by_model.set("when it began")
        async with case.consumer.entered(answer) as running:
            await case.consumer.collect(running)

    case.consumer.run(scenario)
    assert model.record.context == ["when stream() was called"]


@pytest.mark.parametrize("case", STREAM_CASES)
def test_what_the_run_sets_stays_in_the_run(case: Case) -> None:
    def work(text: str) -> str:
        seen_by_model.set("by the run")
        return text

    async def awork(text: str) -> str:
        return work(text)

    async def scenario() -> None:
        seen_by_model.set("the caller's")
        async with case.running(RunnableLambda(work, awork)) as running:
            await case.consumer.collect(running)
        assert running.result == "?"
        assert seen_by_model.get() == "the caller's"

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", STREAM_CASES)
def test_tags_metadata_name_and_configurable_reach_the_target(case: Case) -> None:
    spy = Spy()
    model = ScriptedChatModel(tokens=tokens(1))
    seen: list[RunnableConfig] = []

    def work(text: str, config: RunnableConfig) -> str:
        seen.append(config)
        return text

    async def awork(text: str, config: RunnableConfig) -> str:
        return work(text, config)

    config: RunnableConfig = {
        "callbacks": [spy],
        "tags": ["mine"],
        "metadata": {"from": "me"},
        "run_name": "my run",
        "configurable": {"thread_id": "1"},
        "run_id": uuid4(),
    }

    async def scenario() -> None:
        target = RunnableLambda(work, awork) | model
        async with case.consumer.entered(case.stream(target, "?", config)) as running:
            await case.consumer.collect(running)

    case.consumer.run(scenario)
    assert spy.starts[0]["run_id"] == config["run_id"]
    assert spy.starts[0]["name"] == "my run"
    for start in spy.starts:
        assert "mine" in start["tags"]
        assert start["metadata"]["from"] == "me"
    assert [one.get("configurable") for one in seen] == [{"thread_id": "1"}]
    assert spy.tokens[0] == tokens(1)[0]


@pytest.mark.parametrize("case", STREAM_CASES)
def test_the_callers_config_is_not_touched(case: Case) -> None:
    """Hazard: our handler stays in the caller's list, and hears the caller's next run."""
    spy = Spy()
    callbacks: list[BaseCallbackHandler] = [spy]
    config: RunnableConfig = {"callbacks": callbacks, "tags": ["mine"]}
    model = ScriptedChatModel(tokens=tokens(1))

    async def scenario() -> None:
        async with case.consumer.entered(case.stream(model, "?", config)) as running:
            await case.consumer.collect(running)

    case.consumer.run(scenario)
    assert config == {"callbacks": callbacks, "tags": ["mine"]}
    assert callbacks == [spy]


@pytest.mark.parametrize("case", STREAM_CASES)
def test_a_callback_manager_is_copied_with_its_parent(case: Case) -> None:
    """Hazard: the manager of a run in progress gets our handler, and keeps it."""
    spy, local = Spy(), Spy()
    parent = uuid4()
    manager = CallbackManager([spy, local], inheritable_handlers=[spy], parent_run_id=parent)
    manager.add_tags(["mine"])
    model = ScriptedChatModel(tokens=tokens(2))
    target = RunnableLambda(str) | model

    async def scenario() -> list[str]:
        config: RunnableConfig = {"callbacks": manager}
        async with case.consumer.entered(case.stream(target, "?", config)) as running:
            return await case.consumer.collect(running)

    assert case.consumer.run(scenario) == tokens(2)
    assert manager.handlers == [spy, local]
    assert manager.inheritable_handlers == [spy]
    assert spy.starts[0]["parent_run_id"] == parent
    assert len(spy.starts) == 3
    assert len(local.starts) == 1
    assert all("mine" in start["tags"] for start in spy.starts)


@pytest.mark.parametrize("case", STREAM_CASES)
def test_tools_see_it_too(case: Case) -> None:
    spy = Spy()
    seen: list[str] = []

    @tool
    def look(text: str) -> str:
        """Look."""
        seen.append(seen_by_model.get())
        return text

    async def scenario() -> None:
        seen_by_model.set("the caller's")
        config: RunnableConfig = {"callbacks": [spy], "tags": ["mine"]}
        answer = case.stream(look, {"text": "?"}, config)
        async with case.consumer.entered(answer) as running:
            assert await case.consumer.collect(running) == []
        assert running.result == "?"

    case.consumer.run(scenario)
    assert seen == ["the caller's"]
    assert "mine" in spy.starts[0]["tags"]


# -- nested streams ------------------------------------------------------------------------------


def nested(model: ScriptedChatModel, inner_tokens: list[str]) -> RunnableLambda[str, str]:
    """Return a step that consumes a stream of its own.

    It passes its config on, which Python 3.10 needs (fact 10).
    """

    def work(text: str, config: RunnableConfig) -> str:
        with stream(model, text, config) as answer:
            for token in answer:
                inner_tokens.append(token)  # noqa: PERF402 - kept also when it ends early
        return answer.text

    async def awork(text: str, config: RunnableConfig) -> str:
        async with stream(model, text, config) as answer:
            async for token in answer:
                inner_tokens.append(token)  # noqa: PERF401 - kept also when it ends early
        return answer.text

    return RunnableLambda(work, awork)


@pytest.mark.parametrize("case", STREAM_CASES)
def test_an_outer_stream_hears_the_inner_ones_tokens(case: Case) -> None:
    """Hazard: the inner stream's callbacks replace the outer's; or double it."""
    spy = Spy()
    model = ScriptedChatModel(tokens=tokens(20))
    inner: list[str] = []
    target = RunnableLambda(str) | nested(model, inner)

    async def scenario() -> None:
        config: RunnableConfig = {"callbacks": [spy]}
        async with case.consumer.entered(case.stream(target, "?", config, maxsize=2)) as running:
            assert await case.consumer.collect(running) == tokens(20)
        assert running.result == "".join(tokens(20))

    case.consumer.run(scenario)
    assert inner == tokens(20)
    model_run = spy.starts[-1]["run_id"]
    step = spy.parent_of(model_run)
    assert step is not None
    assert spy.parent_of(step) == spy.starts[0]["run_id"]


@needs_context_in_tasks
@pytest.mark.parametrize("with_callbacks_of_its_own", [False, True])
@pytest.mark.parametrize("case", STREAM_CASES)
def test_an_inner_stream_inherits_without_a_config(
    case: Case, *, with_callbacks_of_its_own: bool
) -> None:
    """Hazard: explicit callbacks replace the inherited ones, as with LangChain's invoke."""
    spy = Spy()
    config: RunnableConfig = {"callbacks": [spy]} if with_callbacks_of_its_own else {}
    model = ScriptedChatModel(tokens=tokens(5))

    def work(text: str) -> str:
        return "".join(stream(model, text, config))

    async def awork(text: str) -> str:
        return "".join([token async for token in stream(model, text, config)])

    async def scenario() -> None:
        async with case.running(RunnableLambda(work, awork)) as running:
            assert await case.consumer.collect(running) == tokens(5)

    case.consumer.run(scenario)
    assert len(spy.starts) == with_callbacks_of_its_own


@pytest.mark.parametrize("case", STREAM_CASES)
def test_the_outer_stop_reaches_the_inner_run(case: Case) -> None:
    """Hazard: to the inner consumer the outer stop looks like the end of its own stream."""
    model = ScriptedChatModel(tokens=tokens(500))
    ends: list[str] = []
    inner: list[str] = []
    step = nested(model, inner)

    def work(text: str, config: RunnableConfig) -> str:
        try:
            answer = str(step.invoke(text, config))
        except BaseException as error:
            ends.append(type(error).__name__)
            raise
        ends.append("the end")
        return answer

    async def awork(text: str, config: RunnableConfig) -> str:
        try:
            answer = str(await step.ainvoke(text, config))
        except BaseException as error:
            ends.append(type(error).__name__)
            raise
        ends.append("the end")
        return answer

    async def scenario() -> None:
        async with case.running(RunnableLambda(work, awork), maxsize=2) as running:
            assert await case.consumer.take(running, 5) == tokens(5)
        await case.consumer.wait(model.record.wait_until_finalized)
        await case.consumer.eventually(lambda: ends)

    case.consumer.run(scenario)
    assert ends == ["RunStopped" if case.is_sync else "CancelledError"]
    assert model.record.produced <= 5 + 2 + 2


def test_a_stop_names_its_stream() -> None:
    """Hazard: a step that stops its own inner stream takes the outer stop for that."""
    gate = Gate(3)
    model = ScriptedChatModel(tokens=tokens(500), gate=gate)
    stops: list[RunStopped] = []

    def work(text: str) -> str:
        try:
            return "".join(stream(model, text))
        except RunStopped as stop:
            stops.append(stop)
            raise

    outer = stream(RunnableLambda(work), "?")
    assert [next(outer) for _ in range(3)] == tokens(3)
    name = outer._tokens.name
    outer.close()
    gate.open()
    model.record.wait_until_finalized()
    assert outer._run is not None
    assert outer._run.gone._set or anyio.run(outer._run.gone.wait) is None
    assert [stop.stream for stop in stops] == [name]


@pytest.mark.parametrize("case", STREAM_CASES)
def test_an_inner_stop_leaves_the_outer_run_alone(case: Case) -> None:
    """Hazard: the inner stop propagates to the step around it, or the outer handler hears it."""
    first = ScriptedChatModel(tokens=tokens(50))
    second = ScriptedChatModel(tokens=tokens(5, start=50))

    def work(text: str, config: RunnableConfig) -> str:
        with stream(first, text, config, maxsize=1) as answer:
            return next(answer)

    async def awork(text: str, config: RunnableConfig) -> str:
        async with stream(first, text, config, maxsize=1) as answer:
            return await anext_of(answer)

    async def scenario() -> None:
        async with case.running(RunnableLambda(work, awork) | second) as running:
            received = await case.consumer.collect(running)
        assert [token for token in received if token in second.tokens] == second.tokens
        assert running.result.content == "".join(tokens(5, start=50))

    case.consumer.run(scenario)


async def anext_of(iterator: AsyncIterator[str]) -> str:
    """Return the next item, as Python 3.10 can say it too."""
    return await iterator.__anext__()


@pytest.mark.parametrize("case", [case for case in STREAM_CASES if not case.values[0].is_sync])
def test_anyio_in_the_run_knows_where_it_is(case: Case) -> None:
    """Hazard: a context copied in a trio task says "trio" on the asyncio loop (fact 16)."""

    async def awork(text: str) -> str:
        await anyio.lowlevel.checkpoint()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0)
        return text

    async def scenario() -> None:
        async with case.running(RunnableLambda(awork)) as running:
            await case.consumer.collect(running)
        assert running.result == "?"

    case.consumer.run(scenario)


@pytest.mark.parametrize(
    "case", [case for case in STREAM_CASES if case.values[0].producer == "thread"]
)
def test_a_loop_of_the_runs_own_in_a_thread(case: Case) -> None:
    """Hazard: the same, where synchronous code of the run starts a loop."""

    def work(text: str) -> str:
        anyio.run(anyio.sleep, 0)
        return text

    async def scenario() -> None:
        async with case.running(RunnableLambda(work)) as running:
            await case.consumer.collect(running)
        assert running.result == "?"

    case.consumer.run(scenario)
