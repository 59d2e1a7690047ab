"""`StreamHandler`: each token to a function, under ``invoke`` and all its relatives."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableConfig, RunnableLambda

from queuestream import StreamHandler
from tests.support.backends import ASYNCIO_BACKENDS
from tests.support.callbacks import RunLog
from tests.support.models import (
    ScriptedChatModel,
    ScriptedLLM,
    SyncOnlyChatModel,
    WholeAnswerChatModel,
    tokens,
)

if TYPE_CHECKING:
    from collections.abc import Callable

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS)


class Heard:
    """What a handler heard, and where."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.threads: set[int] = set()
        self.loops: set[asyncio.AbstractEventLoop] = set()

    def on_token(self, token: str) -> None:
        self.tokens.append(token)
        self.threads.add(threading.get_ident())

    async def on_token_async(self, token: str) -> None:
        await asyncio.sleep(0)
        self.on_token(token)
        self.loops.add(asyncio.get_running_loop())


def with_handler(handler: Any) -> RunnableConfig:
    """Return a config with one callback."""
    return {"callbacks": [handler]}


WAYS: list[Any] = [
    pytest.param(lambda model, config: model.invoke("?", config), id="invoke"),
    pytest.param(lambda model, config: list(model.stream("?", config)), id="stream"),
    pytest.param(lambda model, config: model.batch(["?"], config), id="batch"),
    pytest.param(lambda model, config: model.generate(["?"], **config), id="generate"),
    pytest.param(lambda model, config: (model | StrOutputParser()).invoke("?", config), id="chain"),
]
ASYNC_WAYS: list[Any] = [
    pytest.param(lambda model, config: model.ainvoke("?", config), id="ainvoke"),
    pytest.param(lambda model, config: _drain(model.astream("?", config)), id="astream"),
    pytest.param(lambda model, config: model.abatch(["?"], config), id="abatch"),
    pytest.param(
        lambda model, config: (model | StrOutputParser()).ainvoke("?", config), id="chain"
    ),
]


async def _drain(iterator: Any) -> None:
    async for _ in iterator:
        pass


@pytest.mark.parametrize("way", [way for way in WAYS if way.id != "generate"])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "coroutine"])
def test_each_token_on_synchronous_runs(way: Callable[..., Any], *, is_async: bool) -> None:
    """No ``streaming=True`` is needed.  Hazard: a coroutine function is never awaited there."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async if is_async else heard.on_token)
    way(ScriptedChatModel(tokens=tokens(20)), with_handler(handler))
    assert heard.tokens == tokens(20)


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("way", ASYNC_WAYS)
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "coroutine"])
async def test_each_token_on_asynchronous_runs(way: Callable[..., Any], *, is_async: bool) -> None:
    """Hazard: plain functions are moved to the default executor, one thread each token."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async if is_async else heard.on_token)
    await way(ScriptedChatModel(tokens=tokens(20)), with_handler(handler))
    assert heard.tokens == tokens(20)
    assert heard.threads == {threading.get_ident()}
    assert heard.loops <= {asyncio.get_running_loop()}


def test_in_a_models_constructor() -> None:
    heard = Heard()
    model = ScriptedChatModel(tokens=tokens(3), callbacks=[StreamHandler(heard.on_token)])
    for _ in range(2):
        model.invoke("?")
    assert heard.tokens == tokens(3) * 2


def test_on_token_is_kept() -> None:
    heard = Heard()
    on_token = heard.on_token
    assert StreamHandler(on_token).on_token is on_token


@pytest.mark.parametrize("on_token", [None, "print", 1])
def test_on_token_must_be_callable(on_token: Any) -> None:
    with pytest.raises(TypeError, match="on_token must be a function"):
        StreamHandler(on_token)


def test_called_directly() -> None:
    heard = Heard()
    handler = StreamHandler(heard.on_token)
    handler.on_llm_new_token("Hel")
    handler.on_llm_new_token("")
    handler("lo")
    assert heard.tokens == ["Hel", "lo"]


