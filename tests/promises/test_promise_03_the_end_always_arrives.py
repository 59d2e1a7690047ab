"""Promise 3: the consumer gets the buffered items, then the end or the error."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda, RunnableParallel

from queuestream import _background, stream
from queuestream.errors import RunCancelledError
from tests.support.endings import A_MOMENT, ending, put_no_end
from tests.support.gates import Gate, eventually
from tests.support.models import ScriptedChatModel, tokens
from tests.support.streams import CASES, DEFAULT_CASES, STREAM_CASES, is_blocked, queue_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.consumers import Consumer
    from tests.support.streams import Case


class Fatal(BaseException):
    """Neither an Exception nor one that Python or LangChain knows."""


async def received_and_error(
    consumer: Consumer,
    running: Any,
    kind: type[BaseException] = BaseException,
    within: float = 10.0,
) -> tuple[list[str], BaseException]:
    """Iterate to the end; what came before it, and what was raised there."""
    received, error = await ending(consumer, running, within)
    if not isinstance(error, kind):
        raise AssertionError(f"no {kind.__name__} after {received}") from error
    return received, error


def was_raised_in(error: BaseException, function: str) -> bool:
    """Whether the traceback still shows where the error comes from."""
    return any(frame.name == function for frame in traceback.extract_tb(error.__traceback__))


# -- errors of the model ----------------------------------------------------------------------


@pytest.mark.parametrize("maxsize", [1, 256])
@pytest.mark.parametrize("position", [0, 3, 6], ids=["first", "middle", "after the last"])
@pytest.mark.parametrize("case", CASES)
def test_the_models_own_error_after_the_tokens_before_it(
    case: Case, position: int, maxsize: int
) -> None:
    """Hazard: the error overtakes tokens, is wrapped, or loses where it comes from."""
    failure = ValueError("the model's own")
    model = ScriptedChatModel(tokens=tokens(6), failure=failure, fail_at=position)

    async def scenario() -> None:
        async with case.running(model, maxsize=maxsize) as running:
            received, error = await received_and_error(case.consumer, running)
        assert received == tokens(position)
        assert error is failure
        assert was_raised_in(error, "_fail_if_due")
        assert error.__context__ is None
        assert error.__cause__ is None

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_an_error_into_a_full_queue(case: Case) -> None:
    """Hazard: the sentinel waits for a free slot, and the consumer for the sentinel."""
    failure = ValueError("the model's own")
    model = ScriptedChatModel(tokens=tokens(4), failure=failure, fail_at=4)

    async def scenario() -> None:
        async with case.running(model, maxsize=4) as running:
            await case.consumer.wait(lambda: model.record.wait_until_produced(4))
            await case.consumer.wait(model.record.wait_until_finalized)
            assert queue_of(running)._sync_q.full()
            received, error = await received_and_error(case.consumer, running)
        assert (received, error) == (tokens(4), failure)

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", CASES)
def test_the_end_into_a_full_queue(case: Case) -> None:
    """Hazard: the sentinel waits for a free slot; or pushes an item out."""
    model = ScriptedChatModel(tokens=tokens(4))

    async def scenario() -> None:
        async with case.running(model, maxsize=4) as running:
            await case.consumer.wait(lambda: model.record.wait_until_produced(4))
            await case.consumer.wait(model.record.wait_until_finalized)
            assert await case.consumer.collect(running) == tokens(4)

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", CASES)
def test_the_end_wakes_a_consumer_that_waits(case: Case) -> None:
    gate = Gate(2)
    model = ScriptedChatModel(tokens=tokens(2), gate=gate, failure=ValueError(), fail_at=2)

    async def scenario() -> None:
        async with case.running(model) as running:
            received, error = await received_and_error(case.consumer, running)
        assert (received, error) == (tokens(2), model.failure)

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", CASES)
def test_a_run_without_any_token(case: Case) -> None:
    target: RunnableLambda[str, str] = RunnableLambda(str.upper)

    async def scenario() -> list[str]:
        async with case.running(target) as running:
            return await case.consumer.collect(running)

    assert case.consumer.run(scenario) == []


@pytest.mark.parametrize("case", CASES)
def test_after_the_end_there_is_nothing_more(case: Case) -> None:
    """Hazard: a second look at the end waits for ever, or raises the error again."""
    model = ScriptedChatModel(tokens=tokens(1), failure=ValueError(), fail_at=1)

    async def scenario() -> None:
        async with case.running(model) as running:
            await received_and_error(case.consumer, running, ValueError)
            for _ in range(2):
                with pytest.raises(StopAsyncIteration):
                    await case.consumer.next(running)

    case.consumer.run(scenario)


# -- what is no ordinary error ------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Fatal])
@pytest.mark.parametrize("case", STREAM_CASES)
def test_the_models_fatal_error_is_raised_in_the_consumer(
    case: Case, kind: type[BaseException]
) -> None:
    """Hazard: KeyboardInterrupt and SystemExit tear through the loop that the run is on."""
    failure = kind("the model's own")
    model = ScriptedChatModel(tokens=tokens(4), failure=failure, fail_at=2)
    chain = RunnableLambda(lambda text: text) | model | StrOutputParser()

    async def scenario() -> None:
        async with case.running(chain, maxsize=1) as running:
            received, error = await received_and_error(case.consumer, running)
        assert received == tokens(2)
        assert error is failure
        assert was_raised_in(error, "_fail_if_due")

    case.consumer.run(scenario)  # and the loop has survived up to its own end


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Fatal])
@pytest.mark.parametrize("case", STREAM_CASES)
def test_the_targets_fatal_error_is_raised_in_the_consumer(
    case: Case, kind: type[BaseException]
) -> None:
    failure = kind("the target's own")

    def work(text: str) -> str:
        raise failure

    async def awork(text: str) -> str:
        raise failure

    async def scenario() -> None:
        async with case.running(RunnableLambda(work, awork), maxsize=1) as running:
            received, error = await received_and_error(case.consumer, running)
        assert (received, error) == ([], failure)
        assert was_raised_in(error, "work") or was_raised_in(error, "awork")

    case.consumer.run(scenario)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("case", STREAM_CASES)
def test_the_fatal_error_of_a_later_branch(case: Case, kind: type[BaseException]) -> None:
    """Hazard: only the first task that a step of the run makes is kept from the loop."""
    failure = kind("the branch's own")

    async def work(text: str) -> str:
        return text

    async def fail(text: str) -> str:
        await asyncio.sleep(0)
        raise failure

    branches = {name: RunnableLambda(str, fail if name == "c" else work) for name in "abcd"}
    if case.is_sync:
        failing = ScriptedChatModel(tokens=[], failure=failure, fail_at=0)
        branches["c"] = cast("Any", failing)

    async def scenario() -> None:
        async with case.running(RunnableParallel(dict(branches))) as running:
            received, error = await received_and_error(case.consumer, running)
        assert (received, error) == ([], failure)

    case.consumer.run(scenario)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Fatal])
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.values[0].producer == "handler-invoke"]
)
def test_a_handler_tells_of_a_fatal_error(case: Case, kind: type[BaseException]) -> None:
    failure = kind("the model's own")
    model = ScriptedChatModel(tokens=tokens(4), failure=failure, fail_at=2)

    async def scenario() -> None:
        async with case.running(model, maxsize=1) as running:
            received, error = await received_and_error(case.consumer, running)
        assert (received, error) == (tokens(2), failure)

    case.consumer.run(scenario)


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit])
@pytest.mark.parametrize("case", STREAM_CASES)
def test_an_impostor_of_the_end_is_told_from_the_end(case: Case, kind: type[BaseException]) -> None:
    """Hazard: ``raise StopIteration`` in ``__next__`` looks like a run that went well."""
    failure = kind("the target's own")

    def work(text: str, callbacks: object) -> str:
        raise failure

    async def awork(text: str, callbacks: object) -> str:
        raise failure

    async def scenario() -> None:
        async with case.running(cast("Any", work if case.is_sync else awork)) as running:
            received, error = await received_and_error(case.consumer, running, RuntimeError)
            assert received == []
            assert error.__cause__ is failure
            with pytest.raises(RuntimeError) as again:
                _ = running.result
            assert again.value is error

    case.consumer.run(scenario)


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit])
@pytest.mark.parametrize("case", STREAM_CASES)
def test_an_impostor_of_the_end_out_of_a_runnable(case: Case, kind: type[BaseException]) -> None:
    """What Python makes of one on its way through a coroutine is a RuntimeError, too."""

    def work(text: str) -> str:
        raise kind

    async def awork(text: str) -> str:
        raise kind

    async def scenario() -> None:
        async with case.running(RunnableLambda(work, awork)) as running:
            await received_and_error(case.consumer, running, RuntimeError)

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", CASES)
def test_a_cancellation_by_somebody_else(case: Case) -> None:
    """Hazard: a CancelledError in the consumer's task means that the consumer is cancelled."""
    failure = asyncio.CancelledError("by a library of the model's")
    model = ScriptedChatModel(tokens=tokens(4), failure=failure, fail_at=2)
    chain = model | StrOutputParser()

    async def scenario() -> None:
        async with case.running(chain) as running:
            received, error = await received_and_error(case.consumer, running, RunCancelledError)
        assert received == tokens(2)
        assert isinstance(error.__cause__, asyncio.CancelledError)

    case.consumer.run(scenario)


