"""`QueueStreamHandler` (issue 2, point 4): for code that starts the run itself.

What it shares with `stream()` is in ``tests/promises``, over the same matrix.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypedDict

import anyio
import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableParallel
from langgraph.graph import START, StateGraph

from queuestream import MixedQueue, QueueStreamHandler, StreamHandler
from queuestream.errors import (
    ConcurrentIterationError,
    RunCancelledError,
    RunStopped,
    StreamClosedError,
)
from tests.support.backends import ASYNCIO_BACKENDS
from tests.support.consumers import in_another_thread
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.models import ScriptedChatModel, silent_model, tokens
from tests.support.streams import DEFAULT_CASES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.streams import Case

HANDLER_CASES = [case for case in DEFAULT_CASES if not case.values[0].is_stream]
on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS)


def with_handler(handler: Any) -> RunnableConfig:
    """Return a config with one callback."""
    return {"callbacks": [handler]}


class State(TypedDict):
    """The state of the graphs."""

    text: str


def graph_of(*models: ScriptedChatModel, is_async: list[bool]) -> Any:
    """Return a graph with a node for each model, that calls it synchronously or not."""
    builder = StateGraph(State)
    before = START
    for number, (model, asynchronous) in enumerate(zip(models, is_async, strict=True)):
        name = f"node {number}"
        builder.add_node(name, _anode(model) if asynchronous else _node(model))
        builder.add_edge(before, name)
        before = name
    return builder.compile()


def _node(model: ScriptedChatModel) -> Any:
    def node(state: State, config: RunnableConfig) -> State:
        return {"text": str(model.invoke(state["text"], config).content)}

    return node


def _anode(model: ScriptedChatModel) -> Any:
    async def node(state: State, config: RunnableConfig) -> State:  # config: fact 10
        return {"text": str((await model.ainvoke(state["text"], config)).content)}

    return node


# -- threads and tasks in one run ------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [case for case in HANDLER_CASES if case.values[0].producer != "handler-invoke"]
)
def test_threads_and_tasks_in_one_run(case: Case) -> None:
    """Hazard: a graph under ``ainvoke`` runs its plain nodes in threads: dual dispatch, fact 2."""
    models = [ScriptedChatModel(tokens=tokens(20, start=20 * number)) for number in range(4)]
    graph = graph_of(*models, is_async=[False, True, False, True])

    async def scenario() -> None:
        async with case.running(graph, {"text": "?"}, maxsize=1) as running:
            consumed = 0
            async for token in case.consumer.iterate(running):
                assert token == f"t{consumed} "
                consumed += 1
                assert sum(model.record.produced for model in models) <= consumed + 1 + 1
            assert consumed == 80

    case.consumer.run(scenario)
    loops = [len(model.record.loops) for model in models]
    assert loops == [0, 1, 0, 1]


# -- ends with the outermost run -------------------------------------------------------------------


@pytest.mark.parametrize("case", HANDLER_CASES)
def test_it_ends_with_the_outermost_run_whatever_nests_inside(case: Case) -> None:
    """Hazard: the end of an inner model, chain or failed attempt is taken for the end."""
    failing = ScriptedChatModel(tokens=tokens(4), failure=ValueError("no"), fail_at=2)
    spare = ScriptedChatModel(tokens=tokens(4))
    last = ScriptedChatModel(tokens=tokens(4, start=4))
    inner = (RunnableLambda(str) | failing.with_fallbacks([spare])) | StrOutputParser()
    target = RunnableParallel({"one": inner}) | RunnableLambda(str) | last

    async def scenario() -> list[str]:
        async with case.running(target) as running:
            return await case.consumer.collect(running)

    assert case.consumer.run(scenario) == tokens(2) + tokens(4) + tokens(4, start=4)


def test_a_batch_is_one_iteration_while_its_runs_overlap() -> None:
    """Ends when no outermost run is open any more."""
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(5), gate=gate)
    handler = QueueStreamHandler()
    config: RunnableConfig = {"callbacks": [handler], "max_concurrency": 3}
    thread = in_another_thread(lambda: model.batch(["a", "b", "c"], config))
    eventually(lambda: gate.waiting == 3)  # all are open
    gate.open()
    received = list(handler)
    thread.join()
    assert sorted(received) == sorted(tokens(5) * 3)


@on_asyncio
@pytest.mark.anyio
async def test_an_abatch() -> None:
    model = ScriptedChatModel(tokens=tokens(5))
    handler = QueueStreamHandler(maxsize=1)
    task = asyncio.ensure_future(model.abatch(["a", "b", "c"], with_handler(handler)))
    received = [token async for token in handler]
    await task
    assert sorted(received) == sorted(tokens(5) * 3)


# -- run after run ---------------------------------------------------------------------------------


def test_run_after_run() -> None:
    handler = QueueStreamHandler()
    for number in range(3):
        model = ScriptedChatModel(tokens=tokens(3, start=number))
        thread = in_another_thread(lambda one=model: one.invoke("?", with_handler(handler)))  # type: ignore[misc]
        assert list(handler) == tokens(3, start=number)
        thread.join()


def test_the_second_run_starts_before_the_first_is_consumed() -> None:
    """Hazard: the second run's tokens come before the first one's end, or its end is lost."""
    handler = QueueStreamHandler()
    failure = ValueError("the second's")
    models = [
        ScriptedChatModel(tokens=tokens(3)),
        ScriptedChatModel(tokens=tokens(3, start=3), failure=failure, fail_at=2),
        ScriptedChatModel(tokens=tokens(3, start=6)),
    ]
    models[0].invoke("?", with_handler(handler))
    with pytest.raises(ValueError, match="the second's"):
        models[1].invoke("?", with_handler(handler))
    models[2].invoke("?", with_handler(handler))
    assert list(handler) == tokens(3)
    received: list[str] = []
    with pytest.raises(ValueError, match="the second's") as raised:
        received.extend(handler)
    assert raised.value is failure
    assert list(handler) == tokens(3, start=6)


def test_an_iteration_waits_for_a_run_to_start() -> None:
    """A handler on which none ever starts waits for one."""
    handler = QueueStreamHandler()
    received: list[str] = []
    thread = in_another_thread(lambda: received.extend(handler))
    eventually(lambda: len(handler.tokens.buffer._getters))  # type: ignore[union-attr]
    ScriptedChatModel(tokens=tokens(3)).invoke("?", with_handler(handler))
    thread.join()
    assert received == tokens(3)


def test_an_iteration_that_has_ended_stays_so() -> None:
    """Hazard: ``next`` on the first run's iterator takes the second run's tokens."""
    handler = QueueStreamHandler()
    model = ScriptedChatModel(tokens=tokens(2))
    model.invoke("?", with_handler(handler))
    first = iter(handler)
    assert list(first) == tokens(2)
    model.invoke("?", with_handler(handler))
    assert list(first) == []
    assert list(handler) == tokens(2)


def test_break_and_go_on() -> None:
    """A ``break`` alone gives up nothing: a new iteration goes on with the same run."""
    handler = QueueStreamHandler()
    ScriptedChatModel(tokens=tokens(4)).invoke("?", with_handler(handler))
    for token in handler:
        assert token == tokens(1)[0]
        break
    assert list(handler) == tokens(3, start=1)


@pytest.mark.parametrize(
    "case", [case for case in HANDLER_CASES if case.values[0].consumer.name == "for"]
)
def test_get_stream_is_the_same_as_a_generator(case: Case) -> None:
    model = ScriptedChatModel(tokens=tokens(9))

    async def scenario() -> list[str]:
        async with case.running(model, maxsize=1) as running:
            return list(running._handler.get_stream())

    assert case.consumer.run(scenario) == tokens(9)


def test_in_a_models_constructor_each_call_is_outermost() -> None:
    handler = QueueStreamHandler()
    model = ScriptedChatModel(tokens=tokens(2), callbacks=[handler])
    chain = RunnableLambda(str) | model | StrOutputParser() | model
    chain.invoke("?")
    assert list(handler) == tokens(2)
    assert list(handler) == tokens(2)


def test_the_same_handler_twice_on_one_run() -> None:
    """Hazard: each token comes twice."""
    handler = QueueStreamHandler()
    model = ScriptedChatModel(tokens=tokens(2), callbacks=[handler])
    with pytest.raises(ValueError, match="twice among the callbacks"):
        (RunnableLambda(str) | model).invoke("?", {"callbacks": [handler, handler]})


# -- called directly -------------------------------------------------------------------------------


def test_direct_calls_and_end() -> None:
    handler = QueueStreamHandler()
    handler.on_llm_new_token("Hel")
    handler.on_llm_new_token("lo")
    handler.end()
    handler.on_llm_new_token("again")
    handler.end()
    assert list(handler) == ["Hel", "lo"]
    assert list(handler) == ["again"]


def test_end_needs_no_free_slot() -> None:
    handler = QueueStreamHandler(maxsize=2)
    handler.on_llm_new_token("a")
    handler.on_llm_new_token("b")
    handler.end()
    assert list(handler) == ["a", "b"]


def test_end_with_an_error() -> None:
    handler = QueueStreamHandler()
    failure = ValueError("mine")
    handler.on_llm_new_token("a")
    handler.end(failure)
    iteration = iter(handler)
    assert next(iteration) == "a"
    with pytest.raises(ValueError, match="mine") as raised:
        next(iteration)
    assert raised.value is failure
    assert list(iteration) == []


@pytest.mark.parametrize("error", ["an error", 1, ValueError])
def test_end_with_something_else(error: Any) -> None:
    with pytest.raises(TypeError, match="exception or None"):
        QueueStreamHandler().end(error)


@on_asyncio
@pytest.mark.anyio
async def test_direct_calls_in_a_task() -> None:
    handler = QueueStreamHandler(maxsize=1)

    async def produce() -> None:
        for token in tokens(9):
            await handler.on_llm_new_token(token)
        handler.end()

    producing = asyncio.ensure_future(produce())
    assert [token async for token in handler] == tokens(9)
    await producing


def test_direct_calls_wait_for_the_consumer() -> None:
    handler = QueueStreamHandler(maxsize=1)

    def produce() -> None:
        for token in tokens(9):
            handler.on_llm_new_token(token)
        handler.end()

    thread = in_another_thread(produce)
    assert list(handler) == tokens(9)
    thread.join()


def test_a_queue_stream_handler_is_an_on_token() -> None:
    handler = QueueStreamHandler()
    ScriptedChatModel(tokens=tokens(3)).invoke("?", with_handler(StreamHandler(handler)))
    handler.end()
    assert list(handler) == tokens(3)


# -- closing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", HANDLER_CASES)
def test_closed_alone_no_further_token_is_made(case: Case) -> None:
    """Hazard: retries and fallbacks take the stop for a failure (fact 4)."""
    gate = Gate(2)
    model = ScriptedChatModel(tokens=tokens(50), gate=gate)
    spare = ScriptedChatModel(tokens=["never "])
    after = ScriptedChatModel(tokens=["nor this "])
    retried = model.with_retry(stop_after_attempt=3, wait_exponential_jitter=False)
    target = retried.with_fallbacks([spare, after]) | StrOutputParser() | after

    async def scenario() -> None:
        async with case.running(target) as running:
            assert await case.consumer.take(running, 2) == tokens(2)
            running._handler.close()
            gate.open()
            with pytest.raises(StreamClosedError):
                await case.consumer.next(running)

    case.consumer.run(scenario)
    assert model.record.produced <= 3
    assert (model.record.calls, spare.record.calls, after.record.calls) == (1, 0, 0)


@pytest.mark.parametrize("case", HANDLER_CASES)
def test_closed_while_the_run_waits(case: Case) -> None:
    model = ScriptedChatModel(tokens=tokens(50))
    spare = ScriptedChatModel(tokens=["never "])

    async def scenario() -> None:
        async with case.running(model.with_fallbacks([spare]), maxsize=2) as running:
            await case.consumer.wait(lambda: model.record.wait_until_produced(3))
            running._handler.close()
        await case.consumer.wait(model.record.wait_until_finalized)

    case.consumer.run(scenario)
    assert model.record.produced == 3
    assert spare.record.calls == 0


@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_stopped_run_gets(*, is_async: bool) -> None:
    """RunStopped in a thread; an ordinary StreamClosedError in a task (fact 4)."""
    handler = QueueStreamHandler()
    model = ScriptedChatModel(tokens=tokens(5))
    handler.close()
    with pytest.raises(StreamClosedError if is_async else RunStopped):
        if is_async:
            asyncio.run(model.ainvoke("?", with_handler(handler)))
        else:
            model.invoke("?", with_handler(handler))
    assert model.record.produced == 0


def test_with_block() -> None:
    model = ScriptedChatModel(tokens=tokens(50))
    with QueueStreamHandler(maxsize=1) as handler:

        def run() -> None:
            with pytest.raises(RunStopped):
                model.invoke("?", with_handler(handler))

        thread = in_another_thread(run)
        assert next(iter(handler)) == tokens(1)[0]
    thread.join(5)
    assert not thread.is_alive()
    with pytest.raises(StreamClosedError):
        next(iter(handler))
    assert model.record.produced <= 3


@pytest.mark.parametrize(
    "case", [case for case in HANDLER_CASES if case.values[0].producer != "handler-invoke"]
)
def test_closed_with_a_step_in_a_thread(case: Case) -> None:
    """Hazard: one run needs both means: the task's error, and the thread's RunStopped."""
    models = [ScriptedChatModel(tokens=tokens(50)) for _ in range(2)]
    graph = graph_of(*models, is_async=[False, True])

    async def scenario() -> None:
        async with case.running(graph, {"text": "?"}, maxsize=1) as running:
            assert await case.consumer.take(running, 3) == tokens(3)
        await case.consumer.wait(models[0].record.wait_until_finalized)

    case.consumer.run(scenario)
    assert models[0].record.produced <= 3 + 1 + 1
    assert models[1].record.calls == 0


# -- cancelled by others ---------------------------------------------------------------------------


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("permits", [0, 2])
@pytest.mark.parametrize("kind", ["model", "chain", "graph"])
async def test_a_cancelled_ainvoke_ends_the_iteration(kind: str, permits: int) -> None:
    """Hazard: LangChain reports no end of a model whose ``agenerate`` is cancelled."""
    gate = Gate(permits)
    model = ScriptedChatModel(tokens=tokens(50), gate=gate)
    target: Any = {
        "model": model,
        "chain": RunnableLambda(str) | model | StrOutputParser(),
        "graph": graph_of(model, is_async=[True]),
    }[kind]
    handler = QueueStreamHandler()
    data = {"text": "?"} if kind == "graph" else "?"
    task = asyncio.ensure_future(target.ainvoke(data, with_handler(handler)))
    iteration = iter(handler)
    for token in tokens(permits):
        assert await iteration.__anext__() == token
    await eventually_async(lambda: gate.waiting)
    task.cancel()
    with pytest.raises(Exception, match="cancelled") as raised:
        await iteration.__anext__()
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)
    with pytest.raises(asyncio.CancelledError):
        await task
    # And the next run is a new iteration.
    again = asyncio.ensure_future(
        ScriptedChatModel(tokens=tokens(2)).ainvoke("?", with_handler(handler))
    )
    assert [token async for token in handler] == tokens(2)
    await again


@on_asyncio
@pytest.mark.anyio
async def test_a_cancelled_run_releases_its_waiting_threads() -> None:
    """Promise 8.  Hazard: a step of it waits in the caller's own executor, for ever.

    Nobody will take its tokens as this run's, and nobody shall as the next one's.
    """
    model = ScriptedChatModel(tokens=tokens(50))
    handler = QueueStreamHandler(maxsize=1)
    step: RunnableLambda[str, Any] = RunnableLambda(
        lambda text, config: model.invoke(text, config)  # noqa: PLW0108 - by keyword, that is
    )
    task = asyncio.ensure_future(step.ainvoke("?", with_handler(handler)))
    await eventually_async(lambda: len(handler.tokens.buffer._putters))  # type: ignore[union-attr]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually_async(lambda: model.record.open == 0)
    received: list[str] = []
    with pytest.raises(Exception, match="cancelled"):
        async for token in handler:
            received.append(token)  # noqa: PERF401 - what came before the error is kept
    assert received == tokens(1)
    other = ScriptedChatModel(tokens=tokens(3, start=90))
    again = asyncio.ensure_future(other.ainvoke("?", with_handler(handler)))
    assert [token async for token in handler] == tokens(3, start=90)
    await again


@on_asyncio
@pytest.mark.anyio
async def test_a_branch_that_outlives_its_run() -> None:
    """Hazard: one branch fails, the other goes on, and its tokens are taken for the next run's.

    ``asyncio.gather`` cancels nobody when one fails.
    """
    gate = Gate(1)
    slow = ScriptedChatModel(tokens=tokens(9), gate=gate)
    failing = ScriptedChatModel(tokens=[], failure=ValueError("no"), fail_at=0)
    handler = QueueStreamHandler()
    target = RunnableParallel({"slow": slow, "failing": failing})
    with pytest.raises(ValueError, match="no"):
        await target.ainvoke("?", with_handler(handler))
    with pytest.raises(ValueError, match="no"):
        [token async for token in handler]
    other = ScriptedChatModel(tokens=tokens(3, start=90))
    again = asyncio.ensure_future(other.ainvoke("?", with_handler(handler)))
    gate.open()
    assert [token async for token in handler] == tokens(3, start=90)
    await again
    await eventually_async(lambda: slow.record.open == 0)
    await eventually_async(lambda: len(asyncio.all_tasks()) <= 2)


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_what_begins_only_after_its_run_has_ended(end: str) -> None:
    """Promise 8.  Hazard: it is taken for the next run, and waits for a consumer for ever.

    A step in an executor that begins late: its run was cancelled, or another branch has failed.
    """
    is_there, go = threading.Event(), threading.Event()
    late = ScriptedChatModel(tokens=tokens(9))
    failing = ScriptedChatModel(tokens=[], failure=ValueError("no"), fail_at=0)

    def begin_late(text: str, config: RunnableConfig) -> Any:
        is_there.set()
        go.wait(5)
        return late.invoke(text, config)

    async def fail(text: str, config: RunnableConfig) -> Any:
        await eventually_async(is_there.is_set)
        return await failing.ainvoke(text, config)

    handler = QueueStreamHandler(maxsize=1)
    branches: dict[str, Any] = {"late": RunnableLambda(begin_late)}
    if end == "failed":
        branches["failing"] = RunnableLambda(fail)
    run = asyncio.ensure_future(RunnableParallel(branches).ainvoke("?", with_handler(handler)))
    await eventually_async(is_there.is_set)
    if end == "cancelled":
        run.cancel()
    with pytest.raises((asyncio.CancelledError, ValueError)):
        await run
    go.set()
    await anyio.to_thread.run_sync(late.record.wait_until_finalized)
    with pytest.raises((RunCancelledError, ValueError)):
        [token async for token in handler]
    other = ScriptedChatModel(tokens=tokens(3, start=90))
    again = asyncio.ensure_future(other.ainvoke("?", with_handler(handler)))
    assert [token async for token in handler] == tokens(3, start=90)
    await again


def test_what_begins_after_its_run_has_ended_well_is_a_run_of_its_own() -> None:
    """Hazard: a config that is kept for later calls names a parent, and nobody hears of them."""
    kept: list[RunnableConfig] = []
    handler = QueueStreamHandler()
    step: RunnableLambda[str, None] = RunnableLambda(lambda text, config: kept.append(config))
    step.invoke("?", with_handler(handler))
    assert list(handler) == []
    ScriptedChatModel(tokens=tokens(3)).invoke("?", kept[0])
    assert list(handler) == tokens(3)


# -- the consumer ----------------------------------------------------------------------------------


def test_one_consumer_at_a_time() -> None:
    handler = QueueStreamHandler()
    received: list[str] = []
    thread = in_another_thread(lambda: received.extend(handler))
    eventually(lambda: len(handler.tokens.buffer._getters))  # type: ignore[union-attr]
    with pytest.raises(ConcurrentIterationError):
        next(iter(handler))
    ScriptedChatModel(tokens=tokens(3)).invoke("?", with_handler(handler))
    thread.join()
    assert received == tokens(3)


@on_asyncio
@pytest.mark.anyio
async def test_one_handler_for_threads_and_tasks_at_the_same_time() -> None:
    """Hazard: what was decided for the first run is kept for the second."""
    handler = QueueStreamHandler(maxsize=1)
    gate = Gate()
    models = [
        ScriptedChatModel(tokens=[f"{name}{number}" for number in range(20)], gate=gate)
        for name in "ab"
    ]
    task = asyncio.ensure_future(models[0].ainvoke("?", with_handler(handler)))
    thread = asyncio.ensure_future(asyncio.to_thread(models[1].invoke, "?", with_handler(handler)))
    await eventually_async(lambda: gate.waiting == 2)
    gate.open()
    received = [token async for token in handler]
    await asyncio.gather(task, thread)
    for name, model in zip("ab", models, strict=True):
        assert [token for token in received if token.startswith(name)] == model.tokens


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, kind",
    [
        ({"maxsize": -1}, ValueError),
        ({"maxsize": 2.0}, TypeError),
        ({"maxsize": "2"}, TypeError),
        ({"queue": object()}, TypeError),
        ({"maxsize": 2, "queue": MixedQueue()}, ValueError),
        ({"max_size": 2}, TypeError),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,  # no addresses
)
def test_bad_input(arguments: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        QueueStreamHandler(**arguments)


def test_many_producers_in_a_pool() -> None:
    """Promise 1 with many waiting producers of one handler."""
    handler = QueueStreamHandler(maxsize=1)
    gate = Gate()
    models = [
        ScriptedChatModel(tokens=[f"{number}:{index}" for index in range(20)], gate=gate)
        for number in range(8)
    ]
    with ThreadPoolExecutor(8) as pool:
        for model in models:
            pool.submit(model.invoke, "?", with_handler(handler))
        eventually(lambda: gate.waiting == 8)
        gate.open()
        received = list(handler)
    for number, model in enumerate(models):
        assert [one for one in received if one.startswith(f"{number}:")] == model.tokens


def test_dropped_while_its_run_goes_on() -> None:
    """LangChain holds the handler for as long as the run lasts, and no longer."""
    gate = Gate(1)
    model = ScriptedChatModel(tokens=tokens(3), gate=gate)
    handler: Any = QueueStreamHandler()
    thread = threading.Thread(target=model.invoke, args=("?", with_handler(handler)))
    thread.start()
    assert next(iter(handler)) == tokens(1)[0]
    references = sys.getrefcount(handler)
    gate.open()
    thread.join()
    del thread
    assert sys.getrefcount(handler) < references


def test_a_model_whose_steps_are_taken_in_tasks_of_their_own() -> None:
    """Hazard: the end of the task that began the run is taken for the end of the run.

    ``asyncio.wait_for`` makes such tasks before Python 3.12, some frameworks always do.
    """
    handler = QueueStreamHandler()
    model = ScriptedChatModel(tokens=tokens(4))

    async def step_by_step() -> None:
        answer = model.astream("?", {"callbacks": [handler]})
        steps = iter(range(100))
        while await asyncio.create_task(_has_step(answer)):
            next(steps)

    async def scenario() -> list[str]:
        producer = asyncio.create_task(step_by_step())
        received = [token async for token in handler]
        await producer
        return received

    assert asyncio.run(scenario()) == tokens(4)


async def _has_step(answer: AsyncIterator[object]) -> bool:
    return await anext(answer, None) is not None


def test_a_handler_keeps_nothing_of_cancelled_runs() -> None:
    """Promise 9.  Hazard: what is kept until a run's end, of runs that report none."""
    handler = QueueStreamHandler()
    model = silent_model()

    async def cancel_one() -> None:
        run = asyncio.create_task(model.ainvoke("?", {"callbacks": [handler]}))
        await eventually_async(lambda: handler._open)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    for _ in range(3):
        asyncio.run(cancel_one())
        with pytest.raises(RunCancelledError):
            list(handler)
    gc.collect()
    kept = handler._open, handler._outermost, handler._watched, handler._untold, handler._streamed
    assert [len(each) for each in kept] == [0] * 5