@on_asyncio
@pytest.mark.anyio
async def test_called_directly_and_awaited() -> None:
    heard = Heard()
    handler = StreamHandler(heard.on_token_async)
    await handler.on_llm_new_token("Hel")
    await handler("lo")
    assert heard.tokens == ["Hel", "lo"]


# -- nesting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "coroutine"])
def test_handlers_nest_on_synchronous_runs(*, is_async: bool) -> None:
    """A handler is a valid ``on_token``."""
    heard = Heard()
    inner = StreamHandler(heard.on_token_async if is_async else heard.on_token)
    handler = StreamHandler(StreamHandler(inner))
    ScriptedChatModel(tokens=tokens(5)).invoke("?", with_handler(handler))
    assert heard.tokens == tokens(5)


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "coroutine"])
async def test_handlers_nest_on_asynchronous_runs(*, is_async: bool) -> None:
    heard = Heard()
    inner = StreamHandler(heard.on_token_async if is_async else heard.on_token)
    handler = StreamHandler(StreamHandler(inner))
    await ScriptedChatModel(tokens=tokens(5)).ainvoke("?", with_handler(handler))
    assert heard.tokens == tokens(5)


# -- which loop a coroutine runs on ----------------------------------------------------------------


@on_asyncio
@pytest.mark.anyio
async def test_a_coroutine_goes_home_from_a_thread() -> None:
    """Hazard: it uses things of the loop where the handler was made, from another loop."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async)
    model = ScriptedChatModel(tokens=tokens(5))
    await asyncio.to_thread(model.invoke, "?", with_handler(handler))
    assert heard.tokens == tokens(5)
    assert heard.loops == {asyncio.get_running_loop()}


def test_a_coroutine_without_a_home_goes_to_the_background() -> None:
    heard = Heard()
    model = ScriptedChatModel(tokens=tokens(5))
    model.invoke("?", with_handler(StreamHandler(heard.on_token_async)))
    assert heard.tokens == tokens(5)
    assert threading.get_ident() not in heard.threads


@on_asyncio
@pytest.mark.anyio
async def test_sync_code_that_holds_up_the_coroutines_home(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Hazard: a deadlock.

    LangChain swallows the errors of coroutine functions there (fact 2); it logs this one.
    """
    heard = Heard()
    handler = StreamHandler(heard.on_token_async)
    model = ScriptedChatModel(tokens=tokens(5))
    model.invoke("?", with_handler(handler))
    assert heard.tokens == []
    assert "call the model with ainvoke there" in caplog.text


# -- errors ----------------------------------------------------------------------------------------


def fails(token: str) -> None:
    raise ValueError(token)


async def fails_async(token: str) -> None:
    raise ValueError(token)


