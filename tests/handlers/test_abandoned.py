"""Runs whose end nobody reports: what a handler holds back of them comes all the same."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from langchain_core.runnables import RunnableConfig  # noqa: TC002 - LangGraph reads it
from langgraph.graph import START, StateGraph

from queuestream import StreamHandler
from queuestream.handlers import BatchStreamHandler
from tests.support.backends import ASYNCIO_BACKENDS
from tests.support.gates import Gate, eventually_async
from tests.support.models import ScriptedChatModel, silent_model, tokens
from tests.support.targets import State

if TYPE_CHECKING:
    from collections.abc import Callable

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS)


class Sent:
    """What was sent, by something that takes a few turns of the loop."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def send(self, text: str) -> None:
        self.texts.append(text)

    async def send_async(self, text: str) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        self.texts.append(text)


SENDS = pytest.mark.parametrize("is_async", [False, True], ids=["plain", "coroutine"])


class HoldsBack(StreamHandler):
    """Delivers all at the end."""

    holds_back = True

    def _new_state(self, about: Any) -> list[str]:
        return []

    def _texts_of_token(self, state: list[str], token: str) -> Any:
        state.append(token)
        return ()

    def _texts_at_end(self, state: list[str], response: Any) -> Any:
        return ("".join(state),)


def batch(sent: Sent, is_async: bool, size: int = 100) -> BatchStreamHandler:
    return BatchStreamHandler(sent.send_async if is_async else sent.send, size)


def with_handler(handler: Any) -> RunnableConfig:
    """Return a config with one callback."""
    return {"callbacks": [handler]}


def nothing_is_left(handler: StreamHandler) -> bool:
    return not (handler._open_states() or handler._goes_on_in)


# -- the end of the loop ------------------------------------------------------------------------


