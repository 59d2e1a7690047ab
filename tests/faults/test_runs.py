"""Faults of the run: its model, its thread, its loop, the callbacks beside ours."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import threading
import weakref
from collections import deque
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda

from queuestream import QueueStreamHandler, producers, stream
from queuestream.errors import RunCancelledError
from tests.support.aftermath import our_threads
from tests.support.backends import eager_loop
from tests.support.endings import A_MOMENT, ending, put_no_end
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.models import ScriptedChatModel, tokens
from tests.support.streams import DEFAULT_CASES, STREAM_CASES, Case, getters_of, is_blocked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable


LENGTH = 5
"""Tokens of an answer."""
POSITIONS = range(LENGTH + 1)
"""Where it may fail: before each of them, and after the last."""


LOOPS = pytest.mark.parametrize(
    "new_loop",
    [asyncio.new_event_loop, eager_loop, uvloop.new_event_loop],
    ids=["asyncio", "eager", "uvloop"],
)


class _ModelError(Exception):
    """The model's own."""


# -- the model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [_ModelError, MemoryError])
@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_the_model_raises_at_every_position(case: Case, kind: type[Exception]) -> None:
    """Promise 3.  Hazard: an error that meets a full, an empty or a just emptied queue is lost.

    A MemoryError is an error like another: whatever could not be had is free again when the
    consumer gets it.
    """

    async def scenario(position: int, maxsize: int) -> None:
        failure = kind("the model's own")
        model = ScriptedChatModel(tokens=tokens(LENGTH), failure=failure, fail_at=position)
        async with case.running(model, maxsize=maxsize) as running:
            received, error = await ending(case.consumer, running)
        assert received == tokens(position)
        assert error is failure

    async def all_of_them() -> None:
        for position in POSITIONS:
            for maxsize in (1, 2, 256):
                await scenario(position, maxsize)

    case.consumer.run(all_of_them)


