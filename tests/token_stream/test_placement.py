"""Where a run happens, who may iterate it there, and what is refused."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from langchain_core.runnables import RunnableConfig, RunnableLambda

from queuestream import stream
from queuestream.errors import PlacementError, StreamClosedError
from tests.support.backends import ASYNCIO_BACKENDS
from tests.support.gates import Gate, eventually
from tests.support.models import AsyncOnlyChatModel, ScriptedChatModel, tokens
from tests.support.streams import DEFAULT_CASES, getters_of, is_blocked

if TYPE_CHECKING:
    from tests.support.streams import Case

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS)


async def where(_text: str) -> str:
    return "a task"


WHERE: RunnableLambda[str, str] = RunnableLambda(
    lambda _: threading.current_thread().name,
    lambda _: asyncio.sleep(0, f"a task in {threading.current_thread().name}"),
)

# -- auto ------------------------------------------------------------------------------------------


def test_auto_for_a_plain_consumer_is_thread() -> None:
    answer = stream(WHERE, "?")
    assert list(answer) == []
    assert answer.result.startswith("queuestream run of ")


@pytest.mark.anyio
async def test_auto_on_a_loop(anyio_backend_name: str) -> None:
    """On asyncio a task of this very loop; on trio the background loop."""
    answer = stream(WHERE, "?")
    assert [token async for token in answer] == []
    here = threading.current_thread().name
    place = here if anyio_backend_name == "asyncio" else "queuestream background loop"
    assert answer.result == f"a task in {place}"


@on_asyncio
@pytest.mark.anyio
async def test_auto_for_a_plain_for_while_a_loop_runs_in_the_same_thread() -> None:
    """The notebook: a plain ``for`` in a cell.  Hazard: a task of a loop that it holds up."""
    model = ScriptedChatModel(tokens=tokens(20))
    with stream(model, "?", maxsize=1) as answer:
        assert list(answer) == tokens(20)
    assert model.record.loops == set()
    assert list(stream(model, "?", maxsize=1, run_in="background")) == tokens(20)
    only = AsyncOnlyChatModel(tokens=tokens(20))
    assert list(stream(only, "?", maxsize=1, run_in="background")) == tokens(20)


def test_the_place_is_fixed_at_the_start() -> None:
    """Hazard: entered by ``with``, and then the first ``async for`` starts a second run."""
    model = ScriptedChatModel(tokens=tokens(4))

    async def main() -> None:
        with stream(model, "?") as answer:
            assert [token async for token in answer] == tokens(4)

    asyncio.run(main())
    assert model.record.calls == 1
    assert model.record.loops == set()


# -- switching -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in DEFAULT_CASES
        if case.values[0].producer in ("thread", "background") and case.values[0].consumer.is_async
    ],
)
def test_switching_between_for_and_async_for(case: Case) -> None:
    model = ScriptedChatModel(tokens=tokens(6))

    async def scenario() -> None:
        async with case.running(model, maxsize=1) as running:
            assert next(running) == tokens(1)[0]
            assert await running.__anext__() == tokens(2)[1]
            for token in running:
                assert token == tokens(3)[2]
                break
            async for token in running:
                assert token == tokens(4)[3]
                break
            assert list(running) == tokens(2, start=4)
            assert [token async for token in running] == []

    case.consumer.run(scenario)


# -- a task, iterated synchronously ----------------------------------------------------------------


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_task_iterated_synchronously_on_its_own_loop(*, has_begun: bool) -> None:
    """Hazard: a deadlock.  The message names what to do instead, and nothing is harmed."""
    model = ScriptedChatModel(tokens=tokens(3))
    answer = stream(model, "?", run_in="task")
    if has_begun:
        assert await answer.__anext__() == tokens(1)[0]
    with pytest.raises(PlacementError, match=r'async for, or run_in="thread"'):
        next(answer)
    rest = [token async for token in answer]
    assert rest == tokens(3 - has_begun, start=int(has_begun))


@on_asyncio
@pytest.mark.anyio
async def test_a_task_iterated_synchronously_from_another_thread() -> None:
    """That is no deadlock, and allowed."""
    model = ScriptedChatModel(tokens=tokens(30))
    async with stream(model, "?", run_in="task", maxsize=1) as answer:
        assert await anyio.to_thread.run_sync(list, answer) == tokens(30)


@on_asyncio
@pytest.mark.anyio
async def test_entering_a_task_with_a_plain_with() -> None:
    model = ScriptedChatModel(tokens=tokens(3))
    with stream(model, "?", run_in="task") as answer:
        assert [token async for token in answer] == tokens(3)


def test_a_task_without_a_loop() -> None:
    model = ScriptedChatModel(tokens=tokens(3))
    answer = stream(model, "?", run_in="task")
    with pytest.raises(PlacementError, match=r'no asyncio loop runs.*"background", "thread"'):
        next(answer)
    with pytest.raises(PlacementError), answer:
        pass
    assert model.record.calls == 0


def test_a_task_on_trio() -> None:
    trio = pytest.importorskip("trio")

    async def main() -> None:
        answer = stream(ScriptedChatModel(tokens=[]), "?", run_in="task")
        with pytest.raises(PlacementError, match=r'on trio.*"background", "thread"'):
            await answer.__anext__()
        with pytest.raises(PlacementError):
            async with answer:
                pass

    trio.run(main)


def test_a_refused_place_can_be_made_good() -> None:
    """Hazard: the refusal uses the stream up."""
    model = ScriptedChatModel(tokens=tokens(3))
    answer = stream(model, "?", run_in="task")
    with pytest.raises(PlacementError):
        next(answer)

    async def main() -> list[str]:
        return [token async for token in answer]

    assert asyncio.run(main()) == tokens(3)


# -- functions -------------------------------------------------------------------------------------


class Plain:
    """A callable object."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, query: str, callbacks: Any) -> str:
        return str(self.model.invoke(query, {"callbacks": callbacks}).content)