@SENDS
@pytest.mark.parametrize("backend", [param.values[0] for param in ASYNCIO_BACKENDS])
@pytest.mark.parametrize("place", ["the main task", "a task of its own"])
def test_the_loop_ends(
    place: str, backend: Any, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: its end cancels what is to be delivered before that has begun, or in the middle.

    Nor may a task be left that the collector finds pending.
    """
    if backend[1].get("loop_factory") and not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("eager tasks came with Python 3.12")
    sent = Sent()
    handler = HoldsBack(sent.send_async if is_async else sent.send)
    model = silent_model("a", "b")

    async def main() -> None:
        ours = asyncio.current_task()
        assert ours is not None

        async def stop() -> None:
            await eventually_async(lambda: model.record.produced == 2)
            if place == "the main task":
                ours.cancel()

        stopping = asyncio.ensure_future(stop())
        run = model.ainvoke("?", with_handler(handler))
        if place == "the main task":
            await run
        else:
            begun = asyncio.ensure_future(run)
            await stopping
            assert not begun.done()

    with caplog.at_level(logging.WARNING):
        if place == "the main task":
            with pytest.raises(asyncio.CancelledError):
                anyio.run(main, backend=backend[0], backend_options=backend[1])
        else:
            anyio.run(main, backend=backend[0], backend_options=backend[1])
        gc.collect()
    assert sent.texts == ["ab"]
    assert nothing_is_left(handler)
    assert not caplog.records


# -- a task that is cancelled -------------------------------------------------------------------


@SENDS
@on_asyncio
@pytest.mark.anyio
async def test_a_task_goes_on_after_a_timeout(is_async: bool) -> None:
    """Hazard: what is held back waits until the task ends, a server's that lives for hours.

    1. The run waits for its third token, in a cancel scope.
    2. The scope is cancelled; the task goes on.
    """
    sent, model = Sent(), silent_model("a", "b")
    handler = batch(sent, is_async)
    scope = anyio.CancelScope()

    async def stop() -> None:
        await eventually_async(lambda: model.record.produced == 2)
        scope.cancel()  # 2

    stopping = asyncio.ensure_future(stop())
    with scope:
        await model.ainvoke("?", with_handler(handler))  # 1
    await stopping
    await eventually_async(lambda: sent.texts == ["ab"])
    assert nothing_is_left(handler)


@SENDS
@on_asyncio
@pytest.mark.anyio
async def test_a_task_is_cancelled(is_async: bool) -> None:
    """LangChain reports no end of a bare model there."""
    sent = Sent()
    handler = batch(sent, is_async)
    model = silent_model("a", "b")
    run = asyncio.ensure_future(model.ainvoke("?", with_handler(handler)))
    await eventually_async(lambda: model.record.produced == 2)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await eventually_async(lambda: sent.texts)
    assert sent.texts == ["ab"]
    assert nothing_is_left(handler)


def test_whoever_cancels_all_again_and_again() -> None:
    """Hazard: what is begun anew each time never ends, and nor does who waits for that."""
    sent = Sent()
    handler = HoldsBack(sent.send_async)
    model = silent_model("a")

    async def main() -> None:
        run = asyncio.ensure_future(model.ainvoke("?", with_handler(handler)))
        await eventually_async(lambda: model.record.produced == 1)
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others)
        assert run.cancelled()

    asyncio.run(main())
    assert sent.texts == []


@SENDS
@on_asyncio
@pytest.mark.anyio
async def test_a_step_of_a_graph_is_cancelled(is_async: bool) -> None:
    """The model's task is the graph's, not the caller's."""
    sent = Sent()
    handler = batch(sent, is_async)
    model = silent_model("a", "b")

    async def node(state: State, config: RunnableConfig) -> State:
        return {"topic": str((await model.ainvoke(state["topic"], config)).content)}

    builder = StateGraph(State)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    graph: Any = builder.compile()
    run = asyncio.ensure_future(graph.ainvoke({"topic": "?"}, with_handler(handler)))
    await eventually_async(lambda: model.record.produced == 2)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await eventually_async(lambda: sent.texts)
    assert sent.texts == ["ab"]
    assert nothing_is_left(handler)


@SENDS
@on_asyncio
@pytest.mark.anyio
async def test_a_cancellation_that_is_swallowed(is_async: bool) -> None:
    """The task goes on, and what is held back comes when it ends."""
    sent = Sent()
    handler = batch(sent, is_async)
    model = silent_model("a", "b")

    async def run() -> str:
        try:
            await model.ainvoke("?", with_handler(handler))
        except asyncio.CancelledError:
            return "swallowed"
        raise AssertionError

    task = asyncio.ensure_future(run())
    await eventually_async(lambda: model.record.produced == 2)
    task.cancel()
    assert await task == "swallowed"
    await eventually_async(lambda: sent.texts)
    assert sent.texts == ["ab"]
    assert nothing_is_left(handler)


# -- a run that goes on in other tasks ----------------------------------------------------------


@SENDS
@on_asyncio
@pytest.mark.anyio
async def test_steps_in_tasks_of_their_own(is_async: bool) -> None:
    """Promise 1.  Hazard: the end of the first task counts as the run's, and its text is doubled.

    So ``asyncio.wait_for`` does it before Python 3.12.
    """
    sent = Sent()
    handler = batch(sent, is_async, 3)
    answer = ScriptedChatModel(tokens=tokens(7)).astream("?", with_handler(handler))

    async def step() -> Any:
        return await anext(answer, None)

    while await asyncio.ensure_future(step()):
        pass
    await eventually_async(lambda: len("".join(sent.texts)) >= len("".join(tokens(7))))
    assert "".join(sent.texts) == "".join(tokens(7))
    assert nothing_is_left(handler)


@SENDS
@on_asyncio
@pytest.mark.anyio
async def test_a_later_step_is_cancelled(is_async: bool) -> None:
    """The task that began the run has ended long ago; LangChain reports the end itself."""
    sent = Sent()
    handler = batch(sent, is_async)
    model = silent_model("a", "b", "c")
    answer = model.astream("?", with_handler(handler))

    async def step() -> Any:
        return await anext(answer)

    for _ in range(3):
        await asyncio.ensure_future(step())
    task = asyncio.ensure_future(step())
    await eventually_async(lambda: model.gate is not None and model.gate.waiting)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually_async(lambda: len("".join(sent.texts)) >= 3)
    assert "".join(sent.texts) == "abc"
    assert nothing_is_left(handler)


@on_asyncio
@pytest.mark.anyio
async def test_the_end_is_reported_while_the_task_is_cancelled() -> None:
    """Promise 1.  Hazard: two deliveries of the same end, or none.

    LangChain shields the report from the cancellation, so that it goes on without its task.
    """
    gate, begun = Gate(), Gate()
    texts: list[str] = []

    async def send(text: str) -> None:
        begun.open()
        await gate.wait_async()
        texts.append(text)

    handler = BatchStreamHandler(send, 100)
    run = asyncio.ensure_future(
        ScriptedChatModel(tokens=tokens(2)).ainvoke("?", with_handler(handler))
    )
    await begun.wait_async()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await asyncio.sleep(0)
    gate.open()
    await eventually_async(lambda: texts)
    await eventually_async(lambda: nothing_is_left(handler))
    assert texts == ["t0 t1 "]


# -- a last delivery that fails -----------------------------------------------------------------


def _fail(text: str) -> None:
    raise ValueError(text)


async def _fail_async(text: str) -> None:
    raise ValueError(text)


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("on_token", [_fail, _fail_async])
async def test_a_last_delivery_that_fails(
    on_token: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is left to raise it to: it is logged."""
    handler = BatchStreamHandler(on_token, 100, raise_error=True)
    model = silent_model("a", "b")
    run = asyncio.ensure_future(model.ainvoke("?", with_handler(handler)))
    await eventually_async(lambda: model.record.produced == 2)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await eventually_async(lambda: caplog.records)
    assert [record.getMessage() for record in caplog.records] == [
        "BatchStreamHandler: what was left of a run that failed"
    ]
    assert nothing_is_left(handler)


@on_asyncio
@pytest.mark.anyio
async def test_a_task_that_runs_many_models() -> None:
    """Promise 9.  Hazard: for each of them, something waits for the end of the task."""
    handler = batch(sent := Sent(), is_async=True)
    task: Any = asyncio.current_task()
    before = len(task._callbacks or ())
    for _ in range(5):
        await ScriptedChatModel(tokens=tokens(1)).ainvoke("?", with_handler(handler))
    assert len(task._callbacks or ()) == before
    assert sent.texts == tokens(1) * 5
