"""Handlers as ``on_token`` of handlers: told of starts, tokens and ends, by whatever way."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest

from queuestream import QueueStreamHandler, StreamHandler
from queuestream.errors import RunStopped
from queuestream.handlers import BatchStreamHandler
from tests.support.gates import Gate, eventually
from tests.support.homes import Heard
from tests.support.models import ScriptedChatModel, WholeAnswerChatModel, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.runnables import RunnableConfig


def with_handlers(*handlers: Any) -> RunnableConfig:
    """Return a config with these callbacks."""
    return {"callbacks": list(handlers)}


WAYS: list[Any] = [
    pytest.param(lambda model, config: model.invoke("?", config), id="invoke"),
    pytest.param(lambda model, config: asyncio.run(model.ainvoke("?", config)), id="ainvoke"),
    pytest.param(lambda model, config: asyncio.run(_hold_up(model, config)), id="held up"),
]
IS_ASYNC = pytest.mark.parametrize("is_async", [False, True], ids=["plain", "coroutine"])


async def _hold_up(model: Any, config: Any) -> None:
    model.invoke("?", config)


def nothing_is_kept(*handlers: StreamHandler) -> bool:
    gc.collect()
    return not any(
        handler._open_states() or handler._goes_on_in or list(handler._streamed)
        for handler in handlers
    )


# -- one handler, several ways to it ------------------------------------------------------------


@IS_ASYNC
@pytest.mark.parametrize("way", WAYS)
def test_shared_by_two(way: Callable[..., Any], is_async: bool) -> None:
    """Promise 1.  Hazard: the end of the one takes what the other has still to deliver."""
    heard = Heard()
    inner = BatchStreamHandler(heard.on_token_async if is_async else heard.on_token, 100)
    outer = BatchStreamHandler(inner, 2), BatchStreamHandler(inner, 3)
    way(ScriptedChatModel(tokens=tokens(7)), with_handlers(*outer))
    text = "".join(heard.tokens)
    assert [text.count(token) for token in tokens(7)] == [2] * 7
    assert nothing_is_kept(inner, *outer)


@IS_ASYNC
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_first", [False, True])
def test_nested_and_in_the_list(way: Callable[..., Any], is_async: bool, is_first: bool) -> None:
    """Promise 1.  Hazard: a run that it knows from above counts as one without a token.

    Then its whole text comes once more at the end.
    """
    heard = Heard()
    inner = StreamHandler(heard.on_token_async if is_async else heard.on_token)
    outer = StreamHandler(inner)
    handlers = (inner, outer) if is_first else (outer, inner)
    way(ScriptedChatModel(tokens=tokens(3)), with_handlers(*handlers))
    assert heard.tokens == [token for token in tokens(3) for _ in range(2)]
    assert nothing_is_kept(inner, outer)


@IS_ASYNC
@pytest.mark.parametrize("way", WAYS)
def test_a_whole_answer_comes_once(way: Callable[..., Any], is_async: bool) -> None:
    heard = Heard()
    inner = BatchStreamHandler(heard.on_token_async if is_async else heard.on_token, 100)
    outer = StreamHandler(inner)
    way(WholeAnswerChatModel(tokens=["all"]), with_handlers(outer))
    assert heard.tokens == ["all"]
    assert nothing_is_kept(inner, outer)


# -- several runs -------------------------------------------------------------------------------


def test_runs_at_once_are_kept_apart_below() -> None:
    """Hazard: what the inner one holds back of two runs is joined."""
    heard = Heard()
    handler = StreamHandler(BatchStreamHandler(heard.on_token_async, 2))
    gates = Gate(), Gate()
    models = [
        ScriptedChatModel(tokens=[f"{name}{index}" for index in range(3)], gate=gate)
        for name, gate in zip("ab", gates, strict=True)
    ]

    async def main() -> None:
        runs = [
            asyncio.ensure_future(model.ainvoke("?", with_handlers(handler))) for model in models
        ]
        for step in range(1, 4):
            for model, gate in zip(models, gates, strict=True):
                gate.release()
                await asyncio.to_thread(model.record.wait_until_produced, step)
        for gate in gates:
            gate.open()
        await asyncio.gather(*runs)

    asyncio.run(main())
    assert heard.tokens == ["a0a1", "b0b1", "a2", "b2"]


def test_direct_calls_beside_a_run() -> None:
    """Hazard: the end of the one flushes, or forgets, the other."""
    heard = Heard()
    handler = BatchStreamHandler(heard.on_token, 3)
    handler("d0 ")
    ScriptedChatModel(tokens=tokens(4)).invoke("?", with_handlers(handler))
    assert heard.tokens == ["t0 t1 t2 ", "t3 "]
    handler("d1 ")
    handler("d2 ")
    assert heard.tokens[2:] == ["d0 d1 d2 "]
    handler.on_llm_new_token("d3 ")
    handler.on_llm_end(None)
    assert heard.tokens[3:] == ["d3 "]
    assert nothing_is_kept(handler)


def test_threads_take_turns() -> None:
    """Hazard: the state that was used last is taken for another run's."""
    heard = Heard()
    handler = BatchStreamHandler(heard.on_token, 1000)
    gates = Gate(), Gate()
    models = [
        ScriptedChatModel(tokens=[name] * 50, gate=gate)
        for name, gate in zip("ab", gates, strict=True)
    ]

    async def main() -> None:
        runs = [
            asyncio.ensure_future(asyncio.to_thread(model.invoke, "?", with_handlers(handler)))
            for model in models
        ]
        for step in range(1, 51):
            for model, gate in zip(models, gates, strict=True):
                gate.release()
                await asyncio.to_thread(model.record.wait_until_produced, step)
        for gate in gates:
            gate.open()
        await asyncio.gather(*runs)

    asyncio.run(main())
    assert sorted(heard.tokens) == ["a" * 50, "b" * 50]
    assert nothing_is_kept(handler)


