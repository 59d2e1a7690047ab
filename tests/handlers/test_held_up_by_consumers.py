"""A plain ``for`` on a loop's own thread: the run must not wait there for that loop."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import os
import threading
import uuid
from typing import TYPE_CHECKING, Any

import janus
import pytest
from langchain_core.runnables import RunnableConfig, RunnableLambda

from queuestream import MixedQueue, QueueStreamHandler, StreamHandler, _waits, stream
from queuestream._buffer import BLOCKED, Buffer
from queuestream._token_queue import TokenQueue
from queuestream._wakeups import ThreadWaiter
from queuestream.errors import StreamClosedError, StreamTimeoutError
from queuestream.handlers import BatchStreamHandler
from queuestream.handlers._dual import heard_by
from tests.handlers.test_held_up import (
    SHAPES,
    alone,
    count_of,
    in_parallel,
    on_asyncio,
    with_handler,
)
from tests.support.backends import TRIO
from tests.support.consumers import in_another_thread
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.homes import Heard, loop_thread
from tests.support.models import ScriptedChatModel, tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

REFUSED = "iterate with async for"
"""What the refusal says."""

RAISES = pytest.mark.parametrize("raise_error", [False, True])


@pytest.fixture(autouse=True)
def _nobody_is_left_behind() -> Iterator[None]:
    yield
    eventually(lambda: not _waits._waits)


def handed_over() -> int:
    """How many threads wait for a coroutine that they have handed over."""
    return sum(wait.refuse is not None for wait in tuple(_waits._waits))


def consumers() -> int:
    """How many consumers hold up something."""
    return sum(wait.refuse is None for wait in tuple(_waits._waits))


def meanwhile(*steps: Callable[[], object]) -> None:
    """Take steps in a thread."""

    def work() -> None:
        for step in steps:
            step()

    threading.Thread(target=work, daemon=True).start()


class Overtaken:
    """An ``on_token`` that has begun when its loop is held up."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.gate = Gate()
        self.outcomes: list[str] = []

    async def on_token(self, token: str) -> None:
        self.begun.set()
        try:
            await self.gate.wait_async()
        except asyncio.CancelledError:
            self.outcomes.append("cancelled")
            raise
        self.outcomes.append(token)


def all_is_refused(
    answer: Any, count: int, caplog: pytest.LogCaptureFixture, *, raise_error: bool
) -> None:
    """Iterate to the end: what each of so many tokens wants of the loop is refused."""
    if raise_error:
        with pytest.raises(RuntimeError, match=REFUSED):
            list(answer)
    else:
        assert len(list(answer)) == count
        assert caplog.text.count(REFUSED) == count


async def some_turns() -> None:
    """Let the loop do all that it was called for before: that takes three turns."""
    for _ in range(5):
        await asyncio.sleep(0)


# -- the orders ------------------------------------------------------------------------------------


@on_asyncio
@pytest.mark.anyio
@RAISES
@pytest.mark.parametrize("shape", SHAPES)
async def test_the_consumer_comes_first(
    shape: Any, raise_error: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: a deadlock (promise 3)."""
    heard, gate = Heard(), Gate()
    handler = StreamHandler(heard.on_token_async, raise_error=raise_error)
    target = shape(ScriptedChatModel(tokens=tokens(2), gate=gate))
    with stream(target, "?", with_handler(handler)) as answer:
        meanwhile(lambda: eventually(consumers), gate.open)
        all_is_refused(answer, 2 * count_of(shape), caplog, raise_error=raise_error)
    await some_turns()
    assert heard.tokens == []


@on_asyncio
@pytest.mark.anyio
@RAISES
@pytest.mark.parametrize("shape", SHAPES)
async def test_the_coroutine_comes_first(
    shape: Any, raise_error: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: a deadlock; or what was refused is delivered all the same, later."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async, raise_error=raise_error)
    target = shape(ScriptedChatModel(tokens=tokens(2)))
    with stream(target, "?", with_handler(handler)) as answer:
        eventually(lambda: handed_over() == count_of(shape))  # and the loop stands still
        all_is_refused(answer, 2 * count_of(shape), caplog, raise_error=raise_error)
    await some_turns()
    assert heard.tokens == []


@on_asyncio
@pytest.mark.anyio
@RAISES
async def test_the_coroutine_has_begun(raise_error: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Hazard: a deadlock; or it goes on beside that of a later token."""
    overtaken = Overtaken()
    handler = StreamHandler(overtaken.on_token, raise_error=raise_error)
    with stream(ScriptedChatModel(tokens=tokens(2)), "?", with_handler(handler)) as answer:
        await overtaken.begun.wait()
        all_is_refused(answer, 2, caplog, raise_error=raise_error)
    assert overtaken.outcomes == []
    await some_turns()
    assert overtaken.outcomes == ["cancelled"]


def test_the_coroutine_is_about_to_begin() -> None:
    """Hazard: it does, though it was refused: its task was made, and not seen yet."""
    heard = Heard()

    async def main() -> None:
        handler = StreamHandler(heard.on_token_async, raise_error=True)
        model = ScriptedChatModel(tokens=tokens(2))
        with stream(model, "?", with_handler(handler)) as answer:
            eventually(handed_over)
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match=REFUSED):
                list(answer)
        await some_turns()

    asyncio.run(main())
    assert heard.tokens == []