class Bounded(deque[Any]):
    """A deque that finds no memory for one item."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self._left = position

    def append(self, item: Any) -> None:
        """Fail, when it is time."""
        self._left -= 1
        if self._left == -1:
            raise MemoryError
        super().append(item)


@pytest.mark.parametrize(
    "case", [case for case in STREAM_CASES if case.values[0].queue == "default"]
)
def test_memory_ends_in_a_callback_of_ours(case: Case) -> None:
    """Promises 1 and 3.  Hazard: the token is lost, and the next one comes in its place."""
    model = ScriptedChatModel(tokens=tokens(LENGTH))

    async def scenario(position: int, maxsize: int) -> None:
        running = case.stream(model, maxsize=maxsize)
        assert running._tokens.buffer is not None
        running._tokens.buffer.items = Bounded(position)
        async with case.consumer.entered(running) as entered:
            received, error = await ending(case.consumer, entered)
        assert received == tokens(position)
        assert isinstance(error, MemoryError)

    async def all_of_them() -> None:
        for position in range(LENGTH):
            for maxsize in (1, 256):
                await scenario(position, maxsize)

    case.consumer.run(all_of_them)


# -- the producer's thread -----------------------------------------------------------------------


class _Killed(BaseException):
    """What a thread is killed with: nobody below catches it."""


def kill(thread: threading.Thread) -> None:
    """Raise an exception in a thread, as debuggers and some servers do."""
    assert thread.ident is not None
    number = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(_Killed)
    )
    assert number == 1


@pytest.mark.parametrize(
    "case", [case for case in STREAM_CASES if case.values[0].producer == "thread"]
)
def test_the_producers_thread_is_killed(case: Case) -> None:
    """Promise 3.  Hazard: nobody is left to put the end."""
    its_thread_is_killed(case)


def its_thread_is_killed(case: Case, within: float = 10.0) -> None:
    gate = Gate(3)

    def endless(_: str, config: Any) -> None:
        model.invoke("?", config)
        while True:  # in Python's own code, where such an exception arrives
            gate.release(0)

    model = ScriptedChatModel(tokens=tokens(3), gate=gate)

    async def scenario() -> None:
        async with case.running(RunnableLambda(endless)) as running:
            assert await case.consumer.take(running, 3) == tokens(3)
            await case.consumer.wait(model.record.wait_until_finalized)
            (thread,) = our_threads()
            kill(thread)
            received, error = await ending(case.consumer, running, within)
            assert received == []
            assert isinstance(error, _Killed)

    case.consumer.run(scenario)


@pytest.mark.parametrize(
    "case", [case for case in DEFAULT_CASES if case.values[0].producer == "thread"]
)
def test_the_producers_thread_is_killed_while_it_waits_for_its_consumer(case: Case) -> None:
    """Promises 1 and 3.  Hazard: it leaves its place in the line, and puts no end."""
    its_waiting_thread_is_killed(case)


def its_waiting_thread_is_killed(case: Case, within: float = 10.0) -> None:
    """Such an exception comes when the thread goes on, as soon as there is a free slot."""
    model = ScriptedChatModel(tokens=tokens(9))

    async def scenario() -> None:
        async with case.running(model, maxsize=2) as running:
            await case.consumer.eventually(lambda: is_blocked(running))
            (thread,) = our_threads()
            kill(thread)
            received, error = await ending(case.consumer, running, within)
            assert received == tokens(2)
            assert isinstance(error, _Killed)
            assert not is_blocked(running)
        await case.consumer.eventually(lambda: not our_threads())

    case.consumer.run(scenario)
    assert model.record.open == 0


# -- the loop ------------------------------------------------------------------------------------


def in_another_thread(
    iterable: Iterable[str], within: float = 5.0
) -> tuple[list[str], BaseException]:
    """Iterate to the error at the end, somewhere else: the loop of the run is no more."""
    received: list[str] = []
    errors: list[BaseException] = []

    def iterate() -> None:
        try:
            received.extend(iterable)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=iterate, daemon=True)
    thread.start()
    thread.join(within)
    assert not thread.is_alive(), f"still waiting after {received}"
    return received, errors[0]


class Ground:
    """A loop that is closed with all that goes on in it, as ``asyncio.run`` would never do."""

    def __init__(
        self, new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    ) -> None:
        self.loop = new_loop()

    def close(self) -> None:
        """Close it.  Its tasks say no word of it."""
        for task in asyncio.all_tasks(self.loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.loop.close()


def lose_stream(model: ScriptedChatModel, is_there: Callable[[Any], object]) -> Any:
    """Begin a stream on a loop, and close that."""
    answer = stream(model, "?", run_in="task", maxsize=2)

    async def begin() -> None:
        await answer.__aenter__()
        await eventually_async(partial(is_there, answer))

    ground = Ground()
    ground.loop.run_until_complete(begin())
    ground.close()
    return answer


def test_a_loop_is_closed_under_a_stream_that_waits() -> None:
    """Promise 3.  Hazard: the consumer waits for a run that will never go on."""
    its_loop_is_closed()


def its_loop_is_closed(within: float = 5.0) -> None:
    with closing(lose_stream(ScriptedChatModel(tokens=tokens(9)), is_blocked)) as answer:
        received, error = in_another_thread(answer, within)
    assert received == tokens(2)
    assert isinstance(error, RunCancelledError)
    with pytest.raises(RunCancelledError, match="loop that the run was on was closed"):
        answer.result  # noqa: B018 - the look raises


@pytest.mark.parametrize("how", ["for", "pieces"])
def test_a_loop_is_closed_under_a_silent_stream(how: str) -> None:
    """Promise 3.  Hazard: the same, and there is nobody whose wake-up is lost."""
    model = ScriptedChatModel(tokens=tokens(9), gate=Gate(1))
    answer = lose_stream(model, lambda _: model.record.produced == 1)
    received, error = in_another_thread(answer.pieces() if how == "pieces" else answer)
    assert received == tokens(1)
    assert isinstance(error, RunCancelledError)


def test_a_loop_is_closed_between_the_ring_and_the_answer() -> None:
    """Promise 3.  Hazard: the producer was woken in time, and the loop drops the wake-up.

    1. The consumer takes what is there, so that the producer is rung for, and then waits.
    2. The loop, which was not running, is closed.
    """
    ground = Ground()
    answer = stream(ScriptedChatModel(tokens=tokens(9)), "?", run_in="task", maxsize=2)

    async def begin() -> None:
        await answer.__aenter__()
        await eventually_async(partial(is_blocked, answer))

    ground.loop.run_until_complete(begin())

    def close() -> None:
        eventually(lambda: getters_of(answer) == 1)
        ground.close()  # 2

    closer = threading.Thread(target=close)
    closer.start()
    received, error = in_another_thread(answer)  # 1
    closer.join()
    assert received == tokens(2)
    assert isinstance(error, RunCancelledError)


def test_a_loop_is_closed_under_a_handlers_producer_that_waits() -> None:
    """Promise 3.  Hazard: nobody reports the end of a run whose loop is gone."""
    handler = QueueStreamHandler(maxsize=2)
    model = ScriptedChatModel(tokens=tokens(9))
    ground = Ground()
    config: Any = {"callbacks": [handler]}
    run = ground.loop.create_task(model.ainvoke("?", config))
    ground.loop.run_until_complete(eventually_async(partial(is_blocked, iter(handler))))
    ground.close()
    assert not run.done()
    received, error = in_another_thread(handler)
    assert received == tokens(2)
    assert isinstance(error, RunCancelledError)
    model.invoke("?", {"callbacks": [unbounded := QueueStreamHandler(0)]})  # and all else goes on
    assert list(unbounded) == tokens(9)


@LOOPS
def test_a_loop_is_closed_under_a_silent_stream_whose_consumer_waits(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Promise 3.  Hazard: the model says nothing, the loop says nothing, and nobody asks again."""
    model = ScriptedChatModel(tokens=tokens(9), gate=Gate(1))
    answer = stream(model, "?", run_in="task")
    ground = Ground(new_loop)

    async def begin() -> None:
        await answer.__aenter__()
        await eventually_async(lambda: model.record.produced == 1)

    ground.loop.run_until_complete(begin())

    def close() -> None:
        eventually(lambda: getters_of(answer) == 1)
        ground.close()

    closer = threading.Thread(target=close)
    closer.start()
    received, error = in_another_thread(answer)
    closer.join()
    assert received == tokens(1)
    assert isinstance(error, RunCancelledError)
    assert "the event loop that the run was on was closed" in str(error)


