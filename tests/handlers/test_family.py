"""What every ready-made handler does, whatever else it does with the tokens (issue 4)."""

from __future__ import annotations

import asyncio
import gc
import importlib
import itertools
import threading
import weakref
from functools import partial
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableLambda

from queuestream import QueueStreamHandler, StreamHandler, handlers, stream
from tests.support.backends import ASYNCIO_BACKENDS
from tests.support.callbacks import RunLog
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.handlers import (
    BY_NAME,
    INVOKE_AND_AINVOKE,
    KINDS,
    LENGTH,
    PLAIN_AND_COROUTINE,
    WAYS,
    EchoChatModel,
    Kind,
    Received,
    Way,
    answer,
    gate_of,
    step,
    step_async,
)
from tests.support.models import (
    ScriptedChatModel,
    ScriptedLLM,
    WholeAnswerChatModel,
    silent_model,
    tokens,
)

EACH_KIND = pytest.mark.parametrize("kind", KINDS)
on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS)


def with_handlers(*handlers: Any) -> Any:
    """Return a config with callbacks."""
    return {"callbacks": list(handlers)}


# -- every token -----------------------------------------------------------------------------------


@EACH_KIND
@pytest.mark.parametrize("way", WAYS)
@PLAIN_AND_COROUTINE
def test_every_token_once_in_order(kind: Kind, way: Way, *, is_async: bool) -> None:
    """Promise 1.  Hazard: a way of LangChain's in which tokens, or ends, come differently."""
    received = Received(is_async=is_async)
    way.run(EchoChatModel(), lambda: kind.make(received.on_token))
    for prompt in way.prompts:
        assert received.of(prompt) == kind.texts(answer(prompt))
    assert len(received.tokens) == len(way.prompts) * len(kind.texts(answer("a")))


@on_asyncio
@pytest.mark.anyio
@EACH_KIND
@PLAIN_AND_COROUTINE
async def test_on_each_loop(kind: Kind, *, is_async: bool) -> None:
    """Hazard: a task that is started at once, or a loop that is not asyncio's own."""
    received = Received(is_async=is_async)
    await EchoChatModel().ainvoke("a", with_handlers(kind.make(received.on_token)))
    assert received.tokens == kind.texts(answer("a"))
    assert set(received.threads) == {threading.get_ident()}


@EACH_KIND
def test_sync_code_on_a_loops_own_thread(kind: Kind) -> None:
    """Hazard: an ``async def`` node that calls ``model.invoke`` waits for its own loop."""
    received = Received()
    model = EchoChatModel()

    async def node(prompt: str, config: Any) -> str:
        return str(model.invoke(prompt, config).content)

    async def main() -> None:
        config = with_handlers(kind.make(received.on_token))
        for _ in range(2):
            await RunnableLambda(node).ainvoke("a", config)

    asyncio.run(main())
    assert received.tokens == kind.texts(answer("a")) * 2


@pytest.mark.parametrize("way", WAYS)
@PLAIN_AND_COROUTINE
def test_all_of_them_on_one_run(way: Way, *, is_async: bool) -> None:
    """Hazard: one of them keeps LangChain from calling the others."""
    received = {name: Received(is_async=is_async) for name in BY_NAME}
    way.run(
        EchoChatModel(),
        lambda: [kind.make(received[name].on_token) for name, kind in BY_NAME.items()],
    )
    for name, kind in BY_NAME.items():
        for prompt in way.prompts:
            assert received[name].of(prompt) == kind.texts(answer(prompt)), name


@EACH_KIND
def test_beside_a_stream_that_stops_the_run(kind: Kind) -> None:
    """Hazard: of a run that we stop, LangChain reports no end, and the last tokens stay."""
    received = Received()
    model = silent_model(*tokens(4))

    async def main() -> None:
        config = with_handlers(kind.make(received.on_token))
        async with stream(model, "?", config) as streamed:
            for expected in tokens(4):
                assert await anext(aiter(streamed)) == expected

    asyncio.run(main())
    assert received.tokens == kind.texts(tokens(4))
    assert received.shown == "".join(tokens(4)).rstrip()


# -- nesting ---------------------------------------------------------------------------------------


@EACH_KIND
@pytest.mark.parametrize("inner", KINDS)
@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
def test_two_deep(kind: Kind, inner: Kind, way: Way, *, is_async: bool) -> None:
    """Hazard: what the inner one holds back is nobody's business at the end."""
    received = Received(is_async=is_async)
    way.run(EchoChatModel(), lambda: kind.make(inner.make(received.on_token)))
    assert received.shown == "".join(answer("a")).rstrip()
    assert set(received.texts) & {"", " "} == set()


