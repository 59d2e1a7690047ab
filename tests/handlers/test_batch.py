"""`BatchStreamHandler`: several tokens as one, and none of them too late."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import threading
import weakref
from collections import deque
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from queuestream import QueueStreamHandler, _background, stream
from queuestream.errors import RunStopped, StreamClosedError
from queuestream.handlers import BatchStreamHandler, batch
from queuestream.handlers._turns import Turns
from tests.support.aftermath import our_threads
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.handlers import (
    INVOKE_AND_AINVOKE,
    PLAIN_AND_COROUTINE,
    EchoChatModel,
    Received,
    Way,
    answer,
    gate_of,
    step,
    step_async,
)
from tests.support.homes import loop_thread
from tests.support.models import ScriptedChatModel, silent_model, tokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

A_LITTLE = 0.005
"""Seconds: a delay that is waited for."""
LONG = 600.0
"""Seconds: a delay that nobody lives to see."""


def with_handler(handler: Any) -> Any:
    """Return a config with one callback."""
    return {"callbacks": [handler]}


@contextmanager
def running(model: ScriptedChatModel, handler: Any) -> Iterator[threading.Thread]:
    """Run a model in a thread; at the end, let it go on to its own end."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            model.invoke("a", with_handler(handler))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        if model.gate is not None:
            model.gate.open()
        thread.join(10)
        assert not thread.is_alive()
    for failure in failures:
        raise failure


@asynccontextmanager
async def running_in_task(model: ScriptedChatModel, handler: Any) -> AsyncIterator[None]:
    """Run a model in a task; at the end, let it go on to its own end."""
    run = asyncio.create_task(model.ainvoke("a", with_handler(handler)))
    try:
        yield
    finally:
        if model.gate is not None:
            model.gate.open()
        await asyncio.wait_for(asyncio.wait([run]), 10)
    await run


class Stalling(Received):
    """Waits at a gate before it takes a text; counts how many calls are in it at once."""

    def __init__(self, *, is_async: bool = False) -> None:
        super().__init__(is_async=is_async)
        self.gate = Gate()
        self.inside = self.most_inside = 0

    def _enter(self) -> None:
        self.inside += 1
        self.most_inside = max(self.inside, self.most_inside)

    def _plain(self, text: str) -> None:
        self._enter()
        self.gate.wait()
        super()._plain(text)
        self.inside -= 1

    async def _coroutine(self, text: str) -> None:
        self._enter()
        await self.gate.wait_async()
        super()._plain(text)
        self.inside -= 1