@LOOPS
def test_a_loop_is_closed_under_one_of_a_handlers_runs(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Promises 1 and 3: the other run, on another loop, is heard to its end.

    Hazards: the consumer waits for the run that is gone; or it misses what the other has to say.
    """
    handler = QueueStreamHandler()
    config: Any = {"callbacks": [handler]}
    silent = ScriptedChatModel(tokens=["silent"], gate=Gate())
    other = ScriptedChatModel(tokens=tokens(9), gate=Gate())
    ground, lasting = Ground(new_loop), Ground(new_loop)
    runs: list[asyncio.Task[Any]] = []
    for place, model in ((ground, silent), (lasting, other)):
        assert model.gate is not None
        runs.append(place.loop.create_task(model.ainvoke("?", config)))
        waits = partial(lambda gate: gate.waiting == 1, model.gate)
        place.loop.run_until_complete(eventually_async(waits))

    def go_on() -> None:
        eventually(lambda: getters_of(iter(handler)) == 1)
        ground.close()
        assert other.gate is not None
        other.gate.open()
        lasting.loop.run_until_complete(runs[1])
        lasting.loop.close()

    goes_on = threading.Thread(target=go_on)
    goes_on.start()
    received, error = in_another_thread(handler)
    goes_on.join()
    assert received == tokens(9)
    assert isinstance(error, RunCancelledError)
    other.invoke("?", config)  # and the handler serves the next run
    assert list(handler) == tokens(9)


def test_a_run_that_no_task_can_be_made_for_is_not_watched() -> None:
    """Promise 9.  Hazard: a loop that goes on keeps a run that never began."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise MemoryError

    async def begin() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(refuse)
        with pytest.raises(MemoryError):
            await stream(ScriptedChatModel(tokens=tokens(2)), "?").__aenter__()
        loop.set_task_factory(None)
        assert "close" not in vars(loop)

    with pytest.warns(RuntimeWarning, match="never awaited"):
        asyncio.run(begin())


def test_loops_that_come_and_go_leave_nothing_behind() -> None:
    """Promises 9 and 10.  Hazard: what watches a loop keeps it, or wakes it."""
    loops: list[Any] = []

    async def iterate() -> None:
        loop = asyncio.get_running_loop()
        loops.append(weakref.ref(loop))
        for _ in range(20):
            async with stream(ScriptedChatModel(tokens=tokens(2)), "?") as answer:
                assert [token async for token in answer] == tokens(2)
        assert not loop._scheduled  # type: ignore[attr-defined]

    for _ in range(5):
        asyncio.run(iterate())
    gc.collect()
    assert [loop() for loop in loops] == [None] * 5


# -- the callbacks beside ours ---------------------------------------------------------------------


def failing(moment: str, kind: str, *, raise_error: bool) -> tuple[Any, Exception]:
    """Return a callback that raises at one moment, and what it raises.

    On asynchronous runs LangChain calls it in place (``inline``), in the loop's executor
    (``executor``), or as a coroutine (``async``).
    """
    failure = _ModelError("the callback's own")

    def fail(*_: Any, **__: Any) -> None:
        raise failure

    async def fail_in_task(*_: Any, **__: Any) -> None:
        await asyncio.sleep(0)
        raise failure

    base = AsyncCallbackHandler if kind == "async" else BaseCallbackHandler
    attributes = {
        moment: fail_in_task if kind == "async" else fail,
        "raise_error": raise_error,
        "run_inline": kind == "inline",
    }
    return type("Fails", (base,), attributes)(), failure


@pytest.mark.parametrize("raises", [False, True], ids=["logged", "raised"])
@pytest.mark.parametrize("case", DEFAULT_CASES)
def test_a_callback_beside_ours_raises(
    case: Case, raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Promises 1 and 3.  Hazard: its error is taken for ours, or ours is not called after it.

    LangChain logs such an error, and lets it end the run where the callback asks for that.
    """
    with caplog.at_level(logging.CRITICAL):
        one_beside_raises(case, raises)


MOMENTS = [
    "on_chat_model_start",
    "on_llm_new_token",
    "on_llm_error",
    "on_llm_end",
    "on_chain_end",
]
MOMENTS_OF_THE_OUTERMOST = ["on_chain_start", "on_chain_error"]
"""Of which a handler does not hear where one before it raises: LangChain asks no further ones.

The end of a stream is reported by its run as well.  A handler whose run is so begun or ended waits.
"""


@pytest.mark.parametrize("raises", [False, True], ids=["logged", "raised"])
@pytest.mark.parametrize("kind", ["inline", "executor", "async"])
@pytest.mark.parametrize(
    "case, moment",
    [
        pytest.param(case.values[0], moment, id=f"{case.id}-{moment}")
        for case in DEFAULT_CASES
        for moment in MOMENTS + MOMENTS_OF_THE_OUTERMOST * case.values[0].is_stream
        if case.id
        in {
            "thread-for",
            "background-for",
            "task-asyncio",
            "handler-invoke-for",
            "handler-ainvoke-asyncio",
        }
    ],
)
def test_a_callback_beside_ours_raises_at_any_moment(
    case: Case, moment: str, kind: str, raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Promises 1 and 3.  Hazard: the start or the end of a run is not heard, for its error."""
    with caplog.at_level(logging.CRITICAL):
        one_beside_raises(case, raises, moment=moment, kind=kind)


def one_beside_raises(
    case: Case,
    raises: bool,
    within: float = 10.0,
    moment: str = "on_llm_new_token",
    kind: str = "inline",
) -> None:
    beside, failure = failing(moment, kind, raise_error=raises)
    own = _ModelError("the model's own") if moment.endswith("_error") else None
    model = ScriptedChatModel(tokens=tokens(LENGTH), failure=own, fail_at=LENGTH)
    if kind == "async" and case.is_sync:
        raises = False  # LangChain swallows it
    before: dict[str, list[list[str]]] = {
        "start": [[]],
        "token": [[], tokens(1)],  # ours may be asked at the same time
    }

    async def scenario() -> None:
        async with case.running(model | StrOutputParser(), callbacks=[beside]) as running:
            received, error = await ending(case.consumer, running, within)
        if raises:
            assert received in before.get(moment.rpartition("_")[2], [tokens(LENGTH)])
            assert error is failure
        else:
            assert received == tokens(LENGTH)
            assert error is own

    case.consumer.run(scenario)


class _NastyError(TypeError):
    """An error that is not what errors are."""

    exceptions = None

    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("run_in", ["thread", "background"])
def test_an_error_that_cannot_be_looked_at(run_in: Any) -> None:
    """Promise 3.  Hazard: what we do with it raises, and the end is never put."""
    error = _NastyError()
    model = ScriptedChatModel(tokens=tokens(3), failure=error, fail_at=2)
    with stream(model, "?", run_in=run_in, timeout=5) as answer:
        assert [next(answer) for _ in range(2)] == tokens(2)
        with pytest.raises(BaseException) as raised:
            next(answer)
    assert raised.value is error


def test_a_clean_up_that_ends_programs_ends_no_loop(caplog: pytest.LogCaptureFixture) -> None:
    """Hazard: on the shared loop, all other streams end with it."""

    class LeavesBadly(ScriptedChatModel):
        async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            try:
                async for chunk in super()._astream(*args, **kwargs):
                    yield chunk
            finally:
                await asyncio.sleep(0)
                raise SystemExit(7)

    gate = Gate(1)
    other = stream(ScriptedChatModel(tokens=tokens(3), gate=gate), "?", run_in="background")
    with other, caplog.at_level(logging.DEBUG, "queuestream"):
        assert next(other) == tokens(1)[0]
        leaving = LeavesBadly(tokens=tokens(9))
        with stream(leaving, "?", run_in="background", maxsize=1) as answer:
            next(answer)
        eventually(lambda: "SystemExit(7)" in caplog.text)
        gate.open()
        assert list(other) == tokens(2, start=1)


# -- the canaries: a consumer that never gets its end is seen by the tests above -------------------


@pytest.mark.parametrize("is_killed", [its_thread_is_killed, its_waiting_thread_is_killed])
@pytest.mark.parametrize("name", ["thread-for", "thread-asyncio", "thread-trio"])
def test_an_end_that_a_killed_thread_does_not_put_is_noticed(
    name: str, is_killed: Callable[[Case, float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canary: a producer's thread is gone, and nobody has put the end for it."""
    put_no_end(monkeypatch)
    (case,) = (case.values[0] for case in STREAM_CASES if case.id == name)
    with pytest.raises(AssertionError, match=r"no end within .* after \["):
        is_killed(case, A_MOMENT)


def test_an_end_that_a_closed_loop_does_not_put_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The canary: a loop is closed, and nobody is told."""
    monkeypatch.setattr(producers, "when_closed", lambda *_: lambda: None)
    with pytest.raises(AssertionError, match="still waiting"):
        its_loop_is_closed(A_MOMENT)


@pytest.mark.parametrize("raises", [False, True], ids=["logged", "raised"])
@pytest.mark.parametrize("name", ["thread-for", "task-asyncio", "handler-invoke-trio"])
def test_an_end_that_a_failing_callback_takes_away_is_noticed(
    name: str, raises: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The canary: after the error of a callback beside ours, no end comes."""
    put_no_end(monkeypatch)
    (case,) = (case.values[0] for case in DEFAULT_CASES if case.id == name)
    with (
        caplog.at_level(logging.CRITICAL),
        pytest.raises(AssertionError, match=r"no end within .* after \["),
    ):
        one_beside_raises(case, raises, A_MOMENT)