@pytest.mark.parametrize("comes_first", ["consumer", "coroutine"])
def test_a_loop_that_ends_with_what_was_refused(comes_first: str) -> None:
    """Hazard: a coroutine that was never awaited."""
    heard, gate = Heard(), Gate()

    async def main() -> None:
        handler = StreamHandler(heard.on_token_async)
        model = ScriptedChatModel(tokens=tokens(2), gate=gate)
        with stream(model, "?", with_handler(handler)) as answer:
            if comes_first == "coroutine":
                gate.open()
                eventually(handed_over)
            else:
                meanwhile(lambda: eventually(consumers), gate.open)
            assert list(answer) == tokens(2)

    asyncio.run(main())
    gc.collect()
    assert heard.tokens == []


# -- a loop that is free ---------------------------------------------------------------------------


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", ["to_thread", "async for", "entered only"])
async def test_the_consumer_holds_up_nothing(way: str, shape: Any) -> None:
    """Hazard: refused where nobody would wait for himself."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async, raise_error=True)
    target = shape(ScriptedChatModel(tokens=tokens(9)))
    with stream(target, "?", with_handler(handler), run_in="thread") as answer:
        if way == "async for":
            received = [token async for token in answer]
        elif way == "to_thread":
            received = await asyncio.to_thread(list, answer)
        else:
            await eventually_async(lambda: len(heard.tokens) == 9 * count_of(shape))
            received = await asyncio.to_thread(list, answer)
    assert len(received) == 9 * count_of(shape)
    assert sorted(heard.tokens) == sorted(received)
    assert heard.loops == {asyncio.get_running_loop()}


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("queue", [None, MixedQueue, janus.Queue], ids=str)
async def test_a_loop_that_is_free_between_two_tokens(
    queue: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: refused because of a consumer who has a token, and has not yet come to know.

    1. The consumer sleeps, the first token's coroutine is refused, and the token is put.
    2. The second one's is handed over.
    3. The consumer wakes up, and lets the loop go on.
    """
    heard, gate = Heard(), Gate()
    handler = StreamHandler(heard.on_token_async)
    model = ScriptedChatModel(tokens=tokens(2), gate=gate)
    given = None if queue is None else queue()
    sleep = TokenQueue._sleep

    def sleep_long(self: Any, get: Callable[[], Any]) -> Any:
        def get_late() -> Any:
            item = get()
            eventually(lambda: handed_over() or caplog.text.count(REFUSED) > 1)
            return item

        return sleep(self, get_late)

    with stream(model, "?", with_handler(handler), run_in="thread", queue=given) as answer:
        monkeypatch.setattr(TokenQueue, "_sleep", sleep_long)
        meanwhile(lambda: eventually(consumers), gate.open)
        assert next(answer) == "t0 "
        assert caplog.text.count(REFUSED) == 1
        assert [token async for token in answer] == ["t1 "]
    assert heard.tokens == ["t1 "]
    if given is not None:
        given.close()
        await given.wait_closed()


@on_asyncio
@pytest.mark.anyio
async def test_a_token_that_comes_when_the_consumer_is_about_to_sleep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hazard: refused because of a consumer who does not sleep after all."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async, raise_error=True)
    model = ScriptedChatModel(tokens=tokens(2), gate=Gate(1))
    with stream(model, "?", with_handler(handler), run_in="thread") as answer:
        await eventually_async(answer._tokens.has_items)
        model.gate.open()  # type: ignore[union-attr]
        eventually(handed_over)
        with monkeypatch.context() as patch:
            patch.setattr(Buffer, "get_now", lambda _: BLOCKED)  # a moment ago
            assert next(answer) == "t0 "
        assert [token async for token in answer] == ["t1 "]
    assert heard.tokens == tokens(2)