@pytest.mark.parametrize(
    "case", [case for case in STREAM_CASES if case.values[0].producer == "task"]
)
def test_the_runs_task_is_cancelled_by_somebody_else(case: Case) -> None:
    """Hazard: a task's cancellation is for its owner alone; nobody tells the consumer."""
    gate = Gate(2)
    model = ScriptedChatModel(tokens=tokens(4), gate=gate)

    async def scenario() -> None:
        async with case.running(model) as running:
            assert await case.consumer.take(running, 2) == tokens(2)
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel("by the program's end, say")
            received, error = await received_and_error(case.consumer, running, RunCancelledError)
        assert received == []
        assert isinstance(error.__cause__, asyncio.CancelledError)

    case.consumer.run(scenario)


@pytest.mark.parametrize(
    "case", [case for case in STREAM_CASES if case.values[0].producer == "task"]
)
def test_the_runs_task_is_cancelled_before_its_first_step(case: Case) -> None:
    """Hazard: such a task never runs, so that nothing in it can report the end."""
    model = ScriptedChatModel(tokens=tokens(4))

    async def scenario() -> None:
        async with case.running(model, maxsize=1) as running:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await received_and_error(case.consumer, running, RunCancelledError)

    case.consumer.run(scenario)


# -- the producer's ground gives way --------------------------------------------------------------


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard: the run never starts, and the consumer waits for it."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    model = ScriptedChatModel(tokens=tokens(4))
    answer = stream(model, "?")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            next(answer)
    with pytest.raises(RuntimeError):
        next(answer)