@pytest.mark.parametrize("on_token", [fails, fails_async])
def test_an_error_is_logged_and_the_run_goes_on(
    on_token: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = ScriptedChatModel(tokens=tokens(3))
    assert model.invoke("?", with_handler(StreamHandler(on_token))).content == "".join(tokens(3))
    assert sum("ValueError" in record.getMessage() for record in caplog.records) == 3


@pytest.mark.parametrize("on_token", [fails, fails_async])
def test_an_error_ends_the_run_if_it_is_to(on_token: Any) -> None:
    model = ScriptedChatModel(tokens=tokens(3))
    with pytest.raises(ValueError, match="t0"):
        model.invoke("?", with_handler(StreamHandler(on_token, raise_error=True)))
    assert model.record.produced == 1
    assert model.record.open == 0


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("on_token", [fails, fails_async])
@pytest.mark.parametrize("raise_error", [False, True])
async def test_errors_on_asynchronous_runs(on_token: Any, *, raise_error: bool) -> None:
    model = ScriptedChatModel(tokens=tokens(3))
    config = with_handler(StreamHandler(on_token, raise_error=raise_error))
    if raise_error:
        with pytest.raises(ValueError, match="t0"):
            await model.ainvoke("?", config)
    else:
        assert (await model.ainvoke("?", config)).content == "".join(tokens(3))


@on_asyncio
@pytest.mark.anyio
async def test_an_awaitable_that_nothing_can_await() -> None:
    """Hazard: a lambda around a coroutine function is no coroutine function; it is lost."""
    heard = Heard()
    handler = StreamHandler(lambda token: heard.on_token_async(token), raise_error=True)  # noqa: PLW0108
    model = ScriptedChatModel(tokens=tokens(3))
    with pytest.raises(TypeError, match="async def"):
        await model.ainvoke("?", with_handler(handler))


# -- what tokens are -------------------------------------------------------------------------------


def test_only_text_and_never_empty() -> None:
    """Hazard: list content, reasoning, tool calls and the empty last chunk (fact 6)."""
    heard = Heard()
    chunks: list[str | AIMessageChunk] = [
        "a",
        "",
        AIMessageChunk(content=[{"type": "text", "text": "b", "index": 0}]),
        AIMessageChunk(content=[{"type": "reasoning", "reasoning": "hm", "index": 0}]),
        AIMessageChunk(
            content="",
            tool_call_chunks=[
                {"name": "f", "args": "{}", "id": "1", "index": 0, "type": "tool_call_chunk"}
            ],
        ),
        AIMessageChunk(content=["c", {"type": "text", "text": "d"}]),
    ]
    model = ScriptedChatModel(tokens=chunks)
    model.invoke("?", with_handler(StreamHandler(heard.on_token)))
    assert heard.tokens == ["a", "b", "cd"]


@pytest.mark.parametrize(
    "model",
    [
        WholeAnswerChatModel(tokens=["all ", "at once"]),
        ScriptedLLM(tokens=["all ", "at once"]),
        ScriptedChatModel(tokens=["all ", "at once"], disable_streaming=True),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_model_that_does_not_stream_gives_one_token(model: Any) -> None:
    heard = Heard()
    model.invoke("?", with_handler(StreamHandler(heard.on_token)))
    assert heard.tokens == ["all at once"]


def test_a_cache_hit_gives_one_token() -> None:
    heard = Heard()
    model = ScriptedChatModel(tokens=tokens(3), cache=InMemoryCache())
    for _ in range(2):
        model.invoke("?", with_handler(StreamHandler(heard.on_token)))
    assert heard.tokens == [*tokens(3), "".join(tokens(3))]


@on_asyncio
@pytest.mark.anyio
async def test_whole_answers_on_asynchronous_runs() -> None:
    heard = Heard()
    model = WholeAnswerChatModel(tokens=["all ", "at once"])
    await model.ainvoke("?", with_handler(StreamHandler(heard.on_token_async)))
    sync_only = SyncOnlyChatModel(tokens=tokens(3))
    await sync_only.ainvoke("?", with_handler(StreamHandler(heard.on_token_async)))
    assert heard.tokens == ["all at once", *tokens(3)]


def test_beside_other_handlers() -> None:
    """Hazard: ours takes the place of somebody else's (fact 1)."""
    heard, log = Heard(), RunLog()
    config: RunnableConfig = {"callbacks": [log, StreamHandler(heard.on_token)]}
    (RunnableLambda(str) | ScriptedChatModel(tokens=tokens(3))).invoke("?", config)
    assert heard.tokens == tokens(3)
    assert log.tokens == 4  # with the empty last one
    assert set(log.ended) == set(log.started)


def test_nothing_is_kept_of_runs_that_have_ended() -> None:
    """Promise 9.  Hazard: a handler in a model's constructor grows with each call."""
    handler = StreamHandler(lambda _: None)
    model = ScriptedChatModel(tokens=tokens(2), callbacks=[handler])
    failing = ScriptedChatModel(
        tokens=tokens(2), failure=ValueError("no"), fail_at=1, callbacks=[handler]
    )
    for _ in range(5):
        model.invoke("?")
        with pytest.raises(ValueError, match="no"):
            failing.invoke("?")
    assert not list(handler._streamed)
