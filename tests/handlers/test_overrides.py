"""Users' classes: what they override is called on both kinds of runs, and may call ``super()``."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock
from uuid import uuid4

import pytest
from langchain_core.callbacks import BaseCallbackHandler, manager
from langchain_core.runnables import RunnableConfig, RunnableLambda

from queuestream import QueueStreamHandler, StreamHandler
from queuestream.handlers import BatchStreamHandler
from queuestream.handlers._dual import _override
from tests.support.backends import ASYNCIO_BACKENDS
from tests.support.gates import Gate, eventually_async
from tests.support.homes import Heard, loop_thread
from tests.support.models import ScriptedChatModel, ScriptedLLM, WholeAnswerChatModel, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS)

STEPS = ["start", "t0 ", "t1 ", "", "end"]
"""What a run of `model` calls, with the empty last chunk."""


def with_handler(handler: Any) -> RunnableConfig:
    """Return a config with one callback."""
    return {"callbacks": [handler]}


def model() -> ScriptedChatModel:
    return ScriptedChatModel(tokens=tokens(2))


# -- each way to override, on each kind of run -----------------------------------------------------


class Plain(StreamHandler):
    """All with ``def``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[str] = []

    def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append("start")
        super().on_llm_start(*args, **kwargs)

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.steps.append(token)
        super().on_llm_new_token(token, **kwargs)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.steps.append("end")
        super().on_llm_end(response, **kwargs)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.steps.append(repr(error))
        super().on_llm_error(error, **kwargs)


class Async(StreamHandler):
    """All with ``async def``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[str] = []

    async def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append("start")
        await super().on_llm_start(*args, **kwargs)

    async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0)
        self.steps.append(token)
        await super().on_llm_new_token(token, **kwargs)

    async def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.steps.append("end")
        await super().on_llm_end(response, **kwargs)

    async def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.steps.append(repr(error))
        await super().on_llm_error(error, **kwargs)


plain: Any = Plain
coroutine: Any = Async


class AsyncOverPlain(plain):  # type: ignore[misc]
    """Two levels."""

    async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        await asyncio.sleep(0)
        await super().on_llm_new_token(token, **kwargs)


class PlainOverAsync(coroutine):  # type: ignore[misc]
    """Two levels."""

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        super().on_llm_new_token(token, **kwargs)


class OldStyle(Plain):
    """Names its base."""

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        Plain.on_llm_new_token(self, token, **kwargs)


class PlainMixin(BaseCallbackHandler):
    """Knows nothing of us."""

    steps: list[str]

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.steps.append(token)
        super().on_llm_new_token(token, **kwargs)


class AsyncMixin(BaseCallbackHandler):
    """Knows nothing of us."""

    steps: list[str]

    async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.steps.append(token)
        await super().on_llm_new_token(token, **kwargs)


class Steps(StreamHandler):
    """Overrides all but the token."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[str] = []

    def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append("start")
        super().on_llm_start(*args, **kwargs)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.steps.append("end")
        super().on_llm_end(response, **kwargs)


class WithPlainMixin(PlainMixin, Steps):
    """Mixed."""


class WithAsyncMixin(AsyncMixin, Steps):
    """Mixed."""


CLASSES: list[Any] = [
    Plain,
    Async,
    AsyncOverPlain,
    PlainOverAsync,
    OldStyle,
    WithPlainMixin,
    WithAsyncMixin,
]
WAYS: list[Any] = [
    pytest.param(lambda model, config: model.invoke("?", config), id="invoke"),
    pytest.param(lambda model, config: list(model.stream("?", config)), id="stream"),
    pytest.param(lambda model, config: asyncio.run(model.ainvoke("?", config)), id="ainvoke"),
    pytest.param(lambda model, config: asyncio.run(_drain(model, config)), id="astream"),
    pytest.param(lambda model, config: asyncio.run(_in_thread(model, config)), id="to_thread"),
    pytest.param(lambda model, config: asyncio.run(_hold_up(model, config)), id="held up"),
]


async def _drain(model: Any, config: Any) -> None:
    async for _ in model.astream("?", config):
        pass


