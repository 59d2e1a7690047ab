"""``first_token_timeout`` and ``token_timeout``: how long one wait of the consumer may last.

Where a limit must run out, it is short and real.  Where it must not, or where something has
to happen in the very moment, the waits end when the test says so (`Expiries`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import threading
from math import inf, nan
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.lowlevel
import culsans
import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import StructuredTool

from queuestream import MixedQueue, TokenStream, _buffer, _token_queue, stream
from queuestream._meter import Counter
from queuestream._wakeups import ThreadWaiter, current_loop
from queuestream.errors import ConcurrentIterationError, QueueStreamError, StreamTimeoutError
from queuestream.handlers import feed
from tests.promises.test_promise_10_no_polling import CountingSelector, Waits, run_and_count
from tests.support.aftermath import nothing_is_left, our_threads
from tests.support.callbacks import RunLog
from tests.support.consumers import PAIRINGS, in_another_thread, pairings
from tests.support.gates import Gate, eventually
from tests.support.models import ScriptedChatModel, silent_model, tokens, usage
from tests.support.streams import STREAM_CASES, getters_of, queue_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from langchain_core.runnables import Runnable

    from tests.support.consumers import Consumer, RunIn
    from tests.support.streams import Case

SHORT = 0.05
"""Seconds of a limit that is to run out."""
LONG = 60.0
"""Seconds of one that is not."""

each_pairing = pytest.mark.parametrize("run_in, consumer", PAIRINGS)
each_async_pairing = pytest.mark.parametrize(
    "run_in, consumer", pairings("asyncio", "uvloop", "eager", "trio")
)
a_few_pairings = pytest.mark.parametrize("run_in, consumer", pairings("for", "asyncio", "trio"))


def _every_queue() -> list[Any]:
    """Each case, by a function that makes its queue; None is the default."""
    params = [
        pytest.param(case, case.make_queue, id=param.id, marks=param.marks)
        for param in STREAM_CASES
        for case in param.values
    ]
    given: list[tuple[str, Callable[[int], object]]] = [
        ("MixedQueue", MixedQueue),
        ("culsans", culsans.Queue),
    ]
    params += [
        pytest.param(case, make, id=f"{param.id}-{name}", marks=param.marks)
        for name, make in given
        for param in STREAM_CASES
        for case in param.values
        if case.queue == "default" and case.consumer.name in ("for", "asyncio", "trio")
    ]
    return params


each_queue = pytest.mark.parametrize("case, make_queue", _every_queue())


class Expiries:
    """The waits that have a limit: they end when the test says so, by a clock that it sets.

    For the default queue.  The waits of other consumers' tests go on as they would.

    Attributes:
        now: What the clock shows.
        asked: How many seconds each wait was to last, so far.
        on_expiry: Called in the consumer when one ends, before it looks at the queue again.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.asked: list[float] = []
        self.on_expiry: Callable[[], object] = lambda: None
        self._expire: Callable[[Callable[[], object]], object] = lambda first: None
        for module in (_token_queue, feed, _buffer):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)
        original = ThreadWaiter.wait

        def wait(waiter: ThreadWaiter, timeout: float | None) -> bool:
            if timeout is None:
                return original(waiter, None)
            has_expired = threading.Event()

            def expire(first: Callable[[], object]) -> None:
                has_expired.set()
                first()
                waiter.wake()

            self.note(timeout, expire)
            original(waiter, None)
            if has_expired.is_set():
                self.on_expiry()
            return not has_expired.is_set()

        monkeypatch.setattr(ThreadWaiter, "wait", wait)
        scopes = SimpleNamespace(move_on_after=lambda delay: _Scope(self, delay))
        monkeypatch.setattr(_token_queue, "anyio", scopes)

    def note(self, seconds: float, expire: Callable[[Callable[[], object]], object]) -> None:
        """Take note of a wait."""
        self._expire = expire
        self.asked.append(seconds)

    def wait_for(self, count: int) -> None:
        """Block the thread until there were so many waits."""
        eventually(lambda: len(self.asked) == count)

    def expire(self, first: Callable[[], object] = lambda: None) -> None:
        """Let the wait that goes on end, and do something just before, in the same turn."""
        self._expire(first)


