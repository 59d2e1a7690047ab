"""The facts of the design, each against what is installed and without our own code.

A failure here means that the ground has moved: read the fact again, then the code that
rests on it.  Two need a server: fact 22 is in `test_http_facts`, and fact 15 in `tests.relay`.
That such a failure would come is shown by `test_moved_ground`.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import janus
import pytest
import sniffio
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import (
    AsyncCallbackHandler,
    AsyncCallbackManager,
    BaseCallbackHandler,
)
from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import StructuredTool
from packaging.requirements import Requirement

from tests.support.callbacks import RunLog
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.models import ScriptedChatModel, ScriptedLLM, WholeAnswerChatModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator
    from uuid import UUID

    from langchain_core.runnables import Runnable


class Plain(BaseCallbackHandler):
    """A handler as documented: it notes the tokens and asks for nothing."""

    def __init__(self) -> None:
        self.tokens: list[Any] = []
        self.chunks: list[Any] = []
        self.parents: set[UUID | None] = set()
        self.model_ends = 0
        self.tapped = 0

    def on_llm_new_token(
        self, token: Any, *, chunk: Any = None, parent_run_id: UUID | None = None, **_: Any
    ) -> None:
        self.tokens.append(token)
        self.chunks.append(chunk)
        self.parents.add(parent_run_id)

    def on_llm_end(self, *_: Any, **__: Any) -> None:
        self.model_ends += 1


class Tap(Plain):
    """The same, with the two methods that make a model stream inside `invoke`."""

    run_inline = True

    def tap_output_iter(self, run_id: UUID, output: Iterator[Any]) -> Iterator[Any]:
        self.tapped += 1
        return output

    def tap_output_aiter(self, run_id: UUID, output: AsyncIterator[Any]) -> AsyncIterator[Any]:
        self.tapped += 1
        return output


class Raising(Tap):
    """Raises at the second token."""

    def __init__(self, error: BaseException, *, raise_error: bool = True) -> None:
        super().__init__()
        self.error = error
        self.raise_error = raise_error

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        super().on_llm_new_token(token, **kwargs)
        if len(self.tokens) == 2:
            raise self.error


class Stop(BaseException):
    """A request to stop that is no `Exception`."""


class RefusedError(Exception):
    """An ordinary exception."""


# Fact 1: what makes a model stream


@pytest.mark.parametrize("kind, expected", [(Tap, ["a", "b", ""]), (Plain, [])])
def test_fact_01_two_methods_make_a_model_stream_inside_invoke(
    kind: type[Plain], expected: list[str]
) -> None:
    """The protocol is matched by structure: no private import is needed."""
    handler = kind()
    ScriptedChatModel(tokens=["a", "b"]).invoke("?", {"callbacks": [handler]})
    assert handler.tokens == expected


def test_fact_01_the_same_inside_ainvoke() -> None:
    """`ainvoke` makes the same test."""
    handler = Tap()
    model = ScriptedChatModel(tokens=["a", "b"])
    asyncio.run(model.ainvoke("?", {"callbacks": [handler]}))
    assert handler.tokens == ["a", "b", ""]


def test_fact_01_only_the_first_such_handler_taps() -> None:
    """A handler of ours ahead of LangChain's own would take its tap away."""
    first, second = Tap(), Tap()
    chain = ScriptedChatModel(tokens=["a"]) | StrOutputParser()
    assert list(chain.stream("?", {"callbacks": [first, second]}))
    assert (first.tapped > 0, second.tapped) == (True, 0)
    assert first.tokens == second.tokens == ["a", ""]


# Fact 2: on which thread, loop and task a handler is called


class Where(AsyncCallbackHandler):
    """Notes where its coroutine runs."""

    def __init__(self, *, run_inline: bool) -> None:
        self.run_inline = run_inline
        self.tasks: list[object] = []
        self.loops: list[object] = []
        self.threads: list[int] = []

    async def note(self) -> None:
        self.tasks.append(asyncio.current_task())
        self.loops.append(asyncio.get_running_loop())
        self.threads.append(threading.get_ident())