@pytest.mark.parametrize(
    "names",
    list(itertools.permutations(["batch", "resilient", "typing", "statistics"], 3)),
    ids="-".join,
)
@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
def test_three_deep(names: tuple[str, ...], way: Way, *, is_async: bool) -> None:
    """Hazard: only the next one is told of the run's end."""
    received = Received(is_async=is_async)
    outer, middle, inner = (BY_NAME[name] for name in names)
    way.run(EchoChatModel(), lambda: outer.make(middle.make(inner.make(received.on_token))))
    assert received.shown == "".join(answer("a")).rstrip()


@EACH_KIND
@INVOKE_AND_AINVOKE
@pytest.mark.parametrize("fail_at", [0, 5])
def test_nested_under_a_run_that_fails(kind: Kind, way: Way, fail_at: int) -> None:
    """Hazard: the inner one hears of ends only, not of failures."""
    received = Received()
    model = EchoChatModel(failure=ValueError("no"), fail_at=fail_at)
    for inner in BY_NAME.values():
        received.texts.clear()
        with pytest.raises(ValueError, match="no"):
            way.run(model, partial(kind.make, inner.make(received.on_token)))
        assert received.shown == "".join(answer("a", fail_at)).rstrip(), inner


@EACH_KIND
def test_a_queue_as_on_token_of_a_run_in_a_thread(kind: Kind) -> None:
    """Hazard: the queue takes the runs for its own, and ends with the first of them."""
    queue = QueueStreamHandler(maxsize=1)
    model = EchoChatModel()

    def run() -> None:
        for prompt in "ab":
            model.invoke(prompt, with_handlers(kind.make(queue)))
        queue.end()

    thread = threading.Thread(target=run)
    thread.start()
    received = Received()
    received.texts += queue
    thread.join()
    assert received.tokens == kind.texts(answer("a")) + kind.texts(answer("b"))


@on_asyncio
@pytest.mark.anyio
@EACH_KIND
async def test_a_queue_as_on_token_of_a_run_in_a_task(kind: Kind) -> None:
    """Hazard: a full queue holds up the loop, on which its consumer is."""
    queue = QueueStreamHandler(maxsize=1)
    model = EchoChatModel()

    async def run() -> None:
        for prompt in "ab":
            await model.ainvoke(prompt, with_handlers(kind.make(queue)))
        queue.end()

    task = asyncio.create_task(run())
    received = Received()
    received.texts += [text async for text in queue]
    await task
    assert received.tokens == kind.texts(answer("a")) + kind.texts(answer("b"))


# -- ends ------------------------------------------------------------------------------------------


@EACH_KIND
@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
@pytest.mark.parametrize("fail_at", [0, 1, 3, 4, 7])
def test_a_model_that_fails(kind: Kind, way: Way, fail_at: int, *, is_async: bool) -> None:
    """Promise 3.  Hazard: what was held back is lost, or the error is."""
    received = Received(is_async=is_async)
    model = EchoChatModel(failure=ValueError("the model's"), fail_at=fail_at)
    with pytest.raises(ValueError, match="the model's"):
        way.run(model, lambda: kind.make(received.on_token))
    assert received.tokens == kind.texts(answer("a", fail_at))
    assert received.shown == "".join(answer("a", fail_at)).rstrip()


@pytest.mark.parametrize("kind", [case for case in KINDS if BY_NAME[str(case.id)].holds_back])
@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
@pytest.mark.parametrize("raise_error", [False, True])
def test_the_models_error_is_the_callers_if_the_last_delivery_fails_too(
    kind: Kind,
    way: Way,
    caplog: pytest.LogCaptureFixture,
    *,
    is_async: bool,
    raise_error: bool,
) -> None:
    """Hazard: the second error takes the place of the first."""
    model = EchoChatModel(failure=ValueError("the model's"), fail_at=0)
    if kind.size > 1:
        model.fail_at = 1
    failed: list[str] = []

    def fail(text: str) -> None:
        if model.record.calls and not model.record.open:
            failed.append(text)
            raise OSError("the callback's")

    async def fail_async(text: str) -> None:
        fail(text)

    with pytest.raises(ValueError, match="the model's"):
        way.run(
            model,
            lambda: kind.make(fail_async if is_async else fail, raise_error=raise_error),
        )
    assert len(failed) == 1
    assert "the callback's" in caplog.text