class _Scope:
    """What stands for ``anyio.move_on_after``."""

    def __init__(self, expiries: Expiries, delay: float) -> None:
        self._expiries = expiries
        self._delay = delay
        self._scope = anyio.CancelScope()

    def __enter__(self) -> None:
        loop: Any = current_loop()
        soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        self._scope.__enter__()

        def expire(first: Callable[[], object]) -> None:
            def both() -> None:
                first()
                self._scope.cancel()

            soon(both)

        self._expiries.note(self._delay, expire)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        is_caught = bool(self._scope.__exit__(kind, error, traceback))
        if self._scope.cancelled_caught:
            self._expiries.on_expiry()
        return is_caught


@pytest.fixture
def expiries(monkeypatch: pytest.MonkeyPatch) -> Expiries:
    return Expiries(monkeypatch)


def meanwhile(*steps: Callable[[], object]) -> None:
    """Take steps in another thread; an error in them fails the test."""

    def take_steps() -> None:
        for step in steps:
            step()

    in_another_thread(take_steps)


# -- past the limit ------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 2])
@each_queue
def test_past_the_limit(case: Case, make_queue: Callable[[int], object], before: int) -> None:
    """Promise 4.  Hazard: the run goes on for nobody, or the consumer cannot tell why it ended."""
    usage = {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4}
    gate = Gate(before)
    model = ScriptedChatModel(
        tokens=[
            AIMessageChunk(content=token, usage_metadata=cast("Any", usage))
            for token in tokens(before + 5)
        ],
        gate=gate,
    )
    name, other = ("token", "first_token") if before else ("first_token", "token")
    log = RunLog()

    async def scenario() -> None:
        limits = {f"{name}_timeout": SHORT, f"{other}_timeout": LONG}
        queue = make_queue(256)
        if queue is not None:
            limits["queue"] = cast("Any", queue)
        answer = stream(
            model,
            "?",
            {"callbacks": [log]},
            run_in=cast("RunIn", case.producer),
            **cast("Any", limits),
        )
        async with case.consumer.entered(answer):
            assert await case.consumer.take(answer, before) == tokens(before)
            with pytest.raises(StreamTimeoutError) as raised:
                await case.consumer.next(answer)
            error = raised.value
            assert isinstance(error, TimeoutError)
            assert isinstance(error, QueueStreamError)
            assert error.__cause__ is error.__context__ is None
            if case.is_sync:  # a run in a thread ends at its next token
                # A queue that was given is shut down by a thread, see `TokenQueue.close`.
                await case.consumer.eventually(lambda: queue_of(answer)._sync_q.closed)
                gate.open()
        assert re.fullmatch(
            rf"{answer._tokens.name}: nothing came within {name}_timeout=0\.05 seconds, "
            rf"after {before} tokens and \d+\.\d\d\d seconds",
            str(error),
        )
        await nothing_is_left(case.consumer, [model.record], log)
        assert await case.consumer.collect(answer) == []
        assert await case.consumer.collect(cast("TokenStream[str]", answer.pieces())) == []
        for _ in range(2):
            with pytest.raises(StreamTimeoutError) as again:
                _ = answer.result
            assert again.value is error
        assert answer.text == "".join(tokens(before))
        # A run in a thread made one more, and that was counted; nobody got it.
        reported = before + case.is_sync
        assert answer.usage == (
            {key: reported * count for key, count in usage.items()} if reported else None
        )
        assert answer.statistics.tokens == reported
        assert SHORT / 2 < answer.statistics.duration < LONG  # uvloop counts in whole ms
        assert answer.statistics.duration == answer.statistics.duration

    case.consumer.run(scenario)
    assert model.record.calls == 1
    assert model.record.produced == before + case.is_sync