async def _in_thread(model: Any, config: Any) -> None:
    await asyncio.to_thread(model.invoke, "?", config)


async def _hold_up(model: Any, config: Any) -> None:
    model.invoke("?", config)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_async", [False, True], ids=["plain", "coroutine"])
@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_overridden_is_called_once_and_so_is_on_token(
    kind: Any, is_async: bool, way: Callable[..., Any]
) -> None:
    """Hazard: it is not called, not awaited, or its base's method is not; or both are twice."""
    heard = Heard()
    handler = kind(heard.on_token_async if is_async else heard.on_token)
    way(model(), with_handler(handler))
    assert handler.steps == STEPS
    assert heard.tokens == tokens(2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [Plain, Async])
def test_a_failure_is_reported_once(kind: Any, way: Callable[..., Any]) -> None:
    """Hazard: the error is that of the callback."""
    heard = Heard()
    handler = kind(heard.on_token)
    failing = ScriptedChatModel(tokens=tokens(2), failure=ValueError("no"), fail_at=1)
    with pytest.raises(ValueError, match="no"):
        way(failing, with_handler(handler))
    assert handler.steps == ["start", "t0 ", "ValueError('no')"]
    assert heard.tokens == tokens(1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_queue_of_ones_own(kind: str, way: Callable[..., Any]) -> None:
    """Promise 3.  Hazard: the end of the call counts as that of the task that runs the model."""

    class PlainQueue(QueueStreamHandler[str]):
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            super().on_chat_model_start(*args, **kwargs)

        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            super().on_llm_new_token(token, **kwargs)

        def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
            super().on_llm_end(*args, **kwargs)

    class AsyncQueue(QueueStreamHandler[str]):
        async def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            await super().on_chat_model_start(*args, **kwargs)

        async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            await super().on_llm_new_token(token, **kwargs)

        async def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
            await super().on_llm_end(*args, **kwargs)

    handler = (PlainQueue if kind == "def" else AsyncQueue)()
    way(model(), with_handler(handler))
    assert list(handler) == tokens(2)
    assert not handler.is_running


def test_a_queue_of_ones_own_waits_for_its_consumer() -> None:
    """Promise 2.  Hazard: what a coroutine awaits of its base goes past ``maxsize``."""

    class Queue(QueueStreamHandler[str]):
        async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            await super().on_llm_new_token(token, **kwargs)

    handler = Queue(1)
    ours = ScriptedChatModel(tokens=tokens(9))
    run = threading.Thread(target=ours.invoke, args=("?", with_handler(handler)), daemon=True)
    run.start()
    received: list[str] = []
    for token in handler:
        received.append(token)
        assert ours.record.produced <= len(received) + 2
    assert received == tokens(9)
    run.join(10)


# -- chat models, and the start that is for the other ones -----------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ours", [ScriptedChatModel, ScriptedLLM])
def test_on_llm_start_is_for_chat_models_too(way: Callable[..., Any], ours: Any) -> None:
    """As documents show it.  Hazard: ours is called instead."""
    started: list[Any] = []

    class Handler(StreamHandler):
        def on_llm_start(self, serialized: Any, prompts: list[str], **kwargs: Any) -> None:
            started.extend(prompts)

    way(ours(tokens=tokens(1)), with_handler(Handler(lambda _: None)))
    assert [prompt.removeprefix("Human: ") for prompt in started] == ["?"]


def test_on_chat_model_start_of_a_base_stays() -> None:
    """Hazard: a class that overrides ``on_llm_start`` hides what its base has written."""
    calls: list[str] = []

    class Base(StreamHandler):
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            calls.append("chat")
            super().on_chat_model_start(*args, **kwargs)

    class Handler(Base):
        def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
            calls.append("llm")

    model().invoke("?", with_handler(Handler(lambda _: None)))
    assert calls == ["chat"]


@pytest.mark.parametrize("way", WAYS)
def test_a_chat_form_above_one_that_has_none(
    way: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    """LangChain calls the other form, as it does where the base is its own."""
    if "held up" in request.node.name and not hasattr(manager, "_achat_model_start_fallback"):
        pytest.skip("this langchain-core has no other form for coroutines on synchronous runs yet")
    calls: list[str] = []

    class Base(StreamHandler):
        def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
            calls.append("llm")
            super().on_llm_start(*args, **kwargs)

    class Handler(Base):
        def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            calls.append("chat")
            super().on_chat_model_start(*args, **kwargs)

    heard = Heard()
    way(model(), with_handler(Handler(heard.on_token_async)))
    assert calls == ["chat", "llm"]
    assert heard.tokens == tokens(2)


# -- without super() -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [StreamHandler, QueueStreamHandler])
def test_a_token_that_is_kept_back(kind: Any, way: Callable[..., Any]) -> None:
    """Promise 1.  Hazard: as no token has come to the base, it delivers the whole answer."""
    heard = Heard()

    class Handler(kind):  # type: ignore[misc]
        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            heard.on_token(token)

    handler = Handler() if kind is QueueStreamHandler else Handler(heard.on_token)
    way(model(), with_handler(handler))
    assert heard.tokens == [*tokens(2), ""]
    if kind is QueueStreamHandler:
        assert list(handler) == []


@pytest.mark.parametrize("way", WAYS)
def test_the_whole_answer_still_comes(way: Callable[..., Any]) -> None:
    """Of a model that does not stream, nothing has come."""
    handler = Plain((heard := Heard()).on_token)
    way(WholeAnswerChatModel(tokens=["all"]), with_handler(handler))
    assert heard.tokens == ["all"]


# -- what super() is given -------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_token_that_is_changed(kind: str, way: Callable[..., Any]) -> None:
    """Hazard: the text is taken from the chunk, which is not changed: nothing is redacted."""

    class PlainHandler(StreamHandler):
        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            super().on_llm_new_token(token.upper(), **kwargs)

    class AsyncHandler(StreamHandler):
        async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            await super().on_llm_new_token(token=token.upper(), **kwargs)

    heard = Heard()
    way(model(), with_handler((PlainHandler if kind == "def" else AsyncHandler)(heard.on_token)))
    assert heard.tokens == ["T0 ", "T1 "]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_without_the_details(kind: str, way: Callable[..., Any]) -> None:
    """Promises 1 and 3.  Hazard: a call without a run's id is no run's: its end is missed."""

    class PlainHandler(BatchStreamHandler):
        def on_llm_new_token(self, token: Any, **_: Any) -> None:
            super().on_llm_new_token(token)

        def on_llm_end(self, response: Any, **_: Any) -> None:
            super().on_llm_end(response)

    class AsyncHandler(BatchStreamHandler):
        async def on_llm_new_token(self, token: Any, **_: Any) -> None:
            await super().on_llm_new_token(token)

        async def on_llm_end(self, response: Any, **_: Any) -> None:
            await super().on_llm_end(response)

    heard = Heard()
    handler = (PlainHandler if kind == "def" else AsyncHandler)(heard.on_token)
    way(model(), with_handler(handler))
    assert heard.tokens == ["t0 t1 "]


# -- overrides that raise, or swallow --------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_override_that_raises_after_super(
    kind: str, way: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 3.  Hazard: what it had called of its base is dropped, and the end never comes."""

    class PlainQueue(QueueStreamHandler[str]):
        def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
            super().on_llm_end(*args, **kwargs)
            raise ValueError("an override")

    class AsyncQueue(QueueStreamHandler[str]):
        async def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
            await super().on_llm_end(*args, **kwargs)
            raise ValueError("an override")

    handler = (PlainQueue if kind == "def" else AsyncQueue)()
    with pytest.raises(ValueError, match="an override"):
        way(model(), with_handler(handler))
    handler.end()  # so that it does not wait where nothing came
    assert list(handler) == tokens(2)
    assert not handler.is_running


@pytest.mark.parametrize("way", WAYS)
def test_an_override_that_raises_is_logged(
    way: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Handler(StreamHandler):
        async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            await super().on_llm_new_token(token, **kwargs)
            raise ValueError(token)

    heard = Heard()
    way(model(), with_handler(Handler(heard.on_token)))
    assert heard.tokens == tokens(2)
    assert caplog.text.count("ValueError('t0 ')") == 1


@pytest.mark.parametrize("way", WAYS)
def test_an_override_that_swallows(way: Callable[..., Any]) -> None:
    """An ``async def`` catches what it awaits of its base, wherever that is done."""
    caught: list[str] = []

    def on_token(token: str) -> None:
        raise ValueError(token)

    class Handler(StreamHandler):
        async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            try:
                await super().on_llm_new_token(token, **kwargs)
            except ValueError as error:
                caught.append(str(error))

    way(model(), with_handler(Handler(on_token, raise_error=True)))
    assert caught == tokens(2)


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
@pytest.mark.parametrize("way", WAYS)
def test_an_exhausted_iterator_in_on_token(
    way: Callable[..., Any], error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: no future takes a StopIteration, and whoever waits for it waits for ever."""

    def on_token(token: str) -> None:
        raise error(token)

    way(model(), with_handler(Async(on_token)))
    assert caplog.text.count("Error in ") == 2


# -- where an override is, and where it is not any more --------------------------------------------


@on_asyncio
@pytest.mark.anyio
async def test_a_task_that_an_override_begins() -> None:
    """Hazard: its context says that the override goes on, and what it awaits is never done."""
    heard = Heard()
    begun: list[asyncio.Task[Any]] = []

    class Handler(StreamHandler):
        def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
            super().on_llm_end(*args, **kwargs)
            begun.append(asyncio.get_running_loop().create_task(self.say()))

        async def say(self) -> None:
            await self("late")

    handler = Handler(heard.on_token_async)
    await model().ainvoke("?", with_handler(handler))
    await asyncio.gather(*begun)
    assert heard.tokens == [*tokens(2), "late"]
    assert _override.get() is None


@on_asyncio
@pytest.mark.anyio
async def test_two_runs_in_an_override_at_once() -> None:
    """Hazard: one run's token is delivered as the other's, or by its means."""
    gate = Gate()
    sent: list[str] = []

    class Handler(BatchStreamHandler):
        async def on_llm_new_token(self, token: Any, **_: Any) -> None:
            if token:
                await gate.wait_async()
            await super().on_llm_new_token(token)

    handler = Handler(sent.append)
    runs = [
        asyncio.ensure_future(ScriptedChatModel(tokens=[each]).ainvoke("?", with_handler(handler)))
        for each in ("a", "b")
    ]
    await eventually_async(lambda: gate.waiting == 2)
    gate.open()
    await asyncio.gather(*runs)
    assert sorted(sent) == ["a", "b"]


def test_an_async_override_is_at_home_where_the_handler_was_made() -> None:
    """Hazard: LangChain's own loop, new for each call; in a pool it would wait for ever."""
    loops: set[asyncio.AbstractEventLoop] = set()

    class Handler(StreamHandler):
        async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            loops.add(asyncio.get_running_loop())
            await super().on_llm_new_token(token, **kwargs)

    heard = Heard()
    with loop_thread() as home:
        handler = home.call(lambda: Handler(heard.on_token_async, raise_error=True))
        model().invoke("?", with_handler(handler))
        assert loops == heard.loops == {home.loop}

        def batch(question: str, config: RunnableConfig) -> None:
            model().batch([question] * 2, config)

        async def hold_up() -> None:
            RunnableLambda(batch).invoke("?", with_handler(handler))

        with pytest.raises(RuntimeError, match="call the model with ainvoke there"):
            home.run(hold_up())
    assert heard.tokens == tokens(2)


# -- other methods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_starts_and_ends_of_what_is_no_model(kind: str, way: Callable[..., Any]) -> None:
    """Promise 3.  Hazard: the base's coroutine is not awaited, or its plain function is."""

    class PlainQueue(QueueStreamHandler[str]):
        def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
            super().on_chain_start(*args, **kwargs)

        def on_chain_end(self, *args: Any, **kwargs: Any) -> None:
            super().on_chain_end(*args, **kwargs)

    class AsyncQueue(QueueStreamHandler[str]):
        async def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
            await super().on_chain_start(*args, **kwargs)

        async def on_chain_end(self, *args: Any, **kwargs: Any) -> None:
            await super().on_chain_end(*args, **kwargs)

    handler = (PlainQueue if kind == "def" else AsyncQueue)()
    way(RunnableLambda(lambda question: question) | model(), with_handler(handler))
    assert list(handler) == tokens(2)
    assert not handler.is_running


def test_what_is_no_function_is_left_alone() -> None:
    calls: list[str] = []

    class Handler(StreamHandler):
        @staticmethod
        def on_llm_start(*args: Any, **kwargs: Any) -> None:
            calls.append("static")

        @classmethod
        def on_llm_end(cls, *args: Any, **kwargs: Any) -> None:
            calls.append(cls.__name__)

        @property
        def on_llm_error(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return lambda *_, **__: calls.append("property")

    handler = Handler(lambda _: None)
    handler.on_llm_new_token = token = Mock(return_value=None)
    model().invoke("?", with_handler(handler))
    asyncio.run(model().ainvoke("?", with_handler(handler)))
    failing = ScriptedChatModel(tokens=["a"], failure=ValueError("no"), fail_at=0)
    with pytest.raises(ValueError, match="no"):
        failing.invoke("?", with_handler(handler))
    assert calls == ["static", "Handler"] * 2 + ["static", "property"]
    assert token.call_count == 6


@pytest.mark.parametrize("kind", [Plain, Async])
def test_direct_calls(kind: Any) -> None:
    """In a thread they are done when they return; on a loop they are awaited."""
    heard = Heard()
    handler = kind(heard.on_token_async)
    handler.on_llm_new_token("a")
    handler.on_llm_new_token("b", run_id=(run_id := uuid4()))

    async def main() -> None:
        await handler.on_llm_new_token("c")
        await handler.on_llm_new_token("d", run_id=run_id)
        await handler("e")

    asyncio.run(main())
    assert heard.tokens == ["a", "b", "c", "d", "e"]
    assert handler.steps == ["a", "b", "c", "d"]


def test_with_a_mock_as_on_token() -> None:
    """Hazard: what a mock returns counts as something to wait for."""
    on_token = Mock()
    handler = Plain(on_token)
    model().invoke("?", with_handler(handler))
    asyncio.run(model().ainvoke("?", with_handler(handler)))
    assert [call.args[0] for call in on_token.call_args_list] == tokens(2) * 2


@on_asyncio
@pytest.mark.anyio
async def test_a_context_that_an_override_copies() -> None:
    """Hazard: in it the override goes on for ever, and what is called in it is never done."""
    heard = Heard()
    copies: list[contextvars.Context] = []

    class Handler(StreamHandler):
        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            copies.append(contextvars.copy_context())

    handler: Any = Handler(heard.on_token_async)
    await handler.on_llm_new_token("a")
    await copies[0].run(handler, "late")
    await copies[0].run(lambda: handler("later"))
    assert heard.tokens == ["late", "later"]


@on_asyncio
@pytest.mark.anyio
async def test_a_base_that_is_named() -> None:
    """Hazard: of the class one gets the function for threads, which is refused on a loop."""
    heard = Heard()

    class Handler(StreamHandler):
        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            StreamHandler.on_llm_new_token(self, token, **kwargs)

    handler = Handler(heard.on_token_async, raise_error=True)
    await model().ainvoke("?", with_handler(handler))
    assert heard.tokens == tokens(2)
    assert heard.loops == {asyncio.get_running_loop()}


def test_an_override_that_its_loop_leaves_behind() -> None:
    """Hazard: it is closed in another context, and complains to whoever is there."""

    class Handler(StreamHandler):
        async def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            await asyncio.sleep(0)  # where it is left

    handler: Any = Handler(lambda _: None)

    async def begin() -> Any:
        return handler.on_llm_new_token("a")

    coroutine = asyncio.run(begin())
    contextvars.copy_context().run(coroutine.send, None)
    coroutine.close()
    assert _override.get() is None