def _stop_the_loop() -> None:
    current = _background._current
    assert current is not None
    current.loop.call_soon_threadsafe(current.loop.stop)


@pytest.mark.parametrize(
    "case", [case for case in DEFAULT_CASES if case.values[0].producer == "background"]
)
def test_the_shared_loop_dies(case: Case) -> None:
    """Hazard: the runs on it are forgotten; and every stream from then on is lost."""
    the_shared_loop_dies_under_a_stream(case)


def the_shared_loop_dies_under_a_stream(case: Case, within: float = 10.0) -> None:
    model = ScriptedChatModel(tokens=tokens(4), gate=Gate(2))

    async def scenario() -> None:
        async with case.running(model) as running:
            assert await case.consumer.take(running, 2) == tokens(2)
            _stop_the_loop()
            received, error = await received_and_error(
                case.consumer, running, RunCancelledError, within
            )
            assert received == []
            assert error.__cause__ is not None
            if sys.version_info >= (3, 11):  # before, asyncio loses what a cancellation says
                assert "background loop" in str(error.__cause__)
        async with case.running(ScriptedChatModel(tokens=tokens(3))) as running:
            assert await case.consumer.collect(running) == tokens(3)

    case.consumer.run(scenario)


def _tear_the_loop() -> None:
    def leave() -> None:
        raise SystemExit("out of a callback of somebody else's")

    current = _background._current
    assert current is not None
    current.loop.call_soon_threadsafe(leave)