class WhereInSync(BaseCallbackHandler):
    """Notes on which thread its method runs."""

    def __init__(self, *, run_inline: bool) -> None:
        self.run_inline = run_inline
        self.threads: list[int] = []

    def on_llm_end(self, *_: Any, **__: Any) -> None:
        self.threads.append(threading.get_ident())


@pytest.mark.parametrize("run_inline", [True, False])
def test_fact_02_sync_method_of_an_async_run_goes_to_the_executor(run_inline: bool) -> None:
    """Unless `run_inline`: then it runs on the loop's own thread and must not block."""
    handler = WhereInSync(run_inline=run_inline)
    asyncio.run(ScriptedChatModel(tokens=["a"]).ainvoke("?", {"callbacks": [handler]}))
    assert (handler.threads == [threading.get_ident()]) is run_inline


def test_fact_02_sync_methods_that_wait_starve_the_loops_default_executor() -> None:
    """Six of them where it has six threads; here it has two."""
    freed = threading.Event()

    class Waiting(WhereInSync):
        def on_llm_end(self, *_: Any, **__: Any) -> None:
            super().on_llm_end()
            freed.wait(10)

    handler = Waiting(run_inline=False)

    async def two_runs_and_a_job() -> list[bool]:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(2) as pool:
            loop.set_default_executor(pool)
            model = ScriptedChatModel(tokens=["a"])
            runs = [
                asyncio.ensure_future(model.ainvoke("?", {"callbacks": [handler]}))
                for _ in range(2)
            ]
            await eventually_async(lambda: len(handler.threads) == 2)
            job = loop.run_in_executor(None, threading.get_ident)
            assert {thread.ident for thread in pool._threads} == set(handler.threads)
            was_done = [job.done()]
            freed.set()
            await asyncio.gather(job, *runs)
        return [*was_done, job.done()]

    assert asyncio.run(two_runs_and_a_job()) == [False, True]


@pytest.mark.parametrize("run_inline", [True, False])
def test_fact_02_async_method_of_an_async_run_is_awaited_in_place_only_if_inline(
    run_inline: bool,
) -> None:
    """Otherwise `gather` makes a task for it."""

    class Token(Where):
        async def on_llm_new_token(self, *_: Any, **__: Any) -> None:
            await self.note()

    handler = Token(run_inline=run_inline)

    async def run() -> object:
        (model_run,) = await AsyncCallbackManager([handler]).on_llm_start({}, ["?"])
        await model_run.on_llm_new_token("a")
        return asyncio.current_task()

    models_task = asyncio.run(run())
    assert (handler.tasks == [models_task]) is run_inline


@pytest.mark.parametrize("run_inline", [True, False])
def test_fact_02_async_method_of_a_sync_run_gets_a_fresh_loop_and_its_errors_vanish(
    run_inline: bool,
) -> None:
    """Even with `raise_error`."""

    class Failing(Where):
        raise_error = True

        async def on_llm_end(self, *_: Any, **__: Any) -> None:
            await self.note()
            raise RefusedError

    handler = Failing(run_inline=run_inline)

    async def sync_run_on_a_loop() -> None:
        ScriptedChatModel(tokens=["a"]).invoke("?", {"callbacks": [handler]})
        assert handler.loops[0] is not asyncio.get_running_loop()
        assert handler.threads[0] != threading.get_ident()

    asyncio.run(sync_run_on_a_loop())
    ScriptedChatModel(tokens=["a"]).invoke("?", {"callbacks": [handler]})
    assert len(handler.loops) == 2