@a_few_pairings
def test_a_silent_tool_counts(run_in: RunIn, consumer: Consumer) -> None:
    """Tool time counts: the consumer cannot know what the silence is."""
    model, after = ScriptedChatModel(tokens=tokens(2)), ScriptedChatModel(tokens=tokens(2))
    gate = Gate()

    def look(query: str) -> str:
        gate.wait()
        return query

    async def alook(query: str) -> str:
        await gate.wait_async()
        return query

    tool = StructuredTool.from_function(look, alook, description="Looks.")
    chain: Runnable[Any, Any] = model | StrOutputParser() | tool | after
    log = RunLog()

    async def scenario() -> None:
        answer = stream(chain, "?", {"callbacks": [log]}, run_in=run_in, token_timeout=SHORT)
        async with consumer.entered(answer):
            assert await consumer.take(answer, 2) == tokens(2)
            with pytest.raises(StreamTimeoutError, match=r" token_timeout=0\.05 .* after 2 tokens"):
                await consumer.next(answer)
            if run_in == "thread":
                gate.release()  # the tool returns
        await nothing_is_left(consumer, [model.record, after.record], log)

    consumer.run(scenario)
    assert after.record.calls == 0


def test_a_nested_streams_timeout_is_the_outer_runs_error() -> None:
    """Hazard: the outer stream takes it for a timeout of its own, and is not told whose it is."""
    model = silent_model("a")

    def target(query: str) -> str:
        return "".join(stream(model, query, token_timeout=SHORT))

    with stream(RunnableLambda(target), "?", token_timeout=LONG) as outer:
        assert next(outer) == "a"
        with pytest.raises(StreamTimeoutError, match=r"of ScriptedChatModel: .*=0\.05 seconds"):
            next(outer)
        with pytest.raises(StreamTimeoutError):
            _ = outer.result


# -- which waits are timed, and from when ----------------------------------------------------