@pytest.mark.parametrize("kill", [_stop_the_loop, _tear_the_loop])
@pytest.mark.parametrize(
    "case", [case for case in DEFAULT_CASES if case.values[0].producer == "background"]
)
def test_the_shared_loop_dies_under_many_streams(case: Case, kill: Callable[[], None]) -> None:
    """Hazard: what the first of them does at its end keeps the others from theirs."""
    the_shared_loop_dies_under_many_streams(case, kill=kill)


def the_shared_loop_dies_under_many_streams(
    case: Case, within: float = 10.0, kill: Callable[[], None] = _stop_the_loop
) -> None:
    """Some are silent from the start, some wait for their consumer, and some are over."""
    models = [
        ScriptedChatModel(tokens=tokens(count), gate=None if count > 1 else Gate())
        for _ in range(4)
        for count in (1, 9, 2)
    ]

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(case.running(model, maxsize=2)) for model in models
            ]
            silent, full, over = streams[::3], streams[1::3], streams[2::3]
            for running in full:
                await case.consumer.eventually(partial(is_blocked, running))
            for running in over:
                await case.consumer.eventually(partial(getattr, running._run.gone, "_set"))
            for model in models[::3]:
                assert model.gate is not None
                await case.consumer.eventually(partial(getattr, model.gate, "waiting"))
            kill()
            for running, expected in [(each, []) for each in silent] + [
                (each, tokens(2)) for each in full
            ]:
                received, error = await received_and_error(
                    case.consumer, running, RunCancelledError, within
                )
                assert received == expected
                assert error.__cause__ is not None
            for running in over:
                assert await case.consumer.collect(running) == tokens(2)
        async with case.running(ScriptedChatModel(tokens=tokens(3))) as running:
            assert await case.consumer.collect(running) == tokens(3)
        for model in models:
            await case.consumer.wait(model.record.wait_until_finalized)

    case.consumer.run(scenario)


@pytest.mark.parametrize(
    "case", [case for case in DEFAULT_CASES if case.values[0].producer == "background"]
)
def test_the_shared_loop_dies_while_the_run_waits_for_its_consumer(case: Case) -> None:
    """Hazard: the tokens that were made before are lost with the loop."""
    model = ScriptedChatModel(tokens=tokens(9))

    async def scenario() -> None:
        async with case.running(model, maxsize=2) as running:
            await case.consumer.eventually(lambda: is_blocked(running))
            _stop_the_loop()
            await case.consumer.wait(model.record.wait_until_finalized)
            received, _ = await received_and_error(case.consumer, running, RunCancelledError)
            assert received == tokens(2)

    case.consumer.run(scenario)


@pytest.mark.parametrize(
    "case", [case for case in DEFAULT_CASES if case.values[0].producer == "background"]
)
def test_the_shared_loop_dies_before_the_run_begins(case: Case) -> None:
    """Hazard: a run that was handed over and that no task was made for is forgotten."""
    the_shared_loop_dies_over_a_stream(case)


def the_shared_loop_dies_over_a_stream(case: Case, within: float = 10.0) -> None:
    """Let it die in the very turn in which it is handed a run.

    1. The loop is held up.
    2. A stream hands its run over: the loop would begin it in the next turn.
    3. The loop goes on, and this turn is its last.
    """
    model = ScriptedChatModel(tokens=tokens(4))
    gate = Gate()

    def hold_up_and_stop() -> None:
        gate.wait()
        asyncio.get_running_loop().stop()

    _background.on_background_loop(hold_up_and_stop, lambda _: None)
    eventually(lambda: gate.waiting)  # 1

    async def scenario() -> None:
        async with case.running(model) as running:  # 2
            gate.open()  # 3
            received, error = await received_and_error(
                case.consumer, running, RunCancelledError, within
            )
            assert received == []
            assert error.__cause__ is not None
            assert "background loop" in str(error.__cause__.__cause__)

    case.consumer.run(scenario)
    assert model.record.calls == 0