class Async(Plain):
    """One whose call is a coroutine function."""

    async def __call__(  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        self, query: str, callbacks: Any
    ) -> str:
        answer = await self.model.ainvoke(query, {"callbacks": callbacks})
        return str(answer.content)


@pytest.mark.parametrize("kind", ["function", "object", "method"])
@pytest.mark.parametrize(
    "case", [case for case in DEFAULT_CASES if case.values[0].producer in ("thread", "background")]
)
def test_a_plain_callable_always_gets_a_thread_of_its_own(case: Case, kind: str) -> None:
    """Hazard: under ``background`` or ``task`` it would hold up that loop."""
    model = ScriptedChatModel(tokens=tokens(20))
    target: Any = Plain(model)
    if kind == "function":
        target = lambda query, callbacks=None: Plain(model)(query, callbacks)  # noqa: E731
    elif kind == "method":
        target = target.__call__

    async def scenario() -> None:
        async with case.consumer.entered(case.stream(target, maxsize=1)) as running:
            assert await case.consumer.collect(running) == tokens(20)
        assert running.result == "".join(tokens(20))

    case.consumer.run(scenario)
    assert model.record.loops == set()
    assert all(name.startswith("queuestream run of") for name in model.record.threads)


@pytest.mark.parametrize("kind", ["function", "object"])
@pytest.mark.parametrize(
    "case", [case for case in DEFAULT_CASES if case.values[0].producer in ("task", "background")]
)
def test_an_async_callable(case: Case, kind: str) -> None:
    model = ScriptedChatModel(tokens=tokens(20))
    target: Any = Async(model)

    async def function(query: str, callbacks: Any) -> str:
        return str(await Async(model)(query, callbacks))

    async def scenario() -> None:
        made = case.stream(function if kind == "function" else target, maxsize=1)
        async with case.consumer.entered(made) as running:
            assert await case.consumer.collect(running) == tokens(20)
        assert running.result == "".join(tokens(20))

    case.consumer.run(scenario)
    assert len(model.record.loops) == 1


def test_an_async_callable_for_a_plain_consumer_goes_to_the_background() -> None:
    model = ScriptedChatModel(tokens=tokens(20))
    answer = stream(Async(model), "?", maxsize=1)
    assert list(answer) == tokens(20)
    assert model.record.threads == {"queuestream background loop"}


@pytest.mark.parametrize("target", [Async(None), RunnableLambda(where)])
def test_an_async_target_in_a_thread(target: Any) -> None:
    with pytest.raises(ValueError, match=r'"background".*"task".*"auto"'):
        stream(target, "?", run_in="thread")


def test_an_async_only_runnable_for_a_plain_consumer() -> None:
    answer = stream(RunnableLambda(where), "?")
    assert list(answer) == []
    assert answer.result == "a task"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes on errors came with Python 3.11")
def test_a_runnable_that_turns_out_to_be_async_only() -> None:
    """What cannot be known before gets an error that names ``background``."""
    answer = stream(AsyncOnlyChatModel(tokens=tokens(3)), "?")
    with pytest.raises(NotImplementedError) as raised:
        next(answer)
    assert 'run_in="background"' in str(getattr(raised.value, "__notes__", ""))
    again = stream(AsyncOnlyChatModel(tokens=tokens(3)), "?", run_in="background")
    assert list(again) == tokens(3)


