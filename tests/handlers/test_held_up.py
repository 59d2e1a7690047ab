"""Synchronous code that holds up a loop: what it calls must not wait for that loop."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.documents import Document  # noqa: TC002 - pydantic reads it
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableParallel

from queuestream import QueueStreamHandler, StreamHandler, stream
from queuestream.handlers import BatchStreamHandler
from queuestream.handlers._dual import held_up
from tests.support.backends import ASYNCIO_BACKENDS
from tests.support.gates import Gate, eventually_async
from tests.support.homes import Heard, loop_thread
from tests.support.models import ScriptedChatModel, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS)


def with_handler(handler: Any) -> RunnableConfig:
    """Return a config with one callback."""
    return {"callbacks": [handler]}


def alone(model: Any) -> Any:
    return model


def in_parallel(model: Any) -> Any:
    """A model in a thread of LangChain's pool, for which the caller waits."""
    return RunnableParallel(a=model, b=str)


def in_batch(model: Any) -> Any:
    """Two calls from a function, each in a thread of LangChain's pool."""

    def call(question: str, config: RunnableConfig) -> list[Any]:
        return model.batch([question] * 2, config)  # type: ignore[no-any-return]

    return RunnableLambda(call)


SHAPES = [alone, in_parallel, in_batch]


def count_of(shape: Any) -> int:
    """How many models answer."""
    return 2 if shape is in_batch else 1