def turns_that_tell(received: Stalling, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return what is set when somebody asks for a turn while a delivery goes on."""
    asked = threading.Event()

    class Telling(Turns):
        def _note(self) -> None:
            if received.inside:
                asked.set()

        def in_thread(self, *, waits: bool = True) -> AbstractContextManager[None]:
            self._note()
            return super().in_thread(waits=waits)

        def in_task(self, *, waits: bool = True) -> AbstractAsyncContextManager[None]:
            self._note()
            return super().in_task(waits=waits)

    monkeypatch.setattr(batch, "Turns", Telling)
    return asked


# -- batches ---------------------------------------------------------------------------------------


@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
@pytest.mark.parametrize(
    "count, size, expected",
    [
        (1, 3, ["t0 "]),
        (3, 3, ["t0 t1 t2 "]),
        (4, 3, ["t0 t1 t2 ", "t3 "]),
        (6, 3, ["t0 t1 t2 ", "t3 t4 t5 "]),
        (3, 1, ["t0 ", "t1 ", "t2 "]),
        (3, 99, ["t0 t1 t2 "]),
    ],
)
@pytest.mark.parametrize("max_delay", [None, LONG])
def test_batches(
    way: Way,
    count: int,
    size: int,
    expected: list[str],
    max_delay: float | None,
    *,
    is_async: bool,
) -> None:
    """Hazard: one too many in a batch, or an empty one at the end."""
    received = Received(is_async=is_async)
    way.run(
        ScriptedChatModel(tokens=tokens(count)),
        lambda: BatchStreamHandler(received.on_token, size, max_delay=max_delay),
    )
    assert received.texts == expected


def test_five_by_default() -> None:
    """The reference document's number."""
    received = Received()
    handler = BatchStreamHandler(received.on_token)
    assert (handler.batch_size, handler.max_delay) == (5, None)
    ScriptedChatModel(tokens=tokens(7)).invoke("?", with_handler(handler))
    assert received.texts == ["t0 t1 t2 t3 t4 ", "t5 t6 "]


@pytest.mark.parametrize("max_delay", [None, LONG])
def test_a_batch_is_delivered_as_soon_as_it_is_complete(max_delay: float | None) -> None:
    """Hazard: with the token after it, or at the end."""
    received = Received()
    model = EchoChatModel(gate=Gate())
    with running(model, BatchStreamHandler(received.on_token, 3, max_delay=max_delay)):
        for count in (0, 0, 0, 1, 1, 1, 2):
            eventually(lambda: gate_of(model).waiting)
            assert len(received.texts) == count
            step(model)
    assert len(received.texts) == 3


# -- flush -----------------------------------------------------------------------------------------


def test_flush_by_hand() -> None:
    """Hazard: an empty text, or a batch that goes on to be counted from the middle."""
    received = Received()
    handler = BatchStreamHandler(received.on_token, 3)
    handler.flush()
    for token in "ab":
        handler(token)
    handler.flush()
    handler.flush()
    for token in "cdef":
        handler.on_llm_new_token(token)
    handler.flush()
    assert received.texts == ["ab", "cde", "f"]


def test_flush_of_all_runs() -> None:
    """Hazard: only the last run's batch, or one text of two runs."""
    received = Received()
    handler = BatchStreamHandler(received.on_token, 99)
    one, other = (silent_model(prompt) for prompt in "ab")
    with running(one, handler), running(other, handler):
        for model in (one, other):
            eventually(partial(getattr, gate_of(model), "waiting"))
        handler("c")
        handler.flush()
        assert sorted(received.texts) == ["a", "b", "c"]


@PLAIN_AND_COROUTINE
def test_a_flush_is_the_runs_for_a_handler_within(*, is_async: bool) -> None:
    """Hazard: what it is given comes from no run, and so no end of a run delivers it."""
    received = Received(is_async=is_async)
    model = silent_model("a", "b")
    handler = BatchStreamHandler(BatchStreamHandler(received.on_token, 99), 99)
    with running(model, handler):
        eventually(lambda: gate_of(model).waiting)
        handler.flush()
        assert received.texts == []
    assert received.texts == ["abnever"]

    async def main() -> None:
        received.texts.clear()
        model = silent_model("a", "b")
        handler = BatchStreamHandler(BatchStreamHandler(received.on_token, 99), 99)
        async with running_in_task(model, handler):
            await eventually_async(lambda: gate_of(model).waiting)
            if is_async:
                await handler.flush()
            else:
                handler.flush()

    asyncio.run(main())
    assert received.texts == ["abnever"]


@PLAIN_AND_COROUTINE
def test_flush_on_a_loop(*, is_async: bool) -> None:
    """Hazard: a plain ``on_token`` has to be awaited, a coroutine function is not."""
    received = Received(is_async=is_async)
    model = silent_model("a", "b")

    async def main() -> None:
        handler = BatchStreamHandler(received.on_token, 99)
        async with running_in_task(model, handler):
            await eventually_async(lambda: gate_of(model).waiting)
            if is_async:
                await handler.flush()
            else:
                handler.flush()
            assert received.texts == ["ab"]

    asyncio.run(main())
    assert received.texts == ["ab", "never"]


@pytest.mark.parametrize("max_delay", [None, LONG])
@PLAIN_AND_COROUTINE
def test_a_run_waits_for_a_flush_in_another_thread(
    max_delay: float | None, monkeypatch: pytest.MonkeyPatch, *, is_async: bool
) -> None:
    """Promise 1.  Hazard: the next batch is delivered while that of the flush still is.

    1. the flush delivers, and stands still in ``on_token``;
    2. the run completes a batch and asks for the turn; it must not be in ``on_token``, too;
    3. the flush goes on, then the run.
    """
    received = Stalling(is_async=is_async)
    asked = turns_that_tell(received, monkeypatch)
    handler = BatchStreamHandler(received.on_token, 3, max_delay=max_delay)
    model = EchoChatModel(gate=Gate(2))
    with running(model, handler):
        eventually(lambda: gate_of(model).waiting)
        flush = threading.Thread(target=handler.flush)
        flush.start()
        eventually(lambda: received.gate.waiting)
        gate_of(model).open()
        assert asked.wait(5), "the run did not ask for its turn"
        received.gate.open()
        flush.join(10)
    assert received.texts == ["a0 a1 ", "a2 a3 a4 ", "a5 a6 "]
    assert received.most_inside == 1


def test_what_comes_during_a_flush_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 1.  Hazard: the flush takes the list to which a token is just being added.

    1. the flush has taken what waits;
    2. the run adds a token, for which it needs no turn;
    3. the flush goes on.
    """
    received = Received()
    handler = BatchStreamHandler(received.on_token, 99)

    class Tokens(deque[str]):
        def popleft(self) -> str:
            token = super().popleft()
            if token == "a":
                handler("b")
            return token

    handler("a")
    handler._direct[0].tokens = Tokens(["a"])
    handler.flush()
    assert received.texts == ["a"]
    handler.flush()
    assert received.texts == ["a", "b"]


@pytest.mark.timeout(20)
@INVOKE_AND_AINVOKE
@pytest.mark.parametrize("max_delay", [None, 0.0, LONG])
@PLAIN_AND_COROUTINE
def test_on_token_may_flush(way: Way, max_delay: float | None, *, is_async: bool) -> None:
    """Hazard: it waits for the turn that it has itself."""
    received = Received()
    handlers: list[BatchStreamHandler] = []

    def on_token(text: str) -> None:
        received.on_token(text)
        handlers[0].flush()

    async def on_token_async(text: str) -> None:
        await asyncio.sleep(0)
        received.on_token(text)
        await handlers[0].flush()

    def make() -> BatchStreamHandler:
        handlers.append(
            BatchStreamHandler(on_token_async if is_async else on_token, 3, max_delay=max_delay)
        )
        return handlers[0]

    way.run(EchoChatModel(), make)
    assert "".join(received.texts) == "".join(answer("a"))
    if max_delay != 0:
        assert received.texts == ["a0 a1 a2 ", "a3 a4 a5 ", "a6 "]


# -- max_delay: real timers ------------------------------------------------------------------------


@PLAIN_AND_COROUTINE
def test_a_silent_model_in_a_thread(*, is_async: bool) -> None:
    """Hazard: nobody looks at the clock before the next token."""
    received = Received(is_async=is_async)
    model = silent_model("a", "b")
    handler = BatchStreamHandler(received.on_token, 99, max_delay=A_LITTLE)
    with running(model, handler) as thread:
        eventually(lambda: "".join(received.texts) == "ab")
        assert thread.is_alive()
        assert thread.ident not in received.threads
    assert "".join(received.texts) == "abnever"
    eventually(lambda: not our_threads())


@PLAIN_AND_COROUTINE
def test_a_silent_model_in_a_task(*, is_async: bool) -> None:
    """Hazard: as above; and the delivery is on the run's own loop."""
    received = Received(is_async=is_async)
    model = silent_model("a", "b")

    async def main() -> None:
        async with running_in_task(
            model, BatchStreamHandler(received.on_token, 99, max_delay=A_LITTLE)
        ):
            await eventually_async(lambda: "".join(received.texts) == "ab")
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert "".join(received.texts) == "abnever"
    assert set(received.threads) == {threading.get_ident()}


@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
def test_not_before_the_delay_is_over(way: Way, *, is_async: bool) -> None:
    """Hazard: a timer that was set for a batch which has gone delivers the next too early."""
    begun: list[float] = []
    late: list[float] = []
    delay = 20 * A_LITTLE

    def on_token(text: str) -> None:
        if text == "c":
            late.append(monotonic())
            model.gate.open()  # type: ignore[union-attr]

    async def on_token_async(text: str) -> None:
        on_token(text)

    class Timed(BatchStreamHandler):
        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            if token == "c":
                begun.append(monotonic())
            super().on_llm_new_token(token, **kwargs)

    model = ScriptedChatModel(tokens=["a", "b", "c", "d"], gate=Gate(3))
    way.run(model, lambda: Timed(on_token_async if is_async else on_token, 2, max_delay=delay))
    assert late[0] - begun[0] >= delay


# -- max_delay: timers that the test sets off ------------------------------------------------------


class Clock:
    """A clock that the test sets, and the alarms that were set by it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.alarms: list[tuple[float, Callable[[], object]]] = []
        monkeypatch.setattr(batch, "monotonic", lambda: self.now)
        clock = self

        class Alarm(batch._Alarm):
            def set(self, delay: float) -> None:
                loop = asyncio.get_running_loop()
                ring = partial(loop.call_soon_threadsafe, self._ring)
                clock.alarms.append((clock.now + delay, ring))

        monkeypatch.setattr(batch, "_Alarm", Alarm)

    @property
    def due(self) -> list[float]:
        """When the alarms ring."""
        return [due for due, _ in self.alarms]

    def ring(self) -> None:
        """Let the time be that of the next alarm, and let it ring."""
        self.now, ring = self.alarms.pop(0)
        ring()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return a clock that the test sets."""
    return Clock(monkeypatch)


@PLAIN_AND_COROUTINE
def test_the_time_counts_from_the_first_token_that_waits(clock: Clock, *, is_async: bool) -> None:
    """Hazard: from the last one, or from the alarm before; two alarms at once; no second one.

    1. "a0" comes at 100, its alarm is set for 110;
    2. "a1" at 103 sets no other; "a2" at 105 completes the batch;
    3. "a3" at 107; the alarm of "a0" at 110 finds that too young, and is set for 117;
    4. at 117 "a3" and "a4" are delivered, in silence.
    """
    received = Received(is_async=is_async)
    model = EchoChatModel(gate=Gate())

    async def main() -> None:
        handler = BatchStreamHandler(received.on_token, 3, max_delay=10)
        async with running_in_task(model, handler):
            for now, due in ((100, [110]), (103, [110]), (105, [110]), (107, [110])):
                clock.now = now
                await step_async(model)
                await eventually_async(lambda: gate_of(model).waiting)
                assert clock.due == due
            assert received.texts == ["a0 a1 a2 "]
            clock.ring()
            await eventually_async(lambda: clock.due == [117])
            assert received.texts == ["a0 a1 a2 "]
            clock.now = 112
            await step_async(model)
            await eventually_async(lambda: gate_of(model).waiting)
            clock.ring()
            await eventually_async(lambda: len(received.texts) == 2)
            assert received.texts == ["a0 a1 a2 ", "a3 a4 "]
            assert clock.due == []

    asyncio.run(main())
    assert received.texts == ["a0 a1 a2 ", "a3 a4 ", "a5 a6 "]


@PLAIN_AND_COROUTINE
def test_the_same_in_threads(clock: Clock, *, is_async: bool) -> None:
    """Hazard: as above, where the alarm is the background loop's."""
    received = Received(is_async=is_async)
    model = EchoChatModel(gate=Gate())
    with running(model, BatchStreamHandler(received.on_token, 3, max_delay=10)):
        for now in (100, 103, 105, 107):
            clock.now = now
            step(model)
            eventually(lambda: gate_of(model).waiting)
            eventually(lambda: clock.due == [110])
        clock.ring()
        eventually(lambda: clock.due == [117])
        assert received.texts == ["a0 a1 a2 "]
        clock.ring()
        eventually(lambda: len(received.texts) == 2)
        assert received.texts == ["a0 a1 a2 ", "a3 "]
    assert received.texts == ["a0 a1 a2 ", "a3 ", "a4 a5 a6 "]


def test_the_run_waits_for_a_timed_delivery_in_a_thread(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 1.  Hazard: the next batch overtakes a slow delivery, or doubles it."""
    received = Stalling()
    asked = turns_that_tell(received, monkeypatch)
    model = EchoChatModel(gate=Gate())
    with running(model, BatchStreamHandler(received.on_token, 3, max_delay=10)):
        step(model)
        eventually(lambda: clock.due)
        clock.ring()
        eventually(lambda: received.gate.waiting)
        gate_of(model).open()
        assert asked.wait(5)
        received.gate.open()
    assert received.texts == ["a0 ", "a1 a2 a3 ", "a4 a5 a6 "]
    assert received.most_inside == 1


def test_the_run_waits_for_a_timed_delivery_in_a_task(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promises 1 and 5.  Hazard: as above; or the loop is held up meanwhile."""
    received = Stalling(is_async=True)
    asked = turns_that_tell(received, monkeypatch)
    model = EchoChatModel(gate=Gate())

    async def main() -> None:
        handler = BatchStreamHandler(received.on_token, 3, max_delay=10)
        async with running_in_task(model, handler):
            await step_async(model)
            await eventually_async(lambda: clock.due)
            clock.ring()
            await eventually_async(lambda: received.gate.waiting)
            gate_of(model).open()
            await eventually_async(asked.is_set)
            received.gate.open()

    asyncio.run(main())
    assert received.texts == ["a0 ", "a1 a2 a3 ", "a4 a5 a6 "]
    assert received.most_inside == 1


@PLAIN_AND_COROUTINE
@pytest.mark.parametrize("failure", [None, ValueError("no")])
def test_the_end_comes_while_a_timed_delivery_goes_on_in_a_thread(
    clock: Clock,
    failure: Exception | None,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_async: bool,
) -> None:
    """Promise 3.  Hazard: the run ends before its last text, or that comes twice, or never."""
    received = Stalling(is_async=is_async)
    asked = turns_that_tell(received, monkeypatch)
    model = silent_to_its_end("a", "b", failure=failure)
    ended = threading.Event()

    def run() -> None:
        handler = BatchStreamHandler(received.on_token, 99, max_delay=10)
        try:
            model.invoke("?", with_handler(handler))
        except ValueError:
            assert failure is not None
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: gate_of(model).waiting and clock.due)
    clock.ring()
    eventually(lambda: received.gate.waiting)
    gate_of(model).open()
    assert asked.wait(5)
    assert not ended.is_set()
    received.gate.open()
    thread.join(5)
    assert ended.is_set()
    assert received.texts == ["ab"]


@pytest.mark.parametrize("end", ["success", "failure", "cancellation"])
def test_the_end_comes_while_a_timed_delivery_goes_on_in_a_task(
    clock: Clock, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 3.  Hazard: as above; and a cancelled run cancels the delivery, too."""
    received = Stalling(is_async=True)
    asked = turns_that_tell(received, monkeypatch)
    model = silent_to_its_end("a", "b", failure=ValueError("no") if end == "failure" else None)

    async def main() -> None:
        handler = BatchStreamHandler(received.on_token, 99, max_delay=10)
        run = asyncio.create_task(model.ainvoke("?", with_handler(handler)))
        await eventually_async(lambda: gate_of(model).waiting and clock.due)
        clock.ring()
        await eventually_async(lambda: received.gate.waiting)
        if end == "cancellation":
            run.cancel()
        gate_of(model).open()
        await eventually_async(asked.is_set)
        received.gate.open()
        await asyncio.wait([run])
        await eventually_async(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    asyncio.run(main())
    assert received.texts == ["ab"]
    assert received.most_inside == 1


def test_synchronous_code_on_the_loop_on_which_a_timed_delivery_waits(clock: Clock) -> None:
    """Promise 5.  Hazard: a deadlock: it waits for its turn, and holds up the loop that has it."""
    received = Stalling(is_async=True)
    handler = BatchStreamHandler(received.on_token, 2, max_delay=10)  # not at home on that loop

    async def main() -> None:
        chunks = ScriptedChatModel(tokens=tokens(4)).stream("?", with_handler(handler))
        next(chunks)
        clock.ring()
        await eventually_async(lambda: received.gate.waiting)
        received.gate.release(3)  # of which the late one has one
        assert [chunk.text for chunk in chunks if chunk.text] == tokens(3, 1)
        received.gate.open()
        await eventually_async(lambda: len(received.texts) == 3)

    asyncio.run(main())
    assert sorted(received.texts) == ["t0 ", "t1 t2 ", "t3 "]


def test_a_token_that_waits_for_its_turn_when_the_run_is_cancelled(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 1.  Hazard: it is lost, being neither delivered nor kept."""
    received = Stalling(is_async=True)
    asked = turns_that_tell(received, monkeypatch)
    model = EchoChatModel(gate=Gate())

    async def main() -> None:
        handler = BatchStreamHandler(received.on_token, 99, max_delay=10)
        run = asyncio.create_task(model.ainvoke("a", with_handler(handler)))
        await step_async(model)
        await eventually_async(lambda: clock.due)
        clock.ring()
        await eventually_async(lambda: received.gate.waiting)
        await step_async(model)
        await eventually_async(asked.is_set)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        received.gate.open()
        await eventually_async(lambda: len(received.texts) == 2)

    asyncio.run(main())
    assert received.texts == ["a0 ", "a1 "]


@PLAIN_AND_COROUTINE
def test_an_alarm_that_rings_after_the_end(clock: Clock, *, is_async: bool) -> None:
    """Hazard: it delivers what was delivered, or makes a task or thread for nothing."""
    received = Received(is_async=is_async)
    made: list[str] = []

    async def main() -> None:
        handler = BatchStreamHandler(received.on_token, 99, max_delay=10)
        await EchoChatModel().ainvoke("a", with_handler(handler))
        assert clock.due == [110]
        clock.ring()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    handler = BatchStreamHandler(received.on_token, 99, max_delay=10)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(batch, "start_daemon", lambda name, _: made.append(name))
        EchoChatModel().invoke("b", with_handler(handler))
        eventually(lambda: clock.due)
        clock.ring()
        EchoChatModel().invoke("c", with_handler(handler))  # and its alarm comes after
        eventually(lambda: clock.due)
    assert made == []
    assert received.texts == ["".join(answer(prompt)) for prompt in "abc"]


class _Big:
    """Something that a caller has in its context."""


_of_the_caller: contextvars.ContextVar[Any] = contextvars.ContextVar("of the caller")


@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
def test_nothing_is_kept_until_an_alarm_would_have_rung(way: Way, *, is_async: bool) -> None:
    """Promise 9.  Hazard: the timer has the handler, the run or the caller's context till then.

    The run has ended; the loop that has the timer goes on.
    """
    kept: list[weakref.ref[Any]] = []

    def make() -> tuple[Any, BatchStreamHandler]:
        big = _Big()
        on_token = Received(is_async=is_async).on_token
        handler = BatchStreamHandler(on_token, 99, max_delay=LONG)
        kept.extend([weakref.ref(big), weakref.ref(handler)])
        _of_the_caller.set(big)
        return EchoChatModel(), handler

    def run() -> None:
        model, handler = make()
        model.invoke("a", with_handler(handler))

    async def run_in_task() -> None:
        model, handler = make()
        await model.ainvoke("a", with_handler(handler))

    def is_gone() -> bool:
        gc.collect()
        return all(ref() is None for ref in kept)

    async def main() -> None:
        await asyncio.create_task(run_in_task())
        await eventually_async(is_gone)

    if way.is_async:
        asyncio.run(main())
    else:
        contextvars.copy_context().run(run)
        eventually(is_gone)
    assert len(kept) == 2


def test_an_alarm_of_before_a_fork(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 8.  Hazard: the child waits for a timer that is its parent's."""
    received = Received()
    handler = BatchStreamHandler(received.on_token, 99, max_delay=10)
    handler("a")
    eventually(lambda: clock.due == [110])
    here = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: here + 1)
    handler("b")
    eventually(lambda: clock.due == [110, 110])


@pytest.mark.parametrize("way", ["thread", "task"])
def test_each_run_has_an_alarm_of_its_own(clock: Clock, way: str) -> None:
    """Hazard: the alarm of one is taken for the other's, whose tokens wait too long."""
    received = Received()
    models = [silent_model("a"), silent_model("b")]
    handler = BatchStreamHandler(received.on_token, 99, max_delay=10)

    async def tasks() -> None:
        async with running_in_task(models[0], handler):
            await eventually_async(lambda: clock.due == [110])
            clock.now = 105
            async with running_in_task(models[1], handler):
                await eventually_async(lambda: clock.due == [110, 115])
                clock.ring()
                await eventually_async(lambda: received.texts == ["a"])
                clock.ring()
                await eventually_async(lambda: received.texts == ["a", "b"])

    def threads() -> None:
        with running(models[0], handler):
            eventually(lambda: clock.due == [110])
            clock.now = 105
            with running(models[1], handler):
                eventually(lambda: clock.due == [110, 115])
                clock.ring()
                eventually(lambda: received.texts == ["a"])
                clock.ring()
                eventually(lambda: received.texts == ["a", "b"])

    if way == "thread":
        threads()
    else:
        asyncio.run(tasks())
    assert sorted(received.texts[2:]) == ["never", "never"]


# -- max_delay: errors -----------------------------------------------------------------------------


def silent_to_its_end(*texts: str, failure: Exception | None = None) -> ScriptedChatModel:
    """Return a model that gives some tokens, and waits at its gate before it ends or fails."""
    return ScriptedChatModel(
        tokens=[*texts, ""], gate=Gate(len(texts)), failure=failure, fail_at=len(texts)
    )


class Failing(Received):
    """Notes each text, and raises."""

    def _plain(self, text: str) -> None:
        super()._plain(text)
        raise OSError(f"the callback's, of {text!r}")


@PLAIN_AND_COROUTINE
@pytest.mark.parametrize("raise_error", [False, True])
@pytest.mark.parametrize("is_last", [False, True])
def test_an_error_of_a_timed_delivery_in_a_thread(
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    *,
    is_async: bool,
    raise_error: bool,
    is_last: bool,
) -> None:
    """Hazard: nobody is there to raise it to.  It is raised at the next token, or at the end."""
    received = Failing(is_async=is_async)
    model = silent_to_its_end("a") if is_last else silent_model("a")
    handler = BatchStreamHandler(received.on_token, 99, max_delay=10, raise_error=raise_error)

    def run() -> None:
        with running(model, handler):
            eventually(lambda: clock.due)
            clock.ring()
            eventually(lambda: received.texts == ["a"])

    if raise_error:
        with pytest.raises(OSError, match="the callback's, of 'a'"):
            run()
        assert received.texts == ["a"]
    else:
        run()
        assert received.texts == (["a"] if is_last else ["a", "never"])
        assert "a late delivery failed" in caplog.text
        assert "the callback's, of 'a'" in caplog.text


@PLAIN_AND_COROUTINE
@pytest.mark.parametrize("raise_error", [False, True])
@pytest.mark.parametrize("is_last", [False, True])
def test_an_error_of_a_timed_delivery_in_a_task(
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    *,
    is_async: bool,
    raise_error: bool,
    is_last: bool,
) -> None:
    """Hazard: as above."""
    received = Failing(is_async=is_async)
    model = silent_to_its_end("a") if is_last else silent_model("a")

    async def main() -> None:
        handler = BatchStreamHandler(received.on_token, 99, max_delay=10, raise_error=raise_error)
        async with running_in_task(model, handler):
            await eventually_async(lambda: clock.due)
            clock.ring()
            await eventually_async(lambda: received.texts == ["a"])

    if raise_error:
        with pytest.raises(OSError, match="the callback's, of 'a'"):
            asyncio.run(main())
        assert received.texts == ["a"]
    else:
        asyncio.run(main())
        assert received.texts == (["a"] if is_last else ["a", "never"])
        assert "a late delivery failed" in caplog.text


@PLAIN_AND_COROUTINE
def test_an_error_of_a_timed_delivery_that_a_token_waits_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, *, is_async: bool
) -> None:
    """Hazard: the token at which it is raised is delivered, or not, as the threads have it."""

    class StallsAndFails(Stalling):
        def _enter(self) -> None:
            super()._enter()
            self.texts.append("tried")

        def _plain(self, text: str) -> None:
            self._enter()
            self.gate.wait()
            raise OSError("the callback's")

        async def _coroutine(self, text: str) -> None:
            self._enter()
            await self.gate.wait_async()
            raise OSError("the callback's")

    received = StallsAndFails(is_async=is_async)
    asked = turns_that_tell(received, monkeypatch)
    model = silent_model("a")
    handler = BatchStreamHandler(received.on_token, 99, max_delay=10, raise_error=True)

    def run() -> None:
        with running(model, handler):
            eventually(lambda: clock.due)
            clock.ring()
            eventually(lambda: received.gate.waiting)
            gate_of(model).open()
            assert asked.wait(5)
            received.gate.open()

    with pytest.raises(OSError, match="the callback's"):
        run()
    assert received.texts == ["tried"]


class Exiting(Received):
    """Notes each text, and raises what is no Exception."""

    def __init__(self, error: type[BaseException], *, is_async: bool) -> None:
        super().__init__(is_async=is_async)
        self.error = error

    def _plain(self, text: str) -> None:
        super()._plain(text)
        raise self.error(text)


@PLAIN_AND_COROUTINE
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_a_timed_delivery_in_a_task(
    clock: Clock, error: type[BaseException], *, is_async: bool
) -> None:
    """Promise 5.  Hazard: it ends the loop, and with the background loop all streams on it."""
    received = Exiting(error, is_async=is_async)
    model = silent_model("a")

    async def main() -> None:
        handler = BatchStreamHandler(received.on_token, 99, max_delay=10)
        run = stream(model, "?", with_handler(handler), run_in="task")
        assert await anext(run) == "a"
        clock.ring()
        await eventually_async(lambda: received.texts == ["a"])
        for _ in range(3):
            await asyncio.sleep(0)
        gate_of(model).open()
        with pytest.raises(error, match="a"):
            await anext(run)

    with loop_thread() as elsewhere:  # a KeyboardInterrupt in the main thread is Ctrl-C
        elsewhere.run(main())


@PLAIN_AND_COROUTINE
def test_ctrl_c_in_a_timed_delivery(clock: Clock, *, is_async: bool) -> None:
    """Hazard: it is put aside for a model that is silent."""
    received = Exiting(KeyboardInterrupt, is_async=is_async)

    async def main() -> None:
        handler = BatchStreamHandler(received.on_token, 99, max_delay=10)
        async with running_in_task(silent_model("a"), handler):
            await eventually_async(lambda: clock.due)
            clock.ring()
            await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt, match="a"):
        asyncio.run(main())