# -- errors -------------------------------------------------------------------------------------


class Ends(StreamHandler):
    """Notes how its runs end."""

    def __init__(self, on_token: Callable[[str], object]) -> None:
        super().__init__(on_token, raise_error=True)
        self.ends: list[bool] = []

    def _texts_at_end(self, state: Any, response: Any) -> Any:
        self.ends.append(response is not None)
        return ()


def failing(error: BaseException, *, is_async: bool) -> Any:
    """Return an ``on_token`` that fails."""

    def on_token(token: str) -> None:
        raise error

    async def on_token_async(token: str) -> None:
        raise error

    return on_token_async if is_async else on_token


@IS_ASYNC
@pytest.mark.parametrize("way", WAYS)
def test_the_last_delivery_fails_at_the_end(way: Callable[..., Any], is_async: bool) -> None:
    """Its error ends the run.  Hazard: those below are not told of the end."""
    inner = Ends(failing(ValueError("sent"), is_async=is_async))
    outer = BatchStreamHandler(inner, 100)
    with pytest.raises(ValueError, match="sent"):
        way(ScriptedChatModel(tokens=tokens(2)), with_handlers(outer))
    assert inner.ends == [True]
    assert nothing_is_kept(inner, outer)


@IS_ASYNC
@pytest.mark.parametrize("way", WAYS)
def test_the_last_delivery_fails_after_an_error(
    way: Callable[..., Any], is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The run's own error is the one that is raised; the other is logged."""
    inner = Ends(failing(ValueError("sent"), is_async=is_async))
    outer = BatchStreamHandler(inner, 100)
    model = ScriptedChatModel(tokens=tokens(2), failure=KeyError("its own"), fail_at=1)
    with pytest.raises(KeyError, match="its own"):
        way(model, with_handlers(outer))
    assert caplog.text.count("what was left of a run that failed") == 1
    assert inner.ends == [False]
    assert nothing_is_kept(inner, outer)


def test_a_stop_goes_through() -> None:
    """Promise 4.  Hazard: a handler between takes it for an error of ``on_token``."""
    queue = QueueStreamHandler(1)
    inner = Ends(queue)
    outer = BatchStreamHandler(inner, 2)
    model = ScriptedChatModel(tokens=tokens(9), gate=(gate := Gate(4)))
    stopped: list[BaseException] = []

    async def main() -> None:
        def invoke() -> None:
            try:
                model.with_retry(wait_exponential_jitter=False).invoke("?", with_handlers(outer))
            except BaseException as error:
                stopped.append(error)

        run = asyncio.ensure_future(asyncio.to_thread(invoke))
        assert await anext(aiter(queue)) == "t0 t1 "
        queue.close()
        gate.open()
        await run

    asyncio.run(main())
    assert [type(error) for error in stopped] == [RunStopped]
    assert model.record.produced <= 4
    assert model.record.calls == 1
    assert len(inner.ends) == 1
    eventually(lambda: nothing_is_kept(inner, outer))


def test_raise_error_of_one_below_counts() -> None:
    """Hazard: a queue whose consumer has gone stops nothing."""
    assert StreamHandler(BatchStreamHandler(QueueStreamHandler())).raise_error