# -- where a coroutine is at home ------------------------------------------------------------------


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("raise_error", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
async def test_at_home_on_the_loop_that_is_held_up(
    shape: Callable[[Any], Any], raise_error: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: a deadlock; in the threads of a pool, nobody sees that a loop waits for them."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async, raise_error=raise_error)
    target = shape(ScriptedChatModel(tokens=tokens(2)))
    if raise_error:
        with pytest.raises(RuntimeError, match="call the model with ainvoke there"):
            target.invoke("?", with_handler(handler))
    else:
        target.invoke("?", with_handler(handler))
        assert caplog.text.count("call the model with ainvoke there") == 2 * count_of(shape)
    assert heard.tokens == []


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES)
async def test_at_home_on_another_loop(shape: Callable[[Any], Any]) -> None:
    """Hazard: it is refused, or runs on the wrong loop."""
    heard = Heard()
    with loop_thread() as other:
        handler = other.call(lambda: StreamHandler(heard.on_token_async, raise_error=True))
        shape(ScriptedChatModel(tokens=tokens(2))).invoke("?", with_handler(handler))
        assert sorted(heard.tokens) == sorted(tokens(2) * count_of(shape))
        assert heard.loops == {other.loop}


@pytest.mark.parametrize("shape", SHAPES)
def test_at_home_nowhere(shape: Callable[[Any], Any]) -> None:
    """The background loop is free."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async, raise_error=True)

    async def main() -> None:
        shape(ScriptedChatModel(tokens=tokens(2))).invoke("?", with_handler(handler))
        assert asyncio.get_running_loop() not in heard.loops

    asyncio.run(main())
    assert sorted(heard.tokens) == sorted(tokens(2) * count_of(shape))


@pytest.mark.parametrize("raise_error", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_at_home_nowhere_and_the_background_loop_is_held_up(
    shape: Callable[[Any], Any], raise_error: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: a deadlock of the loop that all streams share."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async, raise_error=raise_error)
    target = shape(ScriptedChatModel(tokens=tokens(2)))

    async def node(question: str, config: RunnableConfig) -> str:
        target.invoke(question, config)
        return "the end"

    with stream(RunnableLambda(node), "?", with_handler(handler), run_in="background") as answer:
        if raise_error:
            with pytest.raises(RuntimeError, match="background loop, and synchronous code holds"):
                list(answer)
        else:
            assert len(list(answer)) == 2 * count_of(shape)
            assert answer.result == "the end"
            assert "background loop, and synchronous code holds up" in caplog.text
    assert heard.tokens == []


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
async def test_a_start_that_is_not_reported_to_the_base(is_async: bool) -> None:
    """Hazard: a deadlock where a user's class forgets ``super()``, as documents show it."""
    heard = Heard()

    class Plain(StreamHandler):
        def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
            heard.on_token("start")

    class Async(StreamHandler):
        async def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
            heard.on_token("start")

    handler: Any = (Async if is_async else Plain)(heard.on_token_async, raise_error=True)
    model = ScriptedChatModel(tokens=tokens(2))
    with pytest.raises(RuntimeError, match="call the model with ainvoke there"):
        model.invoke("?", with_handler(handler))
    assert heard.tokens == ["start"]
    assert model.record.produced == 1  # the first token's refusal is the run's error


@on_asyncio
@pytest.mark.anyio
async def test_what_a_start_delivers_goes_home() -> None:
    """Hazard: it is called on LangChain's own loop, by way of a coroutine of the user's."""
    heard = Heard()

    class Handler(StreamHandler):
        async def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            await super().on_chat_model_start(*args, **kwargs)

        def _texts_at_start(self, state: Any) -> Any:
            return ("begin ",)

    with loop_thread() as other:
        handler = other.call(lambda: Handler(heard.on_token_async, raise_error=True))
        ScriptedChatModel(tokens=tokens(2)).invoke("?", with_handler(handler))
        assert heard.tokens == ["begin ", *tokens(2)]
        assert heard.loops == {other.loop}


@on_asyncio
@pytest.mark.anyio
async def test_a_generator_of_a_thread_that_is_closed_on_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Hazard: a deadlock: what is left of the run is to be delivered on the loop that waits.

    So it is where a client has gone, and the collector closes what its response iterated.
    """
    heard = Heard()
    handler = BatchStreamHandler(heard.on_token_async)
    answer = ScriptedChatModel(tokens=tokens(9)).stream("?", with_handler(handler))
    await asyncio.to_thread(next, answer)
    answer.close()  # type: ignore[attr-defined]
    assert "call the model with ainvoke there" in caplog.text
    assert heard.tokens == []


# -- other runs of the loop, which nothing holds up ------------------------------------------------


@on_asyncio
@pytest.mark.anyio
async def test_between_two_steps_of_a_synchronous_generator() -> None:
    """Hazard: what other runs call meanwhile counts as held up, and is refused."""
    heard, gate = Heard(), Gate()
    handler = StreamHandler(heard.on_token_async)
    model = ScriptedChatModel(tokens=tokens(3), gate=gate)
    run = asyncio.ensure_future(model.ainvoke("?", with_handler(handler)))
    await eventually_async(lambda: gate.waiting)
    held: list[Any] = []
    for _ in ScriptedChatModel(tokens=["no"]).stream("?", with_handler(handler)):
        held.extend(held_up)
        gate.open()
        await run
    assert held
    assert heard.tokens == tokens(3)


@on_asyncio
@pytest.mark.anyio
async def test_after_synchronous_code_that_has_not_reported_its_end() -> None:
    """Hazard: LangChain reports no end of a retriever that exits: the loop counts as held up."""
    heard, gate = Heard(), Gate()
    handler = StreamHandler(heard.on_token_async)
    model = ScriptedChatModel(tokens=tokens(3), gate=gate)
    run = asyncio.ensure_future(model.ainvoke("?", with_handler(handler)))
    await eventually_async(lambda: gate.waiting)

    class Leaves(BaseRetriever):
        def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
            raise SystemExit(query)

    with pytest.raises(SystemExit):
        Leaves().invoke("?", with_handler(handler))
    gate.open()
    await run
    await handler("direct")
    assert heard.tokens == [*tokens(3), "direct"]


# -- several loops ---------------------------------------------------------------------------------


def test_two_loops_share_a_handler_and_are_held_up_at_once() -> None:
    """Hazard: what is known of one loop decides on the other."""
    heard, gate = Heard(), Gate()
    handler = StreamHandler(heard.on_token_async, raise_error=True)

    async def hold_up(model: Any) -> None:
        model.invoke("?", with_handler(handler))

    slow = ScriptedChatModel(tokens=tokens(2), gate=gate)
    with loop_thread() as one, loop_thread() as two:
        first = one.submit(hold_up(slow))
        slow.record.wait_until_produced(0)
        two.run(hold_up(ScriptedChatModel(tokens=tokens(2, 2))))
        two.run(ScriptedChatModel(tokens=tokens(2, 4)).ainvoke("?", with_handler(handler)))
        assert heard.tokens == tokens(4, 2)
        assert two.loop in heard.loops
        gate.open()
        first.result(10)
    assert sorted(heard.tokens) == sorted(tokens(6))


def test_each_of_two_loops_that_are_held_up_wants_the_other() -> None:
    """Hazard: a deadlock in a circle, which neither loop sees in itself."""
    begun, go_on = Gate(), Gate()
    outcomes: list[str] = []

    async def on_token(token: str) -> None:
        outcomes.append(token)

    async def begin(token: str) -> None:
        """Hold up the one loop until the other has had its say."""
        begun.open()
        await go_on.wait_async()
        outcomes.append(token)

    async def hold_up(handler: Any, token: str) -> None:
        ScriptedChatModel(tokens=[token]).invoke("?", with_handler(handler))

    with loop_thread() as one, loop_thread() as two:
        at_one = one.call(lambda: StreamHandler(on_token, raise_error=True))
        at_two = two.call(lambda: StreamHandler(begin, raise_error=True))
        first = one.submit(hold_up(at_two, "a"))  # one waits for two, which is free
        begun.wait()
        with pytest.raises(RuntimeError, match="call the model with ainvoke there"):
            two.run(hold_up(at_one, "b"))  # and two for one
        go_on.open()
        first.result(10)
    assert outcomes == ["a"]


def test_a_loop_that_a_held_up_loop_waits_for() -> None:
    """Hazard: it waits for a consumer on the loop that waits for it (promises 3 and 5).

    Synchronous code may begin a loop of its own in a thread, to call something asynchronous.
    """
    handler = QueueStreamHandler(1)

    def call(question: str, config: RunnableConfig) -> str:
        model = ScriptedChatModel(tokens=tokens(9))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, model.ainvoke(question, config)).result()
        return question

    async def main() -> None:
        RunnableLambda(call).invoke("?", with_handler(handler))
        assert [token async for token in handler] == tokens(9)

    asyncio.run(main())


# -- a queue ---------------------------------------------------------------------------------------


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES)
async def test_a_queue_behind_another_handler(shape: Callable[[Any], Any]) -> None:
    """Hazard: it waits for the consumer, who is on the loop that waits for it."""
    queue = QueueStreamHandler(1)
    target = shape(ScriptedChatModel(tokens=tokens(9)))
    target.invoke("?", with_handler(BatchStreamHandler(queue, batch_size=2)))
    queue.end()
    received = [token async for token in queue]
    assert len(received) == 5 * count_of(shape)
    assert sorted("".join(received)) == sorted("".join(tokens(9)) * count_of(shape))


def test_an_end_that_the_collector_reports_in_the_middle() -> None:
    """Hazard: a deadlock: it is reported from within the lock, by way of another thread.

    So it is with a synchronous generator, begun in a thread, that is dropped on a loop.
    """
    handler = QueueStreamHandler()

    async def main() -> None:
        answer = ScriptedChatModel(tokens=tokens(9)).stream("?", with_handler(handler))
        await asyncio.to_thread(next, answer)
        with handler.tokens.lock:
            del answer
            gc.collect()
        assert await anext(aiter(handler)) == "t0 "
        with pytest.raises(RuntimeError, match="GeneratorExit"):
            await anext(aiter(handler))

    asyncio.run(main())