@a_few_pairings
def test_each_limit_has_its_waits(expiries: Expiries, run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: the first wait has the second limit, or a later one the first."""
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(3), gate=gate)

    def release_when_it_waits() -> None:
        for count in (1, 2, 3):
            expiries.wait_for(count)
            gate.release()

    async def scenario() -> None:
        answer = stream(model, "?", run_in=run_in, first_token_timeout=5, token_timeout=7)
        async with consumer.entered(answer):
            meanwhile(release_when_it_waits)
            assert await consumer.collect(answer) == tokens(3)

    consumer.run(scenario)
    assert expiries.asked[:3] == [5.0, 7.0, 7.0]
    assert set(expiries.asked[3:]) <= {7.0}  # for the end, if that took a moment


@pytest.mark.parametrize("limit", [None, inf])
@a_few_pairings
def test_no_limit(
    expiries: Expiries, run_in: RunIn, consumer: Consumer, limit: float | None
) -> None:
    """Hazard: a timer that nobody asked for, or an infinite one that a lock does not take."""
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(2), gate=gate)

    async def scenario() -> None:
        answer = stream(model, "?", run_in=run_in, first_token_timeout=limit, token_timeout=limit)
        async with consumer.entered(answer):
            meanwhile(lambda: eventually(lambda: getters_of(answer)), gate.open)
            assert await consumer.collect(answer) == tokens(2)

    consumer.run(scenario)
    assert expiries.asked == []


@each_queue
def test_a_huge_limit(case: Case, make_queue: Callable[[int], object]) -> None:
    """Hazard: more seconds than a lock or a loop can wait are an OverflowError."""
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(2), gate=gate)

    async def scenario() -> None:
        options: dict[str, Any] = {"queue": queue} if (queue := make_queue(256)) else {}
        answer = stream(
            model,
            "?",
            run_in=cast("RunIn", case.producer),
            first_token_timeout=10**400,
            token_timeout=1e300,
            **options,
        )
        async with case.consumer.entered(answer):
            meanwhile(lambda: eventually(lambda: _waits(answer)), gate.open)
            assert await case.consumer.collect(answer) == tokens(2)

    case.consumer.run(scenario)


def _waits(answer: TokenStream[Any]) -> bool:
    """Whether the consumer has begun to wait; with janus, in its queue itself."""
    inside: Any = queue_of(answer)._sync_q
    parent = getattr(inside, "_parent", None)
    if parent is not None:
        return bool(parent._sync_not_empty_waiting or parent._async_not_empty_waiting)
    if queue_of(answer).buffer is not None:
        return getters_of(answer) > 0
    return bool(queue_of(answer).consumers)


@each_queue
def test_a_slow_consumer_trips_nothing(case: Case, make_queue: Callable[[int], object]) -> None:
    """Nothing is timed while nobody waits.  Hazard: an item that waits is late all the same.

    With a limit of 0: what is there already is in time, however long it has been there.
    """
    model = ScriptedChatModel(tokens=tokens(70))  # so that a turn of the loop ends, too

    async def scenario() -> None:
        queue = make_queue(2)
        options: dict[str, Any] = {"maxsize": 2} if queue is None else {"queue": queue}
        answer = stream(
            model,
            "?",
            run_in=cast("RunIn", case.producer),
            first_token_timeout=0,
            token_timeout=0,
            **options,
        )
        received: list[str] = []
        async with case.consumer.entered(answer):
            while len(received) < 70:
                await case.consumer.eventually(queue_of(answer).has_items)
                received.append(await case.consumer.next(answer))
            await case.consumer.eventually(lambda: queue_of(answer).ended)
            assert await case.consumer.collect(answer) == []
        assert received == tokens(70)

    case.consumer.run(scenario)


@each_pairing
def test_zero_is_at_once(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: 0 is taken for no limit."""

    async def scenario() -> None:
        async with consumer.entered(
            stream(silent_model("a"), "?", run_in=run_in, token_timeout=0)
        ) as answer:
            assert await consumer.next(answer) == "a"
            with pytest.raises(StreamTimeoutError, match=r" token_timeout=0 seconds, after 1 "):
                await consumer.next(answer)
        async with consumer.entered(
            stream(silent_model(), "?", run_in=run_in, first_token_timeout=0)
        ) as answer:
            with pytest.raises(StreamTimeoutError, match=r" first_token_timeout=0 .* after 0 "):
                await consumer.next(answer)

    consumer.run(scenario)


_DROPPED: dict[str, AIMessageChunk] = {
    "empty": AIMessageChunk(content=""),
    "reasoning": AIMessageChunk(content=[{"type": "thinking", "thinking": "hm", "index": 0}]),
    "tool call": AIMessageChunk(
        content="",
        tool_call_chunks=[
            {"name": "look", "args": "{", "id": "1", "index": 0, "type": "tool_call_chunk"}
        ],
    ),
    "usage": AIMessageChunk(content="", usage_metadata=usage(1, 1)),
}


@pytest.mark.parametrize("dropped", [*_DROPPED, "excluded run"])
@a_few_pairings
def test_what_is_dropped_restarts_the_wait(
    expiries: Expiries, run_in: RunIn, consumer: Consumer, dropped: str
) -> None:
    """Hazard: a model that thinks or calls tools for long is stopped as if it were silent."""
    gate = Gate(1)

    def model(*items: str | AIMessageChunk) -> ScriptedChatModel:
        return ScriptedChatModel(tokens=items, gate=gate)

    target: Runnable[Any, Any]
    if dropped == "excluded run":
        target = (
            model("a")
            | StrOutputParser()
            | model("x").with_config(tags=["nostream"])
            | StrOutputParser()
            | model("b")
        )
    else:
        target = model("a", _DROPPED[dropped], "b")

    async def scenario() -> None:
        answer = stream(target, "?", run_in=run_in, token_timeout=10)

        def set_clock(now: float) -> None:
            expiries.now = now

        async with consumer.entered(answer):
            assert await consumer.next(answer) == "a"
            meanwhile(
                lambda: expiries.wait_for(1),
                lambda: set_clock(107.0),
                gate.release,
                # At the gate again: the empty chunk at a run's end is dropped before that, too.
                lambda: eventually(lambda: queue_of(answer).last_dropped == 107.0 and gate.waiting),
                lambda: set_clock(110.0),
                expiries.expire,
                lambda: expiries.wait_for(2),
                gate.release,
            )
            assert await consumer.next(answer) == "b"

    consumer.run(scenario)
    assert expiries.asked[:2] == [10.0, 7.0]  # to 10 seconds after the chunk


@a_few_pairings
def test_what_was_dropped_before_the_wait_does_not_count(
    expiries: Expiries, run_in: RunIn, consumer: Consumer
) -> None:
    """Hazard: a wait is as long again because of something that came before it."""
    gate = Gate(2)
    model = ScriptedChatModel(tokens=["a", _DROPPED["empty"], "never"], gate=gate)

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in, token_timeout=10)) as answer:
            assert await consumer.next(answer) == "a"
            await consumer.eventually(lambda: queue_of(answer).last_dropped == 100.0)
            expiries.now = 105.0
            meanwhile(lambda: expiries.wait_for(1), expiries.expire)
            with pytest.raises(StreamTimeoutError):
                await consumer.next(answer)
            gate.open()

    consumer.run(scenario)
    assert expiries.asked == [10.0]