@on_asyncio
@pytest.mark.anyio
async def test_a_piece_that_is_soon_over() -> None:
    """Hazard: refused because of a consumer who waits a little for more of a piece."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async, raise_error=True)
    model = ScriptedChatModel(tokens=tokens(2), gate=Gate(1))
    with stream(model, "?", with_handler(handler), run_in="thread") as answer:
        await eventually_async(answer._tokens.has_items)
        model.gate.open()  # type: ignore[union-attr]
        eventually(handed_over)
        assert next(answer.pieces(max_delay=0.05)) == "t0 "
        assert [token async for token in answer] == ["t1 "]
    assert heard.tokens == tokens(2)


@on_asyncio
@pytest.mark.anyio
async def test_a_piece_that_takes_long(caplog: pytest.LogCaptureFixture) -> None:
    """Hazard: the run stands still until it is over."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async)
    model = ScriptedChatModel(tokens=tokens(3), gate=Gate(1))
    with stream(model, "?", with_handler(handler), run_in="thread") as answer:
        await eventually_async(answer._tokens.has_items)
        model.gate.open()  # type: ignore[union-attr]
        eventually(handed_over)
        assert list(answer.pieces(max_delay=60)) == ["".join(tokens(3))]
        assert caplog.text.count(REFUSED) == 2


@on_asyncio
@pytest.mark.anyio
async def test_an_item_that_is_taken_before_it_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: a deadlock: a consumer that sleeps counts as one that has an item.

    1. The producer adds an item.
    2. The consumer takes it, comes back for the next, and looks how many were put.
    3. The producer counts the item.
    """
    heard, gate = Heard(), Gate()
    model = ScriptedChatModel(tokens=tokens(2), gate=gate)
    number = TokenQueue._number_put
    before = iter([-2])
    with monkeypatch.context() as patch:
        patch.setattr(TokenQueue, "_number_put", lambda self: next(before, None) or number(self))
        with stream(model, "?", with_handler(StreamHandler(heard.on_token_async))) as answer:
            meanwhile(lambda: eventually(consumers), gate.open)
            assert list(answer) == tokens(2)
    assert caplog.text.count(REFUSED) == 2


@on_asyncio
@pytest.mark.anyio
async def test_an_item_of_a_given_queue_that_is_taken_before_it_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: as above; such a queue does not count."""
    heard, given = Heard(), janus.Queue[Any]()
    slept, put = itertools.count(), itertools.count()
    sleeps = 0
    note, sleep = TokenQueue._note_peak, TokenQueue._sleep

    def sleep_and_count(self: Any, get: Callable[[], Any]) -> Any:
        def count_and_get() -> Any:
            nonlocal sleeps
            sleeps = next(slept)
            return get()

        return sleep(self, count_and_get)

    def note_late(self: Any) -> None:
        number = next(put)
        eventually(lambda: sleeps > number)
        note(self)

    monkeypatch.setattr(TokenQueue, "_note_peak", note_late)
    monkeypatch.setattr(TokenQueue, "_sleep", sleep_and_count)
    handler = StreamHandler(heard.on_token_async)
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(3), gate=gate)
    with stream(model, "?", with_handler(handler), queue=given) as answer:
        meanwhile(lambda: eventually(consumers), gate.open)
        assert list(answer) == tokens(3)
    assert caplog.text.count(REFUSED) == 3
    given.close()
    await given.wait_closed()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [pytest.param(TRIO, id="trio")])