def _cancel_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel_nobody(loop: asyncio.AbstractEventLoop) -> None:
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]

    monkeypatch.setattr(_background, "_cancel_all", cancel_nobody)


def _tell_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    accept = _background._Loop.accept
    monkeypatch.setattr(
        _background._Loop, "accept", lambda loop, start, _: accept(loop, start, lambda _: None)
    )


@pytest.mark.parametrize(
    "dies, planted, case",
    [
        pytest.param(dies, planted, case.values[0], id=f"{planted.__name__}-{case.id}")
        for dies, planted, names in (
            (the_shared_loop_dies_under_a_stream, put_no_end, ("for", "trio")),
            (the_shared_loop_dies_under_a_stream, _cancel_nobody, ("for", "trio")),
            (the_shared_loop_dies_under_many_streams, _cancel_nobody, ("for",)),
            (the_shared_loop_dies_over_a_stream, _tell_nobody, ("for",)),  # others wait in aclose
        )
        for case in DEFAULT_CASES
        if case.id in {f"background-{name}" for name in names}
    ],
)
def test_a_consumer_that_is_forgotten_is_noticed(
    dies: Callable[[Case, float], None],
    planted: Callable[[pytest.MonkeyPatch], None],
    case: Case,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The canary: the shared loop dies, and nobody tells its consumers."""
    planted(monkeypatch)
    with pytest.raises(AssertionError, match=r"no end within .* after \[\]"):
        dies(case, A_MOMENT)


@pytest.mark.parametrize("case", STREAM_CASES)
def test_an_error_before_langchain_is_reached(case: Case) -> None:
    """Hazard: no callback ever hears of it."""
    model = ScriptedChatModel(tokens=tokens(4))

    async def scenario() -> None:
        async with case.running(model, object()) as running:
            _, error = await received_and_error(case.consumer, running, ValueError)
        assert "Invalid input type" in str(error)

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", STREAM_CASES)
def test_result_raises_the_error_again(case: Case) -> None:
    failure = ValueError("the model's own")
    model = ScriptedChatModel(tokens=tokens(4), failure=failure, fail_at=2)

    async def scenario() -> None:
        async with case.running(model) as running:
            await received_and_error(case.consumer, running, ValueError)
        with pytest.raises(ValueError, match="the model's own") as raised:
            _ = running.result
        assert raised.value is failure
        assert running.text == "".join(tokens(2))

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", STREAM_CASES)
def test_an_errors_own_cause_and_context_stay(case: Case) -> None:
    """Hazard: raised again within an ``except`` of ours, it gets ours as its context."""
    reason = KeyError("the reason")

    def work(text: str) -> str:
        try:
            raise reason
        except KeyError:
            raise ValueError("the target's own")  # noqa: B904 - the context is the point

    async def awork(text: str) -> str:
        return work(text)

    async def scenario() -> None:
        async with case.running(RunnableLambda(work, awork)) as running:
            _, error = await received_and_error(case.consumer, running, ValueError)
        assert error.__context__ is reason
        assert reason.__context__ is None

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_a_retry_after_half_an_answer(case: Case) -> None:
    """Hazard: an attempt's error is taken for the run's end (fact 8)."""
    model = ScriptedChatModel(tokens=tokens(4), failure=ValueError(), fail_at=2, fail_calls=1)
    target = model.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)

    async def scenario() -> list[str]:
        async with case.running(target) as running:
            return await case.consumer.collect(running)

    assert case.consumer.run(scenario) == tokens(2) + tokens(4)


def test_there_can_be_no_background_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard: the loop's thread dies at once, and the consumer waits for it (too many files)."""

    def new_event_loop() -> asyncio.AbstractEventLoop:
        raise OSError("too many open files")

    model = ScriptedChatModel(tokens=tokens(4))
    with monkeypatch.context() as patched:
        patched.setattr(_background, "_current", None)
        patched.setattr(asyncio, "new_event_loop", new_event_loop)
        with pytest.raises(OSError, match="too many open files"):
            next(stream(model, "?", run_in="background"))
    assert list(stream(model, "?", run_in="background")) == tokens(4)