class Dual(Tap):
    """A method that is a coroutine function where a loop runs, and a plain one elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited = 0
        self.called = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "on_llm_new_token":
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return self.plain
            return self.coroutine_function
        return super().__getattribute__(name)

    def plain(self, *_: Any, **__: Any) -> None:
        self.called += 1

    async def coroutine_function(self, *_: Any, **__: Any) -> None:
        self.awaited += 1


def test_fact_02_the_attribute_is_read_at_each_call_so_one_handler_can_be_both() -> None:
    """LangChain looks at what the attribute yields now, not at the class."""
    handler = Dual()
    model = ScriptedChatModel(tokens=["a"])
    model.invoke("?", {"callbacks": [handler]})
    assert (handler.called, handler.awaited) == (2, 0)
    asyncio.run(model.ainvoke("?", {"callbacks": [handler]}))
    assert (handler.called, handler.awaited) == (2, 2)


def test_fact_02_sync_code_on_a_loops_thread_runs_the_coroutine_on_another_loop() -> None:
    """So the coroutine can see that it must not wait: its loop is not the one at access."""
    loops: list[tuple[object, object]] = []

    class Handler(Tap):
        @property
        def on_llm_new_token(self) -> Callable[..., Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
            at_access = asyncio.get_running_loop()

            async def on_llm_new_token(*_: Any, **__: Any) -> None:
                loops.append((at_access, asyncio.get_running_loop()))

            return on_llm_new_token

    async def node() -> None:
        ScriptedChatModel(tokens=["a"]).invoke("?", {"callbacks": [Handler()]})

    asyncio.run(node())
    assert len(loops) == 2
    assert all(at_access is not running for at_access, running in loops)


# Facts 3 and 4: how a handler stops a run


def test_fact_03_an_exception_in_a_handler_reaches_the_run_only_with_raise_error() -> None:
    """Without it LangChain logs it and goes on."""
    model = ScriptedChatModel(tokens=["a", "b", "c"])
    quiet = Raising(RefusedError(), raise_error=False)
    assert model.invoke("?", {"callbacks": [quiet]}).content == "abc"
    with pytest.raises(RefusedError):
        model.invoke("?", {"callbacks": [Raising(RefusedError())]})


@pytest.mark.parametrize("wrap", ["with_retry", "with_fallbacks"])
def test_fact_04_a_base_exception_stops_a_sync_run(wrap: str) -> None:
    """Retries and fallbacks let it through: nothing more is produced, nothing is paid for."""
    model, fallback = ScriptedChatModel(tokens=["a", "b", "c"]), ScriptedChatModel(tokens=["x"])
    chain = model.with_retry() if wrap == "with_retry" else model.with_fallbacks([fallback])
    with pytest.raises(Stop):
        chain.invoke("?", {"callbacks": [Raising(Stop())]})
    assert (model.record.produced, model.record.calls, fallback.record.calls) == (2, 1, 0)


def _calling(model: ScriptedChatModel) -> dict[str, Runnable[Any, Any]]:
    """One runnable for each kind of start; all but models of their own call this one."""

    class Retriever(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Any]:
            model.invoke(query)
            return []

    def work(text: str) -> str:
        """Call the model."""
        return str(model.invoke(text).text)

    return {
        "on_chain_start": RunnableLambda(work),
        "on_chat_model_start": model,
        "on_llm_start": ScriptedLLM(tokens=["a"], record=model.record),
        "on_tool_start": StructuredTool.from_function(work),
        "on_retriever_start": Retriever(),
    }


@pytest.mark.parametrize("start", _calling(ScriptedChatModel()))
def test_fact_04_a_base_exception_from_each_start_stops_a_sync_run(start: str) -> None:
    """As from a token: nothing is retried, nothing falls back, and nothing has been produced."""
    starts: list[UUID | None] = []

    def refuse(*_: Any, parent_run_id: UUID | None = None, **__: Any) -> None:
        starts.append(parent_run_id)
        if parent_run_id is not None:  # all but the outermost
            raise Stop

    handler = Raising(Stop())
    setattr(handler, start, refuse)
    model = ScriptedChatModel(tokens=["a"])
    fallback: Runnable[Any, Any] = RunnableLambda(lambda _: "x")
    if start == "on_chain_start":  # which would be refused
        fallback = ScriptedChatModel(tokens=["x"])
    retrying = _calling(model)[start].with_retry(
        wait_exponential_jitter=False, stop_after_attempt=2
    )
    with pytest.raises(Stop):
        retrying.with_fallbacks([fallback]).invoke("?", {"callbacks": [handler]})
    assert len([parent for parent in starts if parent is not None]) == 1
    assert (model.record.calls, model.record.produced) == (0, 0)


def test_fact_04_an_exception_is_retried_in_a_sync_run_and_the_fallback_is_called() -> None:
    """Which is why a stop must not be an `Exception` there."""
    model, fallback = ScriptedChatModel(tokens=["a", "b", "c"]), ScriptedChatModel(tokens=["x"])
    chain = model.with_retry(wait_exponential_jitter=False, stop_after_attempt=2)
    answer = chain.with_fallbacks([fallback]).invoke("?", {"callbacks": [Raising(RefusedError())]})
    assert (answer.content, model.record.calls, fallback.record.calls) == ("abc", 2, 0)
    answer = model.with_fallbacks([fallback]).invoke("?", {"callbacks": [Raising(RefusedError())]})
    assert (answer.content, fallback.record.calls) == ("x", 1)


@pytest.mark.parametrize("error", [Stop(), asyncio.CancelledError()])
def test_fact_04_a_base_exception_in_a_handler_of_an_async_run_is_retried_and_falls_back(
    error: BaseException,
) -> None:
    """`agenerate` turns it into an `AttributeError`, which is then retried like any error."""

    class Token(Raising):
        async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:  # type: ignore[override]
            super().on_llm_new_token(token, **kwargs)

    model, fallback = ScriptedChatModel(tokens=["a", "b", "c"]), ScriptedChatModel(tokens=["x"])
    chain = model.with_fallbacks([fallback])
    answer = asyncio.run(chain.ainvoke("?", {"callbacks": [Token(error)]}))
    assert (answer.content, fallback.record.calls) == ("x", 1)
    retried = ScriptedChatModel(tokens=["a", "b", "c"])
    chain = retried.with_retry(wait_exponential_jitter=False, stop_after_attempt=2)  # type: ignore[assignment]
    answer = asyncio.run(chain.ainvoke("?", {"callbacks": [Token(error)]}))
    assert (answer.content, retried.record.calls, retried.record.produced) == ("abc", 2, 5)
    with pytest.raises(AttributeError):
        asyncio.run(model.ainvoke("?", {"callbacks": [Token(error)]}))


def test_fact_04_cancelling_the_task_of_an_async_run_starts_no_retry_and_no_fallback() -> None:
    """At once, even if the model is silent."""
    model = ScriptedChatModel(tokens=["a", "b"], gate=Gate(1))
    fallback = ScriptedChatModel(tokens=["x"])

    async def run() -> None:
        chain = model.with_retry().with_fallbacks([fallback])
        task = asyncio.ensure_future(chain.ainvoke("?", {"callbacks": [Tap()]}))
        await eventually_async(lambda: model.gate is not None and model.gate.waiting)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    record = model.record
    assert (record.produced, record.calls, record.open, fallback.record.calls) == (1, 1, 0, 0)


def test_fact_04_an_exception_from_the_token_and_each_start_lets_no_token_be_made() -> None:
    """The means of a handler alone, which owns no task: retries start, but get nowhere."""

    class Refusing(Raising):
        def refuse(self, *_: Any, **__: Any) -> None:
            if len(self.tokens) >= 2:
                raise RefusedError

        on_chat_model_start = on_chain_start = on_llm_start = refuse

    model, fallback = ScriptedChatModel(tokens=["a", "b", "c"]), ScriptedChatModel(tokens=["x"])
    retrying = model.with_retry(wait_exponential_jitter=False, stop_after_attempt=3)
    chain = retrying.with_fallbacks([fallback])
    with pytest.raises(RefusedError):
        asyncio.run(chain.ainvoke("?", {"callbacks": [Refusing(RefusedError())]}))
    assert (model.record.produced, fallback.record.produced) == (2, 0)


# Facts 5 to 10: what a callback is told


def test_fact_05_a_thread_sees_the_callers_context_only_in_a_copy() -> None:
    """`chain.invoke` in a thread of one's own loses the context variables.

    Not where the interpreter hands them on: by default, Python 3.14 does without its lock.
    """
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    variable.set("set")
    chain: RunnableLambda[str, str] = RunnableLambda(lambda _: variable.get())
    seen: list[str] = []
    copy = contextvars.copy_context()
    for target in (
        lambda: seen.append(chain.invoke("?")),
        lambda: copy.run(lambda: seen.append(chain.invoke("?"))),
    ):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    are_handed_on = getattr(sys.flags, "thread_inherit_context", False)
    assert seen == ["set" if are_handed_on else "unset", "set"]


def test_fact_06_the_token_can_be_a_list_and_the_last_chunk_is_empty() -> None:
    """So the text is taken from the chunk, not from the argument."""
    call = tool_call_chunk(name="look", args="{}", id="1", index=0)
    handler = Tap()
    model = ScriptedChatModel(
        tokens=[
            AIMessageChunk(content=[{"type": "text", "text": "a", "index": 0}]),
            AIMessageChunk(content="", tool_call_chunks=[call]),
            AIMessageChunk(content="", additional_kwargs={"reasoning_content": "hm"}),
        ]
    )
    model.invoke("?", {"callbacks": [handler]})
    blocks, *empty = handler.tokens
    assert isinstance(blocks, list)
    assert empty == ["", "", ""]
    assert [chunk.text for chunk in handler.chunks] == ["a", "", "", ""]
    assert handler.chunks[-1].message.chunk_position == "last"


def _answered_from_cache() -> Any:
    model = ScriptedChatModel(tokens=["a", "b"], cache=InMemoryCache())
    model.invoke("?")
    return model


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(_answered_from_cache(), id="cache"),
        pytest.param(ScriptedChatModel(tokens=["a"], disable_streaming=True), id="disabled"),
        pytest.param(ScriptedLLM(tokens=["a"]), id="llm"),
        pytest.param(WholeAnswerChatModel(tokens=["a"]), id="no _stream"),
    ],
)
def test_fact_07_an_answer_can_end_with_no_token_before_it(model: Any) -> None:
    """The text then comes with `on_llm_end` alone."""
    handler = Tap()
    model.invoke("?", {"callbacks": [handler]})
    assert (handler.tokens, handler.model_ends) == ([], 1)


def test_fact_08_a_failed_attempt_sends_its_tokens_too() -> None:
    """A screen that showed them has to be cleared."""
    model = ScriptedChatModel(
        tokens=["a", "b", "c"], failure=RefusedError(), fail_at=2, fail_calls=1
    )
    handler = Tap()
    model.with_retry(wait_exponential_jitter=False).invoke("?", {"callbacks": [handler]})
    assert handler.tokens == ["a", "b", "a", "b", "c", ""]


def test_fact_08_models_inside_with_fallbacks_report_its_parent_as_theirs() -> None:
    """The fallback's own run is not in between: the siblings are siblings of other steps."""
    failing = ScriptedChatModel(tokens=["a"], failure=RefusedError(), fail_at=1)
    log, handler = RunLog(), Tap()
    chain = RunnableLambda(lambda x: x) | failing.with_fallbacks([ScriptedChatModel(tokens=["b"])])
    chain.invoke("?", {"callbacks": [log, handler]})
    (sequence,) = log.outermost
    assert handler.parents == {sequence}
    assert handler.tokens == ["a", "b", ""]