# -- in the very moment ----------------------------------------------------------------------


def _late_item() -> tuple[Counter, str]:
    return Counter(), "late"


@pytest.mark.parametrize("moment", ["just before", "just after"])
@each_pairing
def test_an_item_that_comes_at_the_expiry(
    expiries: Expiries, run_in: RunIn, consumer: Consumer, moment: str
) -> None:
    """Promise 1.  Hazard: it is lost, or the run stopped although it came."""
    model = silent_model("a")

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in, token_timeout=10)) as answer:
            assert await consumer.next(answer) == "a"

            def put() -> None:
                queue_of(answer).put_at_once(_late_item())

            if moment == "just after":
                expiries.on_expiry = put
                meanwhile(lambda: expiries.wait_for(1), expiries.expire)
            else:
                meanwhile(lambda: expiries.wait_for(1), lambda: expiries.expire(first=put))
            assert await consumer.next(answer) == "late"
            expiries.on_expiry = lambda: None
            assert model.gate is not None
            model.gate.open()
            assert await consumer.collect(answer) == ["never"]
        assert answer.text == "alatenever"

    consumer.run(scenario)


@pytest.mark.parametrize(
    "run_in, consumer",
    [param for param in pairings("for", "asyncio", "trio") if param.values[0] != "task"],
)
def test_an_error_that_comes_at_the_expiry_wins(
    expiries: Expiries, run_in: RunIn, consumer: Consumer
) -> None:
    """Hazard: the reason is at hand, and the consumer hears of a timeout."""
    gate = Gate(1)
    failure = ValueError("the model's own")
    model = ScriptedChatModel(tokens=tokens(2), gate=gate, failure=failure, fail_at=1)

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in, token_timeout=10)) as answer:
            assert await consumer.next(answer) == tokens(1)[0]

            def fail() -> None:
                gate.release()
                eventually(lambda: queue_of(answer).ended)

            expiries.on_expiry = fail
            meanwhile(lambda: expiries.wait_for(1), expiries.expire)
            with pytest.raises(ValueError, match="the model's own") as raised:
                await consumer.next(answer)
            assert raised.value is failure

    consumer.run(scenario)


@a_few_pairings
def test_the_runs_error_within_the_limit(run_in: RunIn, consumer: Consumer) -> None:
    model = ScriptedChatModel(tokens=tokens(2), failure=ValueError("the model's own"), fail_at=1)

    async def scenario() -> None:
        answer = stream(model, "?", run_in=run_in, first_token_timeout=LONG, token_timeout=LONG)
        async with consumer.entered(answer):
            assert await consumer.next(answer) == tokens(1)[0]
            with pytest.raises(ValueError, match="the model's own"):
                await consumer.next(answer)

    consumer.run(scenario)