@PLAIN_AND_COROUTINE
def test_an_exit_in_a_timed_delivery_of_a_run_that_is_cancelled_then(
    clock: Clock, caplog: pytest.LogCaptureFixture, *, is_async: bool
) -> None:
    """Hazard: nobody is left to raise it to, and it ends the loop after all."""
    received = Exiting(SystemExit, is_async=is_async)

    async def main() -> None:
        handler = BatchStreamHandler(received.on_token, 99, max_delay=10)
        run = asyncio.create_task(silent_model("a").ainvoke("?", with_handler(handler)))
        await eventually_async(lambda: clock.due)
        clock.ring()
        await eventually_async(lambda: received.texts == ["a"])
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await eventually_async(lambda: "SystemExit: a" in caplog.text)

    asyncio.run(main())


@pytest.mark.parametrize("last", ["", "b"], ids=["it has ended", "it has failed"])
def test_an_error_of_a_timed_delivery_after_the_end(
    last: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Hazard: it is kept for a run that is over.  Synchronous code does not wait for a loop."""
    gate = Gate()

    async def on_token(text: str) -> None:
        if text == last:
            raise ValueError("of the end")
        await gate.wait_async()
        raise OSError("the callback's")

    handler = BatchStreamHandler(on_token, 99, max_delay=10, raise_error=True)

    async def main() -> None:
        chunks = ScriptedChatModel(tokens=["a", last]).stream("?", with_handler(handler))
        next(chunks)
        clock.ring()
        await eventually_async(lambda: gate.waiting)
        with pytest.raises(ValueError, match="of the end") if last else nullcontext():
            list(chunks)
        gate.open()
        await eventually_async(lambda: "the callback's" in caplog.text)

    asyncio.run(main())


def test_the_consumer_of_a_queue_has_gone_when_a_thread_delivers_late(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 4.  Hazard: it stops the timer's thread, of which nobody hears, and not the run."""
    queue = QueueStreamHandler()
    model = ScriptedChatModel(tokens=["a", "b", "c"], gate=Gate(1))
    delivered = threading.Event()

    def start_daemon(name: str, work: Callable[[], object]) -> None:
        def work_and_tell() -> None:
            work()
            delivered.set()

        _background.start_daemon(name, work_and_tell)

    monkeypatch.setattr(batch, "start_daemon", start_daemon)

    def run() -> None:
        with running(model, BatchStreamHandler(queue, 99, max_delay=10)):
            eventually(lambda: clock.due)
            queue.close()
            clock.ring()
            assert delivered.wait(5)

    with pytest.raises(RunStopped):
        run()
    assert model.record.produced == 2
    assert model.record.open == 0


def test_the_consumer_of_a_queue_has_gone_when_a_task_delivers_late(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 4.  Hazard: as above."""
    noted: list[Exception] = []
    note_late = BatchStreamHandler._note_late

    def note(handler: BatchStreamHandler, state: Any, error: Exception) -> None:
        note_late(handler, state, error)
        noted.append(error)

    monkeypatch.setattr(BatchStreamHandler, "_note_late", note)
    queue = QueueStreamHandler()
    model = ScriptedChatModel(tokens=["a", "b", "c"], gate=Gate(1))

    async def main() -> None:
        async with running_in_task(model, BatchStreamHandler(queue, 99, max_delay=10)):
            await eventually_async(lambda: clock.due)
            queue.close()
            clock.ring()
            await eventually_async(lambda: noted)

    with pytest.raises(StreamClosedError):
        asyncio.run(main())
    assert model.record.produced == 2
    assert model.record.open == 0


# -- at once -----------------------------------------------------------------------------------


def test_batches_of_calls_that_overlap() -> None:
    """Hazard: what comes while a delivery is waited for is one batch, however much it is."""
    received: list[str] = []

    async def on_token(text: str) -> None:
        await asyncio.sleep(0)
        received.append(text)

    async def main() -> None:
        handler = BatchStreamHandler(on_token, 2)
        await asyncio.gather(*(handler(token) for token in "abcdefg"))
        await handler.flush()

    asyncio.run(main())
    assert received == ["ab", "cd", "ef", "g"]


def test_a_batch_that_is_taken_twice_at_once() -> None:
    """Promise 1.  Hazard: a token in both, and another in neither.

    Who does not wait for the turn may take in the middle of one who has it.
    """
    state = batch._Batch(None)
    both: list[str] = []

    class Interrupted(deque[str]):
        def popleft(self) -> str:
            token = super().popleft()
            if token == "b":
                both.extend(state.take())
            return token

    state.tokens = Interrupted("abcd")
    both.extend(state.take())
    assert sorted("".join(both)) == ["a", "b", "c", "d"]


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, given, error, says",
    [
        ("batch_size", 0, ValueError, "batch_size must be 1 or more, not 0"),
        ("batch_size", -1, ValueError, "batch_size must be 1 or more, not -1"),
        ("batch_size", 1.5, TypeError, "batch_size must be an int, not 1.5"),
        ("batch_size", True, TypeError, "batch_size must be an int, not True"),
        ("batch_size", None, TypeError, "batch_size must be an int, not None"),
        ("max_delay", -0.1, ValueError, "max_delay must be 0 seconds or more, or None; not -0.1"),
        ("max_delay", float("nan"), ValueError, "max_delay must be 0 seconds or more"),
        ("max_delay", "1", TypeError, "max_delay must be a number of seconds or None, not '1'"),
        ("max_delay", True, TypeError, "max_delay must be a number of seconds or None, not True"),
    ],
)
def test_bad_arguments(name: str, given: Any, error: type[Exception], says: str) -> None:
    options: dict[str, Any] = {name: given}
    with pytest.raises(error, match=says):
        BatchStreamHandler(print, **options)


def test_an_endless_delay_is_none() -> None:
    assert BatchStreamHandler(print, max_delay=float("inf")).max_delay is None