async def test_on_trio() -> None:
    """No handler is at home there, and none can be refused."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async, raise_error=True)
    model = ScriptedChatModel(tokens=tokens(9))
    with stream(model, "?", with_handler(handler), run_in="thread") as answer:
        assert list(answer) == heard.tokens == tokens(9)


# -- all ways to wait ------------------------------------------------------------------------------


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("queue", [None, MixedQueue, janus.Queue], ids=str)
@pytest.mark.parametrize("limit", [None, 60.0])
@pytest.mark.parametrize("way", ["tokens", "pieces", "whole"])
async def test_each_way_to_wait(way: str, limit: float | None, queue: Any) -> None:
    """Hazard: a deadlock, or a time-out."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async, raise_error=True)
    model = ScriptedChatModel(tokens=tokens(2))
    given = None if queue is None else queue()
    with stream(
        model,
        "?",
        with_handler(handler),
        queue=given,
        first_token_timeout=limit,
        token_timeout=limit,
    ) as answer:
        waits: dict[str, Iterable[str]] = {
            "tokens": answer,
            "pieces": answer.pieces(),
            "whole": answer.pieces(max_delay=float("inf")),
        }
        with pytest.raises(RuntimeError, match=REFUSED):
            list(waits[way])
    if given is not None:
        given.close()
        await given.wait_closed()


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("wrap", [alone, BatchStreamHandler], ids=["alone", "nested"])
async def test_a_queue_stream_handler(wrap: Any, is_first: bool, shape: Any) -> None:
    """Hazard: a deadlock where the code starts the run itself."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async, raise_error=True)
    queue = QueueStreamHandler()
    listener = queue if wrap is alone else BatchStreamHandler(queue, batch_size=1)
    callbacks: list[Any] = [listener, handler] if is_first else [handler, listener]
    target = shape(ScriptedChatModel(tokens=tokens(2)))
    errors: list[str] = []

    def run() -> None:
        try:
            target.invoke("?", {"callbacks": callbacks})
        except RuntimeError as error:
            errors.append(str(error))
        queue.end()

    meanwhile(run)
    if wrap is alone:
        with pytest.raises(RuntimeError, match=REFUSED):
            list(queue)
    else:
        list(queue)
    eventually(lambda: errors)
    assert REFUSED in errors[0]
    assert heard.tokens == []


@on_asyncio
@pytest.mark.anyio
async def test_a_start_that_is_handed_over() -> None:
    """Hazard: a deadlock before the stream has heard of the run."""
    heard = Heard()

    class Handler(StreamHandler):
        async def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            heard.on_token("start")

    handler = Handler(heard.on_token, raise_error=True)
    with (
        stream(ScriptedChatModel(tokens=tokens(2)), "?", with_handler(handler)) as answer,
        pytest.raises(RuntimeError, match=REFUSED),
    ):
        list(answer)
    assert heard.tokens == []


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("how", ["a run of its own", "by hand"])
async def test_a_call_in_a_run_that_a_queue_hears(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: a deadlock: the call names no run that the queue has heard of."""
    heard = Heard()
    handler: Any = StreamHandler(heard.on_token_async)
    queue = QueueStreamHandler()

    def node(question: str) -> str:
        eventually(consumers)
        if how == "by hand":
            with pytest.raises(RuntimeError, match=REFUSED):
                handler(question)
        else:
            ScriptedChatModel(tokens=["a"]).invoke(question, with_handler(handler))
            assert caplog.text.count(REFUSED) == 1
        return "the end"

    run = in_another_thread(lambda: RunnableLambda(node).invoke("?", with_handler(queue)))
    assert list(queue) == []
    run.join(5)
    assert heard.tokens == []


@on_asyncio
@pytest.mark.anyio
async def test_a_start_that_is_handed_over_before_the_queue_has_heard_it() -> None:
    """Hazard: a deadlock: of the queue, only the outer run is known."""

    class Starts(StreamHandler):
        async def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError("it was handed over")

    def first(question: str) -> str:
        eventually(consumers)
        return question

    queue = QueueStreamHandler()
    handler = Starts(lambda _: None, raise_error=True)
    chain = RunnableLambda(first) | ScriptedChatModel(tokens=["a"])
    run = in_another_thread(lambda: _suppressed(chain, [handler, queue]))
    with pytest.raises(RuntimeError, match=REFUSED):
        list(queue)
    run.join(5)


def _suppressed(chain: Any, callbacks: list[Any]) -> None:
    with pytest.raises(RuntimeError, match=REFUSED):
        chain.invoke("?", {"callbacks": callbacks})