# -- together with other people's waits ------------------------------------------------------


@pytest.mark.parametrize(
    "case, make_queue", [param for param in _every_queue() if param.values[0].consumer.is_async]
)
def test_a_cancelled_wait(case: Case, make_queue: Callable[[int], object]) -> None:
    """Promise 7.  Hazard: the consumer's own limit is swallowed, or a cancel scope stays open."""
    gate = Gate(1)
    model = ScriptedChatModel(tokens=tokens(3), gate=gate)

    async def scenario() -> None:
        options: dict[str, Any] = {"queue": queue} if (queue := make_queue(256)) else {}
        run_in = cast("RunIn", case.producer)
        answer = stream(model, "?", run_in=run_in, token_timeout=LONG, **options)
        async with answer:
            assert await answer.__anext__() == tokens(1)[0]
            with anyio.move_on_after(0.02) as scope:
                await answer.__anext__()
            assert scope.cancelled_caught
            assert anyio.current_effective_deadline() == inf
            if case.consumer.name != "trio":
                with pytest.raises(asyncio.TimeoutError) as raised:
                    await asyncio.wait_for(answer.__anext__(), 0.02)
                assert not isinstance(raised.value, StreamTimeoutError)
            if case.consumer.name != "trio" and sys.version_info >= (3, 11):
                with pytest.raises(TimeoutError) as raised:
                    async with asyncio.timeout(0.02):
                        await answer.__anext__()
                assert not isinstance(raised.value, StreamTimeoutError)
                task = asyncio.current_task()
                assert task is not None
                assert task.cancelling() == 0
            assert anyio.current_effective_deadline() == inf
            gate.open()
            assert await case.consumer.collect(answer) == tokens(2, start=1)
            assert anyio.current_effective_deadline() == inf

    case.consumer.run(scenario)


@each_async_pairing
def test_a_timeout_leaves_no_cancel_scope(run_in: RunIn, consumer: Consumer) -> None:
    model = silent_model("a")

    async def scenario() -> None:
        with anyio.CancelScope() as outer:
            async with stream(model, "?", run_in=run_in, token_timeout=SHORT) as answer:
                assert await answer.__anext__() == "a"
                with pytest.raises(StreamTimeoutError):
                    await answer.__anext__()
                assert anyio.current_effective_deadline() == inf
                # Where a cancellation that is left would arrive.
                await anyio.lowlevel.checkpoint()
        assert not outer.cancelled_caught

    consumer.run(scenario)


@each_async_pairing
def test_an_outer_scope_is_cancelled_at_the_expiry(
    expiries: Expiries, run_in: RunIn, consumer: Consumer
) -> None:
    """Promise 7.  Hazard: the two are taken for one, and the consumer goes on, or gets ours."""
    gate = Gate(1)
    model = ScriptedChatModel(tokens=tokens(3), gate=gate)

    async def scenario() -> None:
        async with stream(model, "?", run_in=run_in, token_timeout=10) as answer:
            assert await answer.__anext__() == tokens(1)[0]
            with anyio.CancelScope() as outer:
                meanwhile(lambda: expiries.wait_for(1), lambda: expiries.expire(first=outer.cancel))
                await answer.__anext__()
            assert outer.cancelled_caught
            assert "running" in repr(answer)
            gate.open()
            assert await consumer.collect(answer) == tokens(2, start=1)

    consumer.run(scenario)


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="a task of Python 3.10 cannot tell two cancellations apart"
)
@pytest.mark.parametrize("run_in, consumer", pairings("asyncio", "uvloop", "eager"))
def test_the_task_is_cancelled_at_the_expiry(
    expiries: Expiries, run_in: RunIn, consumer: Consumer
) -> None:
    """Hazard: as above."""
    gate = Gate(1)
    model = ScriptedChatModel(tokens=tokens(3), gate=gate)

    async def scenario() -> None:
        async with stream(model, "?", run_in=run_in, token_timeout=10) as answer:
            assert await answer.__anext__() == tokens(1)[0]
            waiting = asyncio.ensure_future(consumer.next(answer))
            meanwhile(lambda: expiries.wait_for(1), lambda: expiries.expire(first=waiting.cancel))
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert waiting.cancelled()
            assert "running" in repr(answer)
            gate.open()
            assert await consumer.collect(answer) == tokens(2, start=1)

    consumer.run(scenario)