def test_a_plain_function_that_returns_a_coroutine() -> None:
    """Hazard: the coroutine is the result, and is never awaited."""

    def sly(query: str, callbacks: Any) -> Any:
        return where(query)

    with pytest.raises(TypeError, match="async def"):
        next(stream(sly, "?"))


def test_a_callable_that_ignores_its_callbacks() -> None:
    """It gives no tokens, and its result."""
    model = ScriptedChatModel(tokens=tokens(20))

    def deaf(query: str, callbacks: Any) -> str:
        return str(model.invoke(query, {"callbacks": []}).content)

    answer = stream(deaf, "?")
    assert list(answer) == []
    assert answer.result == "".join(tokens(20))


def test_a_functions_runs_get_the_rest_of_the_config() -> None:
    """Hazard: tags and metadata have no parameter to come in by."""
    seen: list[Any] = []

    def note(text: str, config: RunnableConfig) -> str:
        seen.append(config)
        return text

    step = RunnableLambda(note)

    def execute(query: str, callbacks: Any) -> str:
        return step.invoke(query, {"callbacks": callbacks})

    config: RunnableConfig = {"tags": ["mine"], "metadata": {"from": "me"}}
    answer = stream(execute, "?", config)
    assert list(answer) == []
    assert seen[0]["tags"] == ["mine"]
    assert seen[0]["metadata"] == {"from": "me"}


# -- synchronous code on a loop's own thread -------------------------------------------------------


def calls_invoke(model: Any) -> RunnableLambda[str, str]:
    """Return a step that holds up its loop: an ``async def`` that calls ``invoke``."""

    async def awork(text: str, config: RunnableConfig) -> str:
        return str(model.invoke(text, config).content)

    return RunnableLambda(awork)


@pytest.mark.parametrize(
    "case", [case for case in DEFAULT_CASES if case.values[0].producer in ("task", "background")]
)
def test_sync_code_on_a_loop_goes_past_maxsize(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: it waits for a consumer that is on the very loop which it holds up."""
    model = ScriptedChatModel(tokens=tokens(30))

    async def scenario() -> None:
        async with case.running(calls_invoke(model), maxsize=2) as running:
            await case.consumer.wait(lambda: model.record.wait_until_produced(30))
            assert await case.consumer.collect(running) == tokens(30)

    case.consumer.run(scenario)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "past maxsize" in warnings[0].getMessage()


@pytest.mark.parametrize(
    "case", [case for case in DEFAULT_CASES if case.values[0].producer == "background"]
)
def test_a_stop_of_sync_code_on_a_loop_arrives_when_its_call_returns(case: Case) -> None:
    gate = Gate(2)
    model = ScriptedChatModel(tokens=tokens(6), gate=gate)
    spare = ScriptedChatModel(tokens=["never "])
    target = calls_invoke(model) | spare

    async def scenario() -> None:
        async with case.running(target) as running:
            assert await case.consumer.take(running, 2) == tokens(2)
            running.close()
            gate.open()
            with pytest.raises(StreamClosedError):
                await case.consumer.next(running)
        await case.consumer.wait(model.record.wait_until_finalized)

    case.consumer.run(scenario)
    assert model.record.produced == 6
    assert spare.record.calls == 0


# -- the background loop dies ----------------------------------------------------------------------


def test_streams_that_are_started_while_the_loop_dies() -> None:
    """Hazard: a stream is handed to a loop that has just stopped, and is forgotten there."""
    from queuestream import _background  # noqa: PLC0415 - hooked below

    for _ in range(10):
        assert list(stream(ScriptedChatModel(tokens=tokens(2)), "?", run_in="background"))
        current = _background._current
        assert current is not None
        current.loop.call_soon_threadsafe(current.loop.stop)
        endings = []
        for _ in range(5):
            answer = stream(ScriptedChatModel(tokens=tokens(2)), "?", run_in="background")
            try:
                endings.append(list(answer) == tokens(2))
            except Exception as error:
                endings.append(type(error).__name__ == "RunCancelledError")
        assert all(endings)


def test_a_waiting_consumer_is_seen_by_the_probe() -> None:
    """The canary of these tests: their probes see what they are about."""
    model = ScriptedChatModel(tokens=tokens(9), gate=Gate(2))
    with stream(model, "?", maxsize=1) as answer:
        eventually(lambda: is_blocked(answer))
        assert getters_of(answer) == 0