@on_asyncio
@pytest.mark.anyio
async def test_a_handler_that_is_called_by_hand() -> None:
    """Hazard: a deadlock where nothing names the run."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async)

    def call(question: str, callbacks: Any) -> None:
        handler(question)

    with stream(call, "?") as answer, pytest.raises(RuntimeError, match=REFUSED):
        list(answer)
    assert heard.tokens == []


# -- several runs and loops ------------------------------------------------------------------------


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("is_made_inside", [False, True])
@pytest.mark.parametrize("shape", [alone, in_parallel])
async def test_a_stream_in_a_stream(shape: Any, is_made_inside: bool) -> None:
    """Hazard: a deadlock: the loop waits for the outer run, that for the inner, that for the loop.

    The inner run's tokens go to the outer consumer as well, if it is made there.
    """
    heard, gate = Heard(), Gate()
    handler = StreamHandler(heard.on_token_async, raise_error=True)
    model = ScriptedChatModel(tokens=tokens(2), gate=gate)

    def make() -> Any:
        return stream(model, "?", with_handler(handler), run_in="thread")

    made = make()

    def call(question: str) -> str:
        with make() if is_made_inside else made as inner:
            return "".join(inner)

    with stream(shape(RunnableLambda(call)), "?") as outer:
        meanwhile(lambda: eventually(lambda: consumers() == 2), gate.open)
        with pytest.raises(RuntimeError, match=REFUSED):
            list(outer)
    assert heard.tokens == []


@on_asyncio
@pytest.mark.anyio
async def test_a_stream_that_is_awaited_in_a_stream() -> None:
    """Hazard: a deadlock, as above; a task that waits is not seen."""
    heard, gate = Heard(), Gate()
    handler = StreamHandler(heard.on_token_async)

    def call_by_hand(question: str, callbacks: Any) -> None:  # so that no run has a name
        gate.wait()
        handler(question)

    async def call(question: str) -> str:
        async with stream(call_by_hand, question) as inner:
            return "".join([token async for token in inner])

    with stream(RunnableLambda(call), "?") as outer:
        meanwhile(lambda: eventually(consumers), gate.open)
        with pytest.raises(RuntimeError, match=REFUSED):
            list(outer)
    assert heard.tokens == []


@RAISES
@pytest.mark.parametrize("is_at_home", [False, True])
@pytest.mark.parametrize("comes_first", ["consumer", "coroutine"])
def test_the_background_loop_is_held_up(
    comes_first: str, is_at_home: bool, raise_error: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: a deadlock of the loop that all streams share."""
    heard, gate = Heard(), Gate()
    model = ScriptedChatModel(tokens=tokens(2), gate=gate)
    made = StreamHandler(heard.on_token_async, raise_error=raise_error)

    async def node(question: str, config: RunnableConfig) -> str:
        handler = StreamHandler(heard.on_token_async, raise_error=raise_error)
        with stream(
            model, question, with_handler(handler if is_at_home else made), run_in="thread"
        ) as inner:
            if comes_first == "coroutine":
                gate.open()
                eventually(handed_over)
            else:
                meanwhile(lambda: eventually(consumers), gate.open)
            return "".join(inner)

    with stream(RunnableLambda(node), "?", run_in="background") as answer:
        if raise_error:
            with pytest.raises(RuntimeError, match=REFUSED):
                list(answer)
        else:
            list(answer)
            assert answer.result == "t0 t1 "
            assert caplog.text.count(REFUSED) == 2
    assert heard.tokens == []


@on_asyncio
@pytest.mark.anyio
async def test_another_loop_is_held_up() -> None:
    """Hazard: refused because some loop is held up, by a consumer of the same run's."""
    heard = Heard()
    model = ScriptedChatModel(tokens=tokens(2))
    with loop_thread() as other:
        handler = other.call(lambda: StreamHandler(heard.on_token_async, raise_error=True))
        with stream(model, "?", with_handler(handler)) as answer:
            assert list(answer) == heard.tokens == tokens(2)
        assert heard.loops == {other.loop}


def test_a_loop_that_is_held_up_by_another_runs_consumer() -> None:
    """Hazard: refused though that consumer gets a token without us, and lets the loop go on."""
    heard, gate = Heard(), Gate()
    silent = ScriptedChatModel(tokens=tokens(1), gate=gate)

    async def hold_up() -> list[str]:
        with stream(silent, "?") as answer:
            return list(answer)

    with loop_thread() as one:
        handler = one.call(lambda: StreamHandler(heard.on_token_async, raise_error=True))
        held = one.submit(hold_up())
        eventually(consumers)
        with stream(ScriptedChatModel(tokens=tokens(2)), "?", with_handler(handler)) as answer:
            meanwhile(lambda: eventually(handed_over), gate.open)
            assert list(answer) == tokens(2)
        assert held.result(10) == tokens(1)
    assert heard.tokens == tokens(2)


