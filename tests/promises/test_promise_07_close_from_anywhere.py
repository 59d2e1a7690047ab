"""Promise 7: a stop takes no lock, and nothing is left open while the consumer's body runs."""

from __future__ import annotations

import gc
import inspect
import signal
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from langchain_core.runnables import RunnableLambda

from queuestream import QueueStreamHandler
from queuestream.errors import StreamClosedError
from queuestream.producers import TaskRun, ThreadRun
from tests.support.consumers import in_another_thread
from tests.support.gates import Gate, eventually
from tests.support.models import ScriptedChatModel, tokens
from tests.support.signals import needs_signals, signals_when
from tests.support.streams import (
    CASES,
    DEFAULT_CASES,
    STREAM_CASES,
    getters_of,
    is_blocked,
    queue_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.streams import Case


def closer_of(case: Case, running: Any) -> Callable[[], None]:
    """Return what closes a run, by its stream or by its handler."""
    close: Callable[[], None] = running.close if case.is_stream else running._handler.close
    return close


class InterruptedLock:
    """A lock whose holder is interrupted, on its own thread, once.

    A signal handler and a finalizer can come between any two steps; here one comes right
    after the lock was taken, or right before it is released.
    """

    def __init__(self, lock: Any, interruption: Callable[[], object], when: str) -> None:
        self._lock = lock
        self._interruption: Callable[[], object] | None = interruption
        self._when = when

    def _interrupt(self) -> None:
        interruption, self._interruption = self._interruption, None
        if interruption is not None:
            interruption()

    def acquire(self, blocking: bool = True) -> bool:
        # Step 1: the lock is taken.
        taken: bool = self._lock.acquire(blocking)
        # Step 2: its holder is interrupted.
        if taken and self._when == "taken":
            self._interrupt()
        return taken

    def release(self) -> None:
        if self._when == "released":
            self._interrupt()
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


# -- from where ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_from_another_thread_while_the_consumer_waits(case: Case) -> None:
    """Hazard: the consumer is not woken, or takes the close for the end."""
    model = ScriptedChatModel(tokens=tokens(4), gate=Gate(2))

    async def scenario() -> None:
        async with case.running(model) as running:
            assert await case.consumer.take(running, 2) == tokens(2)

            def close_when_it_waits() -> None:
                if case.queue == "default":
                    eventually(lambda: getters_of(running) == 1)
                closer_of(case, running)()

            thread = in_another_thread(close_when_it_waits)
            with pytest.raises(StreamClosedError):
                await case.consumer.next(running)
            await case.consumer.wait(thread.join)

    case.consumer.run(scenario)


@pytest.mark.parametrize("when", ["taken", "released"])
@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_while_the_consumer_holds_the_lock(case: Case, when: str) -> None:
    """Hazard: a finalizer or signal handler waits for a lock that its own thread holds."""
    model = ScriptedChatModel(tokens=tokens(50))

    async def scenario() -> None:
        async with case.running(model, maxsize=8) as running:
            await case.consumer.eventually(lambda: is_blocked(running))
            buffer = queue_of(running).buffer
            buffer._lock = InterruptedLock(buffer._lock, closer_of(case, running), when)
            with suppress(StreamClosedError):
                await case.consumer.next(running)
            # The token that it may have taken makes too little room to wake the producer, and
            # nobody but the interrupted holder comes by to release it.
            await case.consumer.wait(model.record.wait_until_finalized)
            with pytest.raises(StreamClosedError):
                await case.consumer.next(running)

    case.consumer.run(scenario)
    assert model.record.produced <= 8 + 1


@pytest.mark.parametrize("when", ["taken", "released"])
@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_while_the_producer_holds_the_lock(case: Case, when: str) -> None:
    """Hazard: the same on the producer's thread; the consumer waits for an item meanwhile."""
    gate = Gate(1)
    model = ScriptedChatModel(tokens=tokens(50), gate=gate)

    async def scenario() -> None:
        async with case.running(model, maxsize=2) as running:
            assert await case.consumer.take(running, 1) == tokens(1)

            def let_it_produce() -> None:
                eventually(lambda: getters_of(running) == 1)
                buffer = queue_of(running).buffer
                buffer._lock = InterruptedLock(buffer._lock, closer_of(case, running), when)
                gate.open()

            thread = in_another_thread(let_it_produce)
            with pytest.raises(StreamClosedError):
                await case.consumer.take(running, 3)
            await case.consumer.wait(thread.join)
            await case.consumer.wait(model.record.wait_until_finalized)

    case.consumer.run(scenario)
    assert model.record.produced <= 1 + 2


@pytest.mark.parametrize("case", STREAM_CASES)
def test_while_it_starts(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard: a close that comes before there is a thread or task to stop is lost."""
    model = ScriptedChatModel(tokens=tokens(500))
    answers: list[Any] = []

    def closing(start: Callable[[Any], None], run: Any) -> None:
        answers[0].close()
        start(run)

    for kind, name in (
        (ThreadRun, "start"),
        (TaskRun, "start_here"),
        (TaskRun, "start_in_background"),
    ):
        monkeypatch.setattr(kind, name, partialmethod_of(closing, getattr(kind, name)))

    async def scenario() -> None:
        answers.append(case.stream(model, maxsize=1))
        with pytest.raises(StreamClosedError):
            await case.consumer.next(answers[0])
        run = answers[0]._run
        await case.consumer.eventually(lambda: run.gone._set)

    case.consumer.run(scenario)
    assert model.record.produced <= 1
    assert model.record.open == 0


def partialmethod_of(
    wrapper: Callable[[Any, Any], None], original: Callable[[Any], None]
) -> Callable[[Any], None]:
    """Return a method that calls ``wrapper(original, self)``."""

    def method(self: Any) -> None:
        wrapper(original, self)

    return method


@pytest.mark.parametrize("case", STREAM_CASES)
def test_from_a_finalizer_that_the_collector_runs(case: Case) -> None:
    """Hazard: the collector can run in any allocation, on any thread, in any lock."""
    model = ScriptedChatModel(tokens=tokens(500))

    class Owner:
        """Owns a stream, in a cycle."""

        def __init__(self, answer: object) -> None:
            self.answer = answer
            self.itself = self

    async def scenario() -> None:
        owner: Any = Owner(case.stream(model, maxsize=1))
        await case.consumer.take(owner.answer, 3)
        del owner
        await case.consumer.wait(lambda: gc.collect() and None)
        await case.consumer.wait(model.record.wait_until_finalized)

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", STREAM_CASES)
def test_from_the_run_itself(case: Case) -> None:
    """Hazard: it waits for its own end."""
    answers: list[Any] = []
    ends: list[type[BaseException] | None] = []
    model = ScriptedChatModel(tokens=tokens(50))

    def work(text: str, config: Any) -> str:
        model.invoke(text, config)
        answers[0].close()
        ends.append(None)
        model.invoke(text, config)
        return "never"

    async def awork(text: str, config: Any) -> str:
        await model.ainvoke(text, config)
        ends.append(None)
        await answers[0].aclose()
        await model.ainvoke(text, config)
        return "never"

    async def scenario() -> None:
        answers.append(case.stream(RunnableLambda(work, awork)))
        received = []
        with pytest.raises(StreamClosedError):
            while True:
                received.append(await case.consumer.next(answers[0]))
        assert received == tokens(len(received))
        await case.consumer.eventually(lambda: answers[0]._run.gone._set)

    case.consumer.run(scenario)
    assert ends == [None]
    assert model.record.produced == 50


def it_waits(running: Any) -> None:
    """Block the thread until a consumer waits."""
    eventually(lambda: getters_of(running) == 1)


@needs_signals
@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_from_a_signal_handler_that_interrupts_the_waiting_consumer(case: Case) -> None:
    """Hazard: the loop sleeps on in its ``select`` after a wake-up from its own thread."""
    model = ScriptedChatModel(tokens=tokens(4), gate=Gate(2))

    async def scenario() -> None:
        async with case.running(model) as running:
            close = closer_of(case, running)
            assert await case.consumer.take(running, 2) == tokens(2)
            with (
                signals_when(partial(it_waits, running), lambda *_: close()),
                pytest.raises(StreamClosedError),
            ):
                await case.consumer.next(running)

    case.consumer.run(scenario)


@needs_signals
@pytest.mark.parametrize(
    "case", [case for case in DEFAULT_CASES if case.values[0].consumer.name == "for"]
)
def test_an_exception_out_of_a_signal_handler_loses_nothing(case: Case) -> None:
    """Hazard: Ctrl-C in ``next`` leaves the consumer marked as waiting, or eats a token."""
    gate = Gate(2)
    model = ScriptedChatModel(tokens=tokens(4), gate=gate)

    async def scenario() -> None:
        async with case.running(model) as running:
            assert await case.consumer.take(running, 2) == tokens(2)
            with (
                signals_when(partial(it_waits, running), signal.default_int_handler),
                pytest.raises(KeyboardInterrupt),
            ):
                await case.consumer.next(running)
            gate.open()
            assert await case.consumer.collect(running) == tokens(2, start=2)

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", CASES)
def test_before_during_and_after_any_number_of_times(case: Case) -> None:
    model = ScriptedChatModel(tokens=tokens(3))

    async def scenario() -> None:
        if case.is_stream:
            early = case.stream(model)
            await case.consumer.close(early)
            await case.consumer.close(early)
            with pytest.raises(StreamClosedError):
                await case.consumer.next(early)
        async with case.running(model) as running:
            assert await case.consumer.collect(running) == tokens(3)
            closer_of(case, running)()
            closer_of(case, running)()
        if case.is_stream:
            assert running.result.content == "".join(tokens(3))
            with pytest.raises(StopAsyncIteration):
                await case.consumer.next(running)

    case.consumer.run(scenario)
    assert model.record.calls == 1


# -- nothing is open across a yield ----------------------------------------------------------------


def test_iterators_are_classes() -> None:
    """Hazard: a generator that is dropped runs its clean-up wherever the collector does."""
    case: Case = STREAM_CASES[0].values[0]
    answer = case.stream(ScriptedChatModel(tokens=tokens(1)))
    handler = QueueStreamHandler()
    for iterator in (iter(answer), aiter_of(answer), iter(handler), aiter_of(handler)):
        assert not inspect.isgenerator(iterator)
        assert not inspect.isasyncgen(iterator)
    assert iter(answer) is aiter_of(answer) is answer


def aiter_of(iterable: Any) -> Any:
    """Do what ``aiter`` does; the checkers know of no class that is both."""
    return type(iterable).__aiter__(iterable)


@pytest.mark.parametrize(
    "case", [case for case in STREAM_CASES if case.values[0].consumer.is_async]
)
def test_entered_iterated_and_left_in_three_tasks(case: Case) -> None:
    """Hazard: a cancel scope must be left in the task that entered it."""
    model = ScriptedChatModel(tokens=tokens(4))

    async def scenario() -> None:
        answer = case.stream(model)
        received: list[str] = []

        async def enter() -> None:
            await answer.__aenter__()

        async def iterate() -> None:
            received.append(await answer.__anext__())

        async def leave() -> None:
            await answer.__aexit__(None, None, None)

        for step in (enter, iterate, iterate, leave):
            async with anyio.create_task_group() as group:
                group.start_soon(step)
        assert received == tokens(2)

    case.consumer.run(scenario)


@pytest.mark.parametrize(
    "case", [case for case in STREAM_CASES if case.values[0].consumer.is_async]
)
def test_inside_an_async_generator_that_another_task_closes(case: Case) -> None:
    """Hazard: frameworks close such generators in a task of their own."""
    model = ScriptedChatModel(tokens=tokens(50))

    async def generate() -> AsyncIterator[str]:
        async with case.stream(model, maxsize=1) as answer:
            async for token in answer:
                yield token

    async def scenario() -> None:
        generator: Any = generate()

        async def close() -> None:  # anyio 4.11 takes coroutine functions only
            await generator.aclose()

        with anyio.CancelScope():  # whatever is open around it
            assert await generator.__anext__() == tokens(1)[0]
        async with anyio.create_task_group() as group:
            group.start_soon(close)
        await case.consumer.wait(model.record.wait_until_finalized)

    case.consumer.run(scenario)


@pytest.mark.parametrize(
    "case", [case for case in STREAM_CASES if case.values[0].consumer.is_async]
)
def test_a_cancelled_scope_hits_the_consumer_only(case: Case) -> None:
    """Hazard: the run belongs to the scope in which it happened to start."""
    gate = Gate(1)
    model = ScriptedChatModel(tokens=tokens(3), gate=gate)

    async def scenario() -> None:
        answer = case.stream(model)
        with anyio.CancelScope():
            assert await case.consumer.next(answer) == tokens(1)[0]
        with anyio.CancelScope() as scope:
            scope.cancel()
            await case.consumer.next(answer)
        assert scope.cancelled_caught
        gate.open()
        assert await case.consumer.collect(answer) == tokens(2, start=1)

    case.consumer.run(scenario)