@pytest.mark.parametrize(
    "run_in, consumer",
    [param for param in pairings("for", "asyncio", "trio") if param.values[0] != "task"],
)
def test_a_second_consumer_is_refused_and_the_first_goes_on(
    expiries: Expiries, run_in: RunIn, consumer: Consumer
) -> None:
    """Hazard: two that wait with a limit share the item, or its timer."""
    gate = Gate(1)
    model = ScriptedChatModel(tokens=tokens(2), gate=gate)

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in, token_timeout=10)) as answer:
            assert await consumer.next(answer) == tokens(1)[0]
            refused = threading.Event()

            def intrude() -> None:
                with contextlib.suppress(ConcurrentIterationError):
                    next(answer)
                    return
                refused.set()

            meanwhile(lambda: expiries.wait_for(1), intrude, gate.release)
            assert await consumer.collect(answer) == tokens(1, start=1)
            assert refused.is_set()

    consumer.run(scenario)


# -- how it waits ----------------------------------------------------------------------------


@pytest.mark.parametrize("run_in", ["thread", "background"])
def test_a_thread_waits_once(run_in: RunIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 10.  Hazard: a wait of many short ones."""
    waits = Waits(monkeypatch)
    model = silent_model("a")
    with stream(model, "?", run_in=run_in, token_timeout=SHORT) as answer:
        assert next(answer) == "a"
        with pytest.raises(StreamTimeoutError):
            next(answer)
    assert len([timeout for timeout in waits.timeouts if timeout is not None]) == 1


@pytest.mark.parametrize("run_in", ["thread", "task", "background"])
def test_an_asyncio_loop_sleeps_once(run_in: RunIn) -> None:
    """Promise 10.  Hazard: a turn of the loop now and then."""
    selector = CountingSelector()
    model = silent_model("a")
    slept: list[float | None] = []

    async def scenario() -> None:
        async with stream(model, "?", run_in=run_in, token_timeout=SHORT) as answer:
            assert await answer.__anext__() == "a"
            before = len(selector.timeouts)
            with pytest.raises(StreamTimeoutError):
                await answer.__anext__()
            slept.extend(timeout for timeout in selector.timeouts[before:] if timeout != 0)

    run_and_count(scenario(), selector)
    assert None not in slept
    assert 1 <= len(slept) <= 2  # a selector may return a moment early


@pytest.mark.parametrize("run_in", ["thread", "background"])
def test_trio_sleeps_once(run_in: RunIn) -> None:
    """Promise 10.  Hazard: as above."""
    trio = pytest.importorskip("trio")
    model = silent_model("a")

    class Sleeps(trio.abc.Instrument):  # type: ignore[name-defined, misc]
        timeouts: list[float]

        def __init__(self) -> None:
            self.timeouts = []

        def before_io_wait(self, timeout: float) -> None:
            self.timeouts.append(timeout)

    sleeps = Sleeps()
    slept: list[float] = []

    async def main() -> None:
        async with stream(model, "?", run_in=run_in, token_timeout=SHORT) as answer:
            assert await answer.__anext__() == "a"
            before = len(sleeps.timeouts)
            with pytest.raises(StreamTimeoutError):
                await answer.__anext__()
            slept.extend(timeout for timeout in sleeps.timeouts[before:] if timeout)

    trio.run(main, instruments=[sleeps])
    assert 1 <= len(slept) <= 2


@a_few_pairings
def test_no_thread_times_a_wait(run_in: RunIn, consumer: Consumer) -> None:
    """Promise 10.  Hazard: a timer thread for each stream."""
    gate = Gate(1)
    model = ScriptedChatModel(tokens=tokens(2), gate=gate)
    seen: list[set[threading.Thread]] = []

    async def scenario() -> None:
        answer = stream(model, "?", run_in=run_in, token_timeout=LONG)
        async with consumer.entered(answer):
            assert await consumer.next(answer) == tokens(1)[0]
            before = set(threading.enumerate())
            meanwhile(
                lambda: eventually(lambda: getters_of(answer)),
                lambda: seen.append({*threading.enumerate()} - {threading.current_thread()}),
                gate.open,
            )
            assert await consumer.next(answer) == tokens(1, start=1)[0]
        assert seen == [before]
        await consumer.eventually(lambda: not our_threads())

    consumer.run(scenario)


# -- pieces ----------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 3])
@a_few_pairings
def test_pieces_past_the_limit(run_in: RunIn, consumer: Consumer, before: int) -> None:
    """Hazard: a piece that is empty, or one whose tokens are lost with the error."""
    gate = Gate(before)
    model = ScriptedChatModel(tokens=tokens(before + 5), gate=gate)
    name = "token" if before else "first_token"
    log = RunLog()

    async def scenario() -> None:
        limits: Any = {f"{name}_timeout": SHORT}
        answer = stream(model, "?", {"callbacks": [log]}, run_in=run_in, **limits)
        pieces = cast("TokenStream[str]", answer.pieces())
        async with consumer.entered(answer):
            received: list[str] = []
            with pytest.raises(StreamTimeoutError, match=rf" {name}_.* after {before} tokens"):
                while True:
                    received.append(await consumer.next(pieces))
            assert "".join(received) == answer.text == "".join(tokens(before))
            assert await consumer.collect(pieces) == await consumer.collect(answer) == []
            with pytest.raises(StreamTimeoutError):
                _ = answer.result
            if run_in == "thread":
                gate.open()  # it ends at its next token
        await nothing_is_left(consumer, [model.record], log)

    consumer.run(scenario)
    assert model.record.produced == before + (run_in == "thread")


@a_few_pairings
def test_the_end_of_max_delay_is_no_timeout(
    expiries: Expiries, run_in: RunIn, consumer: Consumer
) -> None:
    """A delay that is over completes the piece.  Hazard: the stream ends with it."""
    gate = Gate(1)
    model = ScriptedChatModel(tokens=tokens(2), gate=gate)

    async def scenario() -> None:
        answer = stream(model, "?", run_in=run_in, token_timeout=LONG)
        pieces = cast("TokenStream[str]", answer.pieces(max_delay=10))
        async with consumer.entered(answer):
            meanwhile(lambda: expiries.wait_for(1), expiries.expire)
            assert await consumer.next(pieces) == tokens(1)[0]
            gate.open()
            assert await consumer.collect(pieces) == tokens(1, start=1)

    consumer.run(scenario)


# -- at the call -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["first_token_timeout", "token_timeout"])
@pytest.mark.parametrize(
    "given, error, message",
    [
        (-1, ValueError, r"must be 0 seconds or more, or None; not -1$"),
        (-0.001, ValueError, r"must be 0 seconds or more, or None; not -0\.001$"),
        (-inf, ValueError, r"must be 0 seconds or more, or None; not -inf$"),
        (nan, ValueError, r"must be 0 seconds or more, or None; not nan$"),
        (True, TypeError, r"must be a number of seconds or None, not True$"),
        (False, TypeError, r"must be a number of seconds or None, not False$"),
        ("5", TypeError, r"must be a number of seconds or None, not '5'$"),
        ([5], TypeError, r"must be a number of seconds or None, not \[5\]$"),
        (1j, TypeError, r"must be a number of seconds or None, not 1j$"),
    ],
)
def test_what_is_no_limit(name: str, given: Any, error: type[Exception], message: str) -> None:
    """Hazard: it is noticed in the middle of the answer, or never."""
    model = silent_model()
    options: Any = {name: given}
    with pytest.raises(error, match=f"^{name} {message}"):
        stream(model, "?", **options)
    assert model.record.calls == 0