@pytest.mark.parametrize("comes_last", ["consumer", "coroutine"])
def test_a_circle_by_way_of_another_loop(comes_last: str) -> None:
    """Hazard: a deadlock that neither loop sees in itself.

    The one loop's consumer waits for a run that waits for the other loop.  There, synchronous
    code waits for the one.
    """
    begun, go_on, gate = Gate(), Gate(), Gate()

    async def on_token(token: str) -> None:
        raise AssertionError(token)

    with loop_thread() as one, loop_thread() as two:
        at_one = one.call(lambda: StreamHandler(on_token, raise_error=True))
        at_two = two.call(lambda: StreamHandler(on_token, raise_error=True))

        async def consume() -> None:
            model = ScriptedChatModel(tokens=tokens(1), gate=gate)
            with stream(model, "?", with_handler(at_two)) as answer:
                if comes_last == "consumer":
                    begun.open()
                    eventually(lambda: handed_over() == 1)
                    gate.open()
                    eventually(lambda: handed_over() == 2)
                else:
                    meanwhile(lambda: eventually(consumers), begun.open)
                list(answer)

        async def hold_up() -> None:
            ScriptedChatModel(tokens=tokens(1), gate=go_on).invoke("?", with_handler(at_one))

        first = one.submit(consume())
        begun.wait()
        second = two.submit(hold_up())
        go_on.open()
        if comes_last == "coroutine":
            eventually(lambda: handed_over() == 1)
            gate.open()
        outcomes = [first.exception(10), second.exception(10)]
    assert any(REFUSED in str(outcome) for outcome in outcomes)


# -- consumers that go -----------------------------------------------------------------------------


@on_asyncio
@pytest.mark.anyio
async def test_a_consumer_that_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard: Ctrl-C leaves the loop marked as held up, and all that comes later is refused."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async, raise_error=True)
    model = ScriptedChatModel(tokens=tokens(3), gate=Gate())

    def interrupted(*_: object) -> bool:
        assert consumers() == 1
        raise KeyboardInterrupt

    with stream(model, "?", with_handler(handler), run_in="thread") as answer:
        with monkeypatch.context() as patch:
            patch.setattr(ThreadWaiter, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(answer)
        assert not consumers()
        model.gate.open()  # type: ignore[union-attr]
        assert [token async for token in answer] == tokens(3)
    assert heard.tokens == tokens(3)


@on_asyncio
@pytest.mark.anyio
async def test_a_consumer_that_leaves_while_the_run_waits() -> None:
    """Hazard: a run that waits for ever, or a stop that counts as a refusal."""
    heard = Heard()
    handler = StreamHandler(heard.on_token_async, raise_error=True)
    model = ScriptedChatModel(tokens=tokens(3))
    with stream(model, "?", with_handler(handler), run_in="thread"):
        eventually(handed_over)
    model.record.wait_until_produced(1)
    await asyncio.to_thread(model.record.wait_until_finalized)
    assert heard.tokens == tokens(1)


@on_asyncio
@pytest.mark.anyio
@pytest.mark.parametrize("way", ["close", "time-out"])
async def test_a_consumer_of_a_silent_run(way: str) -> None:
    """Hazard: it stays marked as waiting."""
    heard = Heard()
    model = ScriptedChatModel(tokens=tokens(1), gate=Gate())
    limit = 0.01 if way == "time-out" else None
    config = with_handler(StreamHandler(heard.on_token_async))
    with stream(model, "?", config, first_token_timeout=limit) as answer:
        if way == "close":
            meanwhile(lambda: eventually(consumers), answer.close)
        with pytest.raises((StreamClosedError, StreamTimeoutError)):
            next(answer)
    assert not consumers()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork() -> None:
    """Hazard: in the child the parent's waits go on for ever, in threads that it has not."""
    wait = _waits.Wait((None,), "somebody", lambda: True)
    wait.begin()
    try:
        child = os.fork()
        if not child:
            os._exit(len(_waits._waits))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert wait in _waits._waits
    finally:
        wait.end()


# -- what is kept ----------------------------------------------------------------------------------


def test_runs_of_one_id() -> None:
    """Promise 9.  Hazard: the queues of all of them are kept, as long as somebody keeps the id."""
    run_id = uuid.uuid4()
    queue = QueueStreamHandler()
    for _ in range(3):
        config: Any = {"callbacks": [queue], "run_id": run_id}
        ScriptedChatModel(tokens=["a"]).invoke("?", config)
    assert len(heard_by[run_id]) == 1


def test_runs_that_begin_the_next() -> None:
    """Promise 9.  Hazard: each keeps the names of all before it."""

    class Queue:
        """What a run has."""

    queues = [Queue() for _ in range(3)]
    context = contextvars.copy_context()
    context.run(_waits.join_run, "first", queues[0])
    context.run(_waits.join_run, "second", queues[1])
    assert context.run(_waits.waiting_here) == ("first", "second")
    del queues[0]
    context.run(_waits.join_run, "third", queues[1])
    assert context.run(_waits.waiting_here) == ("second", "third")