def test_fact_09_a_handler_of_the_models_constructor_serves_every_call() -> None:
    """Also those that go on at the same time."""
    handler, gate = Tap(), Gate()
    model = ScriptedChatModel(tokens=["a"], gate=gate, callbacks=[handler])
    threads = [threading.Thread(target=model.invoke, args=("?",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    eventually(lambda: gate.waiting == 2)
    gate.open()
    for thread in threads:
        thread.join()
    assert sorted(handler.tokens) == ["", "", "a", "a"]


@pytest.mark.parametrize("kind", ["RunnableLambda", "LangGraph", "LangGraph, sync node"])
def test_fact_10_code_inside_ainvoke_passes_callbacks_on(kind: str) -> None:
    """On Python 3.10 LangGraph does not, nor did langchain-core: config must be handed on there.

    In LangGraph not even to a plain node, which it runs in a thread.
    """
    model = ScriptedChatModel(tokens=["a"])

    async def forgets(_: Any) -> dict[str, Any]:
        await model.ainvoke("?")
        return {}

    async def hands_on(_: Any, config: RunnableConfig) -> dict[str, Any]:
        await model.ainvoke("?", config)
        return {}

    def plain_forgets(_: Any) -> dict[str, Any]:
        model.invoke("?")
        return {}

    def plain_hands_on(_: Any, config: RunnableConfig) -> dict[str, Any]:
        model.invoke("?", config)
        return {}

    nodes: list[Any] = [forgets, hands_on]
    if "sync" in kind:
        nodes = [plain_forgets, plain_hands_on]
    heard = []
    for node in nodes:
        handler = Tap()
        chain: Any = RunnableLambda(node) if kind == "RunnableLambda" else _graph_of(node)
        asyncio.run(chain.ainvoke({"x": 1}, {"callbacks": [handler]}))
        heard.append(handler.tokens)
    if sys.version_info >= (3, 11):
        assert heard[0] == ["a", ""]
    elif kind != "RunnableLambda":
        assert heard[0] == []
    assert heard[1] == ["a", ""]


def _graph_of(node: Any) -> Any:
    graph = pytest.importorskip("langgraph.graph", reason="langgraph is no dependency")
    builder = graph.StateGraph(dict)
    builder.add_node("node", node)
    builder.add_edge(graph.START, "node")
    return builder.compile()


# Facts 11 to 13: waking a loop


def test_fact_11_a_janus_queue_binds_to_one_loop() -> None:
    """A producer and a consumer on two loops cannot share one."""
    queue: janus.Queue[int] = janus.Queue()

    async def use() -> None:
        await queue.async_q.put(1)

    asyncio.run(use())
    with pytest.raises(RuntimeError, match="different event loop"):
        asyncio.run(use())


def test_fact_11_a_janus_queue_cannot_run_on_trio() -> None:
    """It needs asyncio's loop."""

    async def use() -> None:
        queue: janus.Queue[int] = janus.Queue()
        await queue.async_q.put(1)  # for which there is room

    with pytest.raises(RuntimeError, match="no running event loop"):
        anyio.run(use, backend="trio")


def test_fact_11_a_janus_queue_makes_a_task_for_a_wake_up() -> None:
    """A put from a thread wakes the loop's getter through a task of its own."""

    async def use() -> int:
        made: list[object] = []
        loop = asyncio.get_running_loop()

        def factory(loop: Any, coroutine: Any, **kwargs: Any) -> Any:
            made.append(coroutine)
            return asyncio.Task(coroutine, loop=loop, **kwargs)

        queue: janus.Queue[int] = janus.Queue()
        waiting = asyncio.ensure_future(queue.async_q.get())
        await asyncio.sleep(0)
        loop.set_task_factory(factory)
        await loop.run_in_executor(None, queue.sync_q.put, 1)
        await waiting
        await queue.aclose()
        return len(made)

    assert asyncio.run(use()) > 0


@pytest.mark.anyio
async def test_fact_12_anyio_knows_the_native_loop_and_how_to_wake_it(
    anyio_backend_name: str,
) -> None:
    """It is `call_soon_threadsafe` on asyncio, `run_sync_soon` on trio; neither waits."""
    native: Any = anyio.lowlevel.current_token().native_token
    event = anyio.Event()
    if anyio_backend_name == "trio":
        wake = native.run_sync_soon
    else:
        assert native is asyncio.get_running_loop()
        wake = native.call_soon_threadsafe
    thread = threading.Thread(target=wake, args=(event.set,))
    thread.start()
    with anyio.fail_after(5):
        await event.wait()
    thread.join()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_fact_12_waking_a_loop_that_has_gone_raises_runtime_error(backend: str) -> None:
    """Trio's, too."""

    async def token() -> Any:
        return anyio.lowlevel.current_token().native_token

    native = anyio.run(token, backend=backend)
    wake = native.run_sync_soon if backend == "trio" else native.call_soon_threadsafe
    with pytest.raises(RuntimeError):
        wake(print)


def test_fact_12_a_look_at_is_closed_is_no_protection() -> None:
    """A loop can go between the look and the call."""
    loop = asyncio.new_event_loop()
    # Step 1: somebody looks.
    looked_closed = loop.is_closed()
    # Step 2: the loop's own thread is done with it.
    thread = threading.Thread(target=loop.close)
    thread.start()
    thread.join()
    # Step 3: who has looked calls.
    assert not looked_closed
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon_threadsafe(print)


def test_fact_13_each_call_soon_threadsafe_writes_to_a_socket() -> None:
    """Ten wake-ups are ten system calls, though the loop wakes once."""

    class Loop(asyncio.SelectorEventLoop):
        writes = 0

        def _write_to_self(self) -> None:
            self.writes += 1
            super()._write_to_self()  # type: ignore[misc]

    loop = Loop()
    for _ in range(10):
        loop.call_soon_threadsafe(loop.stop)
    loop.run_forever()
    loop.close()
    assert loop.writes == 10


# Facts 14 to 17: ends that do not come, or come late


async def _leave_after_first(response: Any) -> None:
    """Be a client that leaves as soon as it has got the first piece."""
    sent = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await sent.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message.get("body"):
            sent.set()

    await response({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)


def test_fact_14_starlette_closes_an_async_generator_but_no_sync_one() -> None:
    """A sync generator behind an endpoint goes on to hold what it holds when the client leaves."""
    responses = pytest.importorskip("starlette.responses", reason="starlette is an extra")
    ended = []

    def sync_body() -> Iterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            ended.append("sync")

    async def async_body() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
                await anyio.lowlevel.checkpoint()
        finally:
            ended.append("async")

    held = sync_body()  # or the collector would close it
    asyncio.run(_leave_after_first(responses.StreamingResponse(held)))
    asyncio.run(_leave_after_first(responses.StreamingResponse(async_body())))
    assert ended == ["async"]


def test_fact_14_a_generator_that_was_never_entered_never_runs_its_finally() -> None:
    """So what an endpoint opens before its first `yield` must not need that `finally`."""
    ended = []

    def body(name: str) -> Generator[None]:
        try:
            yield
        finally:
            ended.append(name)

    entered = body("entered")
    next(entered)
    for generator in (entered, body("never entered")):
        generator.close()
    gc.collect()
    assert ended == ["entered"]


def test_fact_16_a_context_copied_from_anyios_trio_says_trio_elsewhere() -> None:
    """There, anyio then looks for trio, in whatever thread or asyncio loop that is."""

    async def copy() -> contextvars.Context:
        return contextvars.copy_context()

    context = anyio.run(copy, backend="trio")
    assert context.run(sniffio.current_async_library) == "trio"

    async def on_asyncio() -> None:
        await anyio.lowlevel.checkpoint()

    with pytest.raises(BaseException) as failure:
        context.run(asyncio.run, on_asyncio())
    assert not isinstance(failure.value, AssertionError)
    context.run(sniffio.current_async_library_cvar.set, None)
    context.run(asyncio.run, on_asyncio())


def test_fact_17_closing_the_stream_of_a_chain_drains_the_model() -> None:
    """LangChain swallows `GeneratorExit` and reads its input to the end, for the trace."""
    model = ScriptedChatModel(tokens=["a", "b", "c"])
    stream = (model | StrOutputParser()).stream("?")
    assert next(stream) == "a"
    assert model.record.produced == 1
    getattr(stream, "close")()  # noqa: B009 - declared as an Iterator, in fact a generator
    assert model.record.produced == 3


# Facts 19 to 22: neighbours


def test_fact_18_langchain_core_1_0_and_what_is_installed_are_in_the_range() -> None:
    """Which versions *can* be installed, the environments langchain-min and -latest show."""
    wanted = [Requirement(line) for line in metadata.requires("queuestream") or []]
    (core,) = [one for one in wanted if one.name == "langchain-core"]
    assert core.specifier.contains("1.0.0")
    assert core.specifier.contains(metadata.version("langchain-core"))
    if os.environ.get("TOX_ENV_NAME") == "langchain-min":
        assert metadata.version("langchain-core") == "1.0.0"


def test_fact_19_beside_a_v2_handler_no_token_comes() -> None:
    """Then the model's events go to `on_stream_event` instead."""
    streaming = pytest.importorskip("langchain_core.tracers._streaming")
    if not hasattr(streaming, "_V2StreamingCallbackHandler"):
        pytest.skip("this langchain-core has no second streaming protocol yet")

    class Second(streaming._V2StreamingCallbackHandler, BaseCallbackHandler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.events = 0

        def on_stream_event(self, *_: Any, **__: Any) -> None:
            self.events += 1

    ours, second = Tap(), Second()
    ScriptedChatModel(tokens=["a"]).invoke("?", {"callbacks": [second, ours]})
    assert ours.tokens == []
    assert second.events > 0


def test_fact_20_cancelling_a_portals_future_cancels_each_await_of_the_clean_up() -> None:
    """`task.cancel()` cancels one await; a run's clean-up can then do its work."""
    cleaned_up: list[str] = []

    async def run(name: str, started: threading.Event) -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.append(name)

    with anyio.from_thread.start_blocking_portal() as portal:
        started = threading.Event()
        future = portal.start_task_soon(run, "portal", started)
        assert started.wait(5)
        future.cancel()

    async def plain() -> None:
        task = asyncio.ensure_future(run("task", threading.Event()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(plain())
    assert cleaned_up == ["task"]


def test_fact_20_a_system_exit_kills_the_portal() -> None:
    """And with it every other task on it."""
    script = (
        "import threading, anyio.from_thread\n"
        "async def leave(): raise SystemExit(3)\n"
        "async def other(): return 'alive'\n"
        "with anyio.from_thread.start_blocking_portal() as portal:\n"
        "    try: portal.call(leave)\n"
        "    except BaseException as e: print(type(e).__name__)\n"
        "    for thread in threading.enumerate():\n"
        "        if thread is not threading.main_thread(): thread.join(10)\n"
        "    try: print(portal.call(other))\n"
        "    except BaseException as e: print('dead', type(e).__name__)\n"
    )
    output = _output_of(script)
    assert output.split() == ["SystemExit", "dead", "RuntimeError"]


def test_fact_21_threading_atexit_runs_before_pools_are_joined_and_atexit_after() -> None:
    """A producer that waits in a pool has to be freed by the former."""
    script = (
        "import atexit, concurrent.futures, threading\n"
        "event = threading.Event()\n"
        "def work(): event.wait(); print('pool', flush=True)\n"
        "pool = concurrent.futures.ThreadPoolExecutor()\n"
        "pool.submit(work)\n"
        "atexit.register(print, 'atexit')\n"
        "threading._register_atexit(lambda: (print('threading', flush=True), event.set()))\n"
    )
    assert _output_of(script).split() == ["threading", "pool", "atexit"]


def _output_of(script: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    return result.stdout