@EACH_KIND
@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
@pytest.mark.parametrize("raise_error", [False, True])
def test_an_error_of_on_token(
    kind: Kind, way: Way, *, is_async: bool, raise_error: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: it ends a run that it should not, or does not reach the caller."""
    received = Received(is_async=is_async)
    model = EchoChatModel()
    bad = kind.texts(answer("a"))[1]

    def fail(text: str) -> None:
        if text == bad:
            raise OSError("the callback's")
        received.texts.append(text)

    async def fail_async(text: str) -> None:
        fail(text)

    def run() -> Any:
        return way.run(
            model, lambda: kind.make(fail_async if is_async else fail, raise_error=raise_error)
        )

    if raise_error and kind.name != "safe":
        with pytest.raises(OSError, match="the callback's"):
            run()
        assert model.record.produced == 2 * kind.size
        assert received.tokens == kind.texts(answer("a"))[:1]
    else:
        assert run().content == "".join(answer("a"))
        assert received.tokens == [text for text in kind.texts(answer("a")) if text != bad]
        assert "the callback's" in caplog.text
    assert model.record.open == 0


@EACH_KIND
@PLAIN_AND_COROUTINE
@pytest.mark.parametrize("before", [0, 1, 4])
def test_a_task_that_is_cancelled(kind: Kind, before: int, *, is_async: bool) -> None:
    """Hazard: LangChain reports no end, and what was held back is lost."""
    received = Received(is_async=is_async)
    model = silent_model(*tokens(before))

    async def main() -> None:
        run = asyncio.create_task(model.ainvoke("?", with_handlers(kind.make(received.on_token))))
        await eventually_async(lambda: gate_of(model).waiting)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await eventually_async(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    asyncio.run(main())
    assert received.tokens == kind.texts(tokens(before))
    assert received.shown == "".join(tokens(before)).rstrip()


@EACH_KIND
@INVOKE_AND_AINVOKE
@pytest.mark.parametrize(
    "model",
    [
        WholeAnswerChatModel(tokens=["all ", "at once"]),
        ScriptedLLM(tokens=["all ", "at once"]),
        ScriptedChatModel(tokens=["all ", "at once"], disable_streaming=True),
    ],
    ids=["no streaming", "old style", "disable_streaming"],
)
def test_whole_answers(kind: Kind, way: Way, model: Any) -> None:
    """Hazard: fact 7: an end with no token before it."""
    received = Received()
    way.run(model, lambda: kind.make(received.on_token))
    assert received.tokens == ["all at once"]
    assert received.shown == "all at once"


@EACH_KIND
@INVOKE_AND_AINVOKE
def test_cache_hits(kind: Kind, way: Way) -> None:
    """Hazard: fact 7, on an instance that has heard the run which was cached."""
    received = Received()
    model = EchoChatModel(cache=InMemoryCache())
    handler = kind.make(received.on_token)
    for _ in range(2):
        way.run(model, lambda: handler)
    assert received.tokens == [*kind.texts(answer("a")), "".join(answer("a"))]


# -- one instance, many runs -----------------------------------------------------------------------


@EACH_KIND
@PLAIN_AND_COROUTINE
def test_two_runs_at_once_in_threads(kind: Kind, *, is_async: bool) -> None:
    """Hazard: what waits of one run is joined to the other's.  The two take turns."""
    received = Received(is_async=is_async)
    handler = kind.make(received.on_token)
    models = {prompt: EchoChatModel(gate=Gate()) for prompt in "ab"}
    threads = [
        threading.Thread(target=model.invoke, args=(prompt, with_handlers(handler)))
        for prompt, model in models.items()
    ]
    for thread in threads:
        thread.start()
    for _ in answer("a"):
        for model in models.values():
            step(model)
    for thread in threads:
        thread.join(10)
    for prompt in models:
        assert received.of(prompt) == kind.texts(answer(prompt))
    assert received.shown.count(" ") == 2 * len(answer("a")) - 1


@EACH_KIND
@PLAIN_AND_COROUTINE
def test_two_runs_at_once_in_tasks(kind: Kind, *, is_async: bool) -> None:
    """Hazard: as above, on one loop."""
    received = Received(is_async=is_async)
    models = {prompt: EchoChatModel(gate=Gate()) for prompt in "ab"}

    async def main() -> None:
        config = with_handlers(kind.make(received.on_token))
        runs = [asyncio.create_task(model.ainvoke(p, config)) for p, model in models.items()]
        for _ in answer("a"):
            for model in models.values():
                await step_async(model)
        await asyncio.gather(*runs)

    asyncio.run(main())
    for prompt in models:
        assert received.of(prompt) == kind.texts(answer(prompt))


class _Ids(BaseCallbackHandler):
    """Remembers the ids of model runs as long as somebody else does."""

    run_inline = True

    def __init__(self) -> None:
        self.ids: list[weakref.ref[Any]] = []

    def on_chat_model_start(self, *_: Any, run_id: Any, **__: Any) -> None:
        self.ids.append(weakref.ref(run_id))

    @property
    def alive(self) -> int:
        return sum(ref() is not None for ref in self.ids)


def _kept(handler: Any) -> dict[str, int]:
    """What a handler, and those in it, still hold of runs."""
    gc.collect()
    held = {
        name: len(value)
        for name in ("_states", "_direct", "_streamed", "_goes_on_in", "_silent", "held_loops")
        if (value := getattr(handler, name, None))
    }
    if isinstance(handler.on_token, StreamHandler):
        held.update(_kept(handler.on_token))
    return held


@EACH_KIND
@INVOKE_AND_AINVOKE
def test_nothing_of_a_run_is_in_the_next_or_kept(kind: Kind, way: Way) -> None:
    """Promise 9.  Hazard: a handler in a model's constructor grows with each call."""
    received, ids = Received(), _Ids()
    handler = kind.make(kind.make(received.on_token))
    for count in (LENGTH, 4, LENGTH, 0, LENGTH, LENGTH):
        received.texts.clear()
        model = EchoChatModel(failure=ValueError("no"), fail_at=count)
        with pytest.raises(ValueError, match="no"):
            way.run(model, lambda: [ids, handler])
        assert received.shown == "".join(answer("a", count)).rstrip()
        del model  # with the error's traceback
    assert _kept(handler) == {}
    assert len(ids.ids) == 6
    assert ids.alive == 0


@EACH_KIND
@PLAIN_AND_COROUTINE
def test_nothing_is_kept_of_runs_that_were_cancelled(kind: Kind, *, is_async: bool) -> None:
    """Promise 9.  Hazard: LangChain reports no end of them."""
    received, ids = Received(is_async=is_async), _Ids()
    handler = kind.make(kind.make(received.on_token))

    async def cancelled() -> None:
        model = silent_model("a")
        run = asyncio.create_task(model.ainvoke("?", with_handlers(ids, handler)))
        await eventually_async(lambda: gate_of(model).waiting)
        run.cancel()
        await asyncio.wait([run])

    async def main() -> None:
        for _ in range(3):
            await cancelled()
        await EchoChatModel().ainvoke("a", with_handlers(handler))

    asyncio.run(main())
    assert _kept(handler) == {}
    assert len(ids.ids) == 3
    assert ids.alive == 0


@EACH_KIND
@INVOKE_AND_AINVOKE
def test_a_handler_goes_with_its_last_reference(kind: Kind, way: Way) -> None:
    """Promise 9.  Hazard: a timer, or a list of ours, keeps it and all that on_token holds."""
    received = Received()

    def run() -> weakref.ref[Any]:
        handlers: list[Any] = []

        def make() -> Any:
            handlers.append(kind.make(lambda text: received.on_token(text)))  # noqa: PLW0108
            return handlers[0]

        way.run(EchoChatModel(), make)
        return weakref.ref(handlers[0])

    handler = run()
    eventually(lambda: gc.collect() >= 0 and handler() is None)
    assert received.tokens == kind.texts(answer("a"))


@EACH_KIND
def test_in_a_models_constructor(kind: Kind) -> None:
    """Fact 9."""
    received, log = Received(), RunLog()
    model = EchoChatModel(callbacks=[kind.make(received.on_token), log])
    for prompt in "ab":
        model.invoke(prompt)
    assert received.tokens == kind.texts(answer("a")) + kind.texts(answer("b"))
    assert set(log.ended) == set(log.started)


# -- arguments -------------------------------------------------------------------------------------


@EACH_KIND
@pytest.mark.parametrize("on_token", [None, "print", 1])
def test_on_token_must_be_callable(kind: Kind, on_token: Any) -> None:
    with pytest.raises(TypeError, match=r"on_token must be a function of one token, not"):
        kind.make(on_token)


@EACH_KIND
def test_on_token_is_kept(kind: Kind) -> None:
    on_token = Received().on_token
    assert kind.make(on_token).on_token is on_token


def test_the_names_of_the_document() -> None:
    """Each is found, also by ``dir``; others are an error as of any module."""
    assert set(handlers.__all__) <= set(dir(handlers))
    for name in handlers.__all__:
        assert getattr(handlers, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'SuperHandler'"):
        _ = handlers.SuperHandler
    with pytest.raises(ImportError):
        importlib.import_module("queuestream.handlers.SuperHandler")


@EACH_KIND
@INVOKE_AND_AINVOKE
def test_a_class_of_ones_own(kind: Kind, way: Way) -> None:
    """Hazard: a ready-made handler that is derived from goes on without what it does itself."""
    received = Received()
    made = kind.make(received.on_token)
    heard: list[str] = []

    class Own(type(made)):  # type: ignore[misc]
        def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
            heard.append(token)
            super().on_llm_new_token(token, **kwargs)

    made.__class__ = Own
    way.run(EchoChatModel(), lambda: made)
    assert [token for token in heard if token] == answer("a")
    assert received.tokens == kind.texts(answer("a"))
