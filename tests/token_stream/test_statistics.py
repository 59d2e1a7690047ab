"""``statistics``: live, exact, and harmless to look at."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import culsans
import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.runnables import RunnableParallel

from queuestream import MixedQueue, _meter, stream, token_stream
from queuestream._meter import Counter, Meter, StreamStatistics, _Wait
from queuestream.errors import StreamTimeoutError
from queuestream.events import ModelRun
from queuestream.handlers import feed
from tests.support.consumers import CONSUMERS, PAIRINGS, in_another_thread, pairings
from tests.support.gates import Gate, eventually
from tests.support.haste import Meeting, hasty
from tests.support.models import ScriptedChatModel, silent_model, tokens
from tests.support.streams import STREAM_CASES, putters_of, queue_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from tests.support.consumers import Consumer, RunIn
    from tests.support.streams import Case

each_pairing = pytest.mark.parametrize("run_in, consumer", PAIRINGS)
a_few_pairings = pytest.mark.parametrize("run_in, consumer", pairings("for", "asyncio", "trio"))


def _every_queue() -> list[Any]:
    """Each case of a few consumers, by a function that makes its queue; None is the default."""
    makers: list[tuple[str, Callable[[int], object]]] = [
        ("MixedQueue", MixedQueue),
        ("culsans", culsans.Queue),
    ]
    cases = [
        (param.id, case)
        for param in STREAM_CASES
        for case in param.values
        if case.consumer.name in ("for", "asyncio", "trio")
    ]
    params = [pytest.param(case, case.make_queue, id=name) for name, case in cases]
    params += [
        pytest.param(case, make, id=f"{name}-{what}")
        for what, make in makers
        for name, case in cases
        if case.queue == "default"
    ]
    return params


each_queue = pytest.mark.parametrize("case, make_queue", _every_queue())


class Clock:
    """What the clock shows to those who measure."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        for module in (_meter, token_stream, feed):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# -- time ------------------------------------------------------------------------------------


def test_before_the_start() -> None:
    """Hazard: a division by zero, or a clock that runs before the run does."""
    answer = stream(ScriptedChatModel(tokens=tokens(2)), "?")
    for _ in range(2):
        assert repr(answer.statistics) == (
            "StreamStatistics(tokens=0, characters=0, time_to_first_token=None, duration=0.0, "
            "tokens_per_second=0.0, peak_buffered=0, blocked=0.0, merged=0, attempts=1)"
        )
        answer.close()


@each_pairing
def test_it_is_live(clock: Clock, run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: a number that is known at the end only, or that an early look fixes."""
    gate = Gate()
    model = ScriptedChatModel(tokens=["one ", "three ", "!"], gate=gate)

    async def scenario() -> None:
        answer = stream(model, "?", run_in=run_in)
        async with consumer.entered(answer):
            statistics = answer.statistics

            def look() -> tuple[object, ...]:
                return (
                    statistics.tokens,
                    statistics.characters,
                    statistics.time_to_first_token,
                    statistics.duration,
                    statistics.tokens_per_second,
                )

            assert await consumer.wait(look) == (0, 0, None, 0.0, 0.0)
            clock.now = 103.0
            assert await consumer.wait(look) == (0, 0, None, 3.0, 0.0)
            clock.now = 104.0
            gate.release()
            assert await consumer.next(answer) == "one "
            clock.now = 105.0
            assert await consumer.wait(look) == (1, 4, 4.0, 5.0, 0.2)
            gate.release()
            await consumer.eventually(queue_of(answer).has_items)  # it was made, and nobody has it
            clock.now = 108.0
            assert await consumer.wait(look) == (2, 10, 4.0, 8.0, 0.25)
            clock.now = 110.0
            gate.open()
            assert await consumer.collect(answer) == ["three ", "!"]
            at_end = await consumer.wait(look)
            assert at_end == (3, 11, 4.0, 10.0, 0.3)
            clock.now = 200.0
            assert await consumer.wait(look) == at_end
        assert look() == at_end

    consumer.run(scenario)


@a_few_pairings
def test_tokens_in_no_time(clock: Clock, run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: a clock that is coarser than the run divides by zero."""

    async def scenario() -> None:
        answer = stream(ScriptedChatModel(tokens=tokens(2)), "?", run_in=run_in)
        assert await consumer.collect(answer) == tokens(2)
        assert answer.statistics.tokens == 2
        assert answer.statistics.duration == answer.statistics.tokens_per_second == 0.0
        assert answer.statistics.time_to_first_token == 0.0

    consumer.run(scenario)


@pytest.mark.parametrize("ending", ["close", "drop", "timeout", "error"])
@a_few_pairings
def test_the_duration_ends(clock: Clock, run_in: RunIn, consumer: Consumer, ending: str) -> None:
    """Hazard: it goes on after the run, or until somebody looks."""
    gate = Gate(1)
    failure = ValueError("the model's own") if ending == "error" else None
    model = ScriptedChatModel(tokens=tokens(2), gate=gate, failure=failure, fail_at=1)

    async def scenario() -> None:
        limit = 0.02 if ending == "timeout" else None
        answer = stream(model, "?", run_in=run_in, token_timeout=limit)
        statistics = answer.statistics
        assert await consumer.next(answer) == tokens(1)[0]
        clock.now = 105.0
        if ending == "close":
            await consumer.close(answer)
        elif ending == "drop":
            reference = weakref.ref(answer)
            del answer
            gc.collect()
            assert reference() is None  # the statistics do not keep it
        elif ending == "timeout":
            with pytest.raises(StreamTimeoutError, match=r"after 1 tokens and 5\.000 seconds"):
                await consumer.next(answer)
        else:
            gate.open()
            with pytest.raises(ValueError, match="the model's own"):
                await consumer.next(answer)
        clock.now = 200.0
        assert statistics.duration == 5.0
        if run_in == "thread":
            gate.open()  # it ends at its next token
        await consumer.wait(model.record.wait_until_finalized)
        clock.now = 300.0
        assert statistics.duration == 5.0
        assert statistics.time_to_first_token == 0.0

    consumer.run(scenario)


def test_a_close_in_the_middle_of_the_start(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard: the clock starts after it was stopped, and nobody stops it any more."""
    model = ScriptedChatModel(tokens=tokens(2))
    answer = stream(model, "?")

    def close_first() -> float:
        answer.close()
        return clock.now

    monkeypatch.setattr(token_stream, "monotonic", close_first)
    with answer:
        pass
    run: Any = answer._run
    eventually(lambda: run.gone._set)
    clock.now = 200.0
    assert answer.statistics.duration == 0.0


# -- counting --------------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["text", "message", "event"])
@a_few_pairings
def test_tokens_are_the_items(run_in: RunIn, consumer: Consumer, select: Any) -> None:
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    model = ScriptedChatModel(
        tokens=[
            "",
            AIMessageChunk(content=[{"type": "thinking", "thinking": "hm", "index": 0}]),
            "abc",
            AIMessageChunk(content="de", usage_metadata=cast("Any", usage)),
        ]
    )

    async def scenario() -> None:
        answer = stream(model, "?", run_in=run_in, select=select)
        received = await consumer.collect(answer)
        assert (
            answer.statistics.tokens
            == len(received)
            == {"text": 2, "message": 5, "event": 4}[select]
        )
        assert answer.statistics.characters == 5
        assert answer.statistics.attempts == 1

    consumer.run(scenario)


class InTwoSteps:
    """A number of a run that ``+= 1`` reads and then writes: others may come between.

    Without the interpreter's lock that is so for each number.
    """

    def __init__(self) -> None:
        self._slot: Any = vars(Counter)["tokens"]

    def __get__(self, run: ModelRun | None, kind: type[ModelRun] | None = None) -> Any:
        return self._slot.__get__(run, kind)

    def __set__(self, run: ModelRun, value: int) -> None:
        self._slot.__set__(run, value)


@a_few_pairings
def test_parallel_branches_count_exactly(
    run_in: RunIn, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard: ``+= 1`` on one number from several threads."""
    monkeypatch.setattr(ModelRun, "tokens", InTwoSteps())
    branches_count_exactly(run_in, consumer)


def branches_count_exactly(run_in: RunIn, consumer: Consumer) -> None:
    models = [ScriptedChatModel(tokens=tokens(100, start=index)) for index in range(8)]
    silent = ScriptedChatModel(tokens=tokens(50)).with_config(tags=["nostream"])
    target: Any = RunnableParallel(
        {"silent": silent, **{str(index): model for index, model in enumerate(models)}}
    )

    async def scenario() -> None:
        answer = stream(target, "?", run_in=run_in, maxsize=16)
        received = await consumer.collect(answer)
        assert answer.statistics.tokens == len(received) == 800
        assert answer.statistics.characters == len("".join(received)) == len(answer.text)
        assert 1 <= answer.statistics.peak_buffered <= 16

    with hasty():
        consumer.run(scenario)


class OneForAll(InTwoSteps):
    """One number that all runs add to, under a lock or without one."""

    def __init__(self, *, is_locked: bool) -> None:
        super().__init__()
        self.number = 0
        self.meeting = Meeting()
        self.lock = threading.Lock() if is_locked else None

    def __get__(self, run: ModelRun | None, kind: type[ModelRun] | None = None) -> Any:
        if self.lock is not None:
            self.lock.acquire()
            return self.number
        number = self.number
        self.meeting.attend()
        return number

    def __set__(self, run: ModelRun, value: int) -> None:
        if value:  # else a run begins
            self.number = value
            if self.lock is not None:
                self.lock.release()


@pytest.mark.parametrize("is_locked", [True, False], ids=["locked", "race"])
def test_a_race_of_counting_branches_is_noticed(
    is_locked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canary: two branches read one number before either has written it."""
    planted = OneForAll(is_locked=is_locked)
    monkeypatch.setattr(ModelRun, "tokens", planted)
    monkeypatch.setattr(StreamStatistics, "tokens", property(lambda _: planted.number))
    (consumer,) = (consumer for consumer in CONSUMERS if consumer.name == "for")
    if is_locked:
        branches_count_exactly("thread", consumer)
        return
    with pytest.raises(AssertionError, match=r"assert \d+ == 800"):
        branches_count_exactly("thread", consumer)


@a_few_pairings
def test_attempts(run_in: RunIn, consumer: Consumer) -> None:
    """What failed attempts produced counts: it was produced, and paid for."""
    model = ScriptedChatModel(
        tokens=tokens(3), failure=ValueError("again"), fail_at=2, fail_calls=1
    )
    target = model.with_retry(wait_exponential_jitter=False)

    async def scenario() -> None:
        answer = stream(target, "?", run_in=run_in)
        async with consumer.entered(answer):
            assert await consumer.take(answer, 2) == tokens(2)
            assert await consumer.next(answer) == tokens(1)[0]
            assert answer.statistics.attempts == 2  # now, and not at the end only
            assert await consumer.collect(answer) == tokens(2, start=1)
        assert answer.statistics.attempts == 2
        assert answer.statistics.tokens == 5
        assert answer.text == "".join(tokens(3))

    consumer.run(scenario)


@a_few_pairings
def test_merged(run_in: RunIn, consumer: Consumer) -> None:
    """Tokens count before merging.  Hazard: what was joined counts as one, or as buffered."""
    model = ScriptedChatModel(tokens=tokens(10))

    async def scenario() -> None:
        answer = stream(model, "?", run_in=run_in, maxsize=1, overflow="merge")
        async with consumer.entered(answer):
            await consumer.eventually(lambda: queue_of(answer).ended)
            assert await consumer.collect(answer) == ["".join(tokens(10))]
        statistics = answer.statistics
        assert (statistics.tokens, statistics.merged) == (10, 9)
        assert statistics.characters == len(answer.text)
        assert statistics.peak_buffered == 1
        assert statistics.blocked == 0.0

    consumer.run(scenario)


# -- waiting for the consumer ------------------------------------------------------------------


@each_queue
def test_a_stalled_consumer(clock: Clock, case: Case, make_queue: Callable[[int], object]) -> None:
    """``peak_buffered`` is exact and ``blocked`` grows while the run waits, with every queue."""
    model = ScriptedChatModel(tokens=tokens(9))

    async def scenario() -> None:
        queue = make_queue(4)
        options: dict[str, Any] = {"maxsize": 4} if queue is None else {"queue": queue}
        answer = stream(model, "?", run_in=cast("RunIn", case.producer), **options)
        statistics = answer.statistics
        async with case.consumer.entered(answer):
            await case.consumer.wait(lambda: model.record.wait_until_produced(5))
            # Five were made, four are there; the clock stands until the run waits for sure.
            await case.consumer.eventually(lambda: answer._tokens.meter._waits)
            assert statistics.blocked == 0.0
            clock.now += 3.0
            assert statistics.blocked == 3.0
            clock.now += 4.0
            assert statistics.blocked == 7.0
            assert statistics.tokens == 5  # one that waits for a free slot counts
            assert statistics.peak_buffered == 4
            assert await case.consumer.collect(answer) == tokens(9)
            clock.now += 9.0
            assert statistics.blocked == 7.0
            assert statistics.peak_buffered == 4
        assert (statistics.blocked, statistics.duration) == (7.0, 7.0)

    case.consumer.run(scenario)


@a_few_pairings
def test_a_close_ends_the_waiting(clock: Clock, run_in: RunIn, consumer: Consumer) -> None:
    model = ScriptedChatModel(tokens=tokens(9))

    async def scenario() -> None:
        answer = stream(model, "?", run_in=run_in, maxsize=2)
        async with consumer.entered(answer):
            await consumer.eventually(lambda: putters_of(answer))
            clock.now += 3.0
        await consumer.wait(model.record.wait_until_finalized)
        clock.now += 4.0
        assert answer.statistics.blocked == 3.0
        assert answer.statistics.peak_buffered == 2

    consumer.run(scenario)


@a_few_pairings
def test_parallel_producers_each_wait(clock: Clock, run_in: RunIn, consumer: Consumer) -> None:
    models = {str(index): ScriptedChatModel(tokens=tokens(3)) for index in range(3)}

    async def scenario() -> None:
        answer = stream(RunnableParallel(cast("Any", models)), "?", run_in=run_in, maxsize=1)
        async with consumer.entered(answer):
            await consumer.eventually(lambda: putters_of(answer) == 3)
            clock.now += 2.0
            assert answer.statistics.blocked == 6.0
            assert len(await consumer.collect(answer)) == 9
            assert answer.statistics.blocked == 6.0
            assert answer.statistics.peak_buffered == 1

    consumer.run(scenario)


@a_few_pairings
def test_a_run_that_never_waits(run_in: RunIn, consumer: Consumer) -> None:
    model = ScriptedChatModel(tokens=tokens(300))

    async def scenario() -> None:
        answer = stream(model, "?", run_in=run_in, maxsize=0)
        async with consumer.entered(answer):
            await consumer.eventually(lambda: queue_of(answer).ended)
            assert answer.statistics.blocked == 0.0
            assert answer.statistics.peak_buffered == 300
            assert await consumer.collect(answer) == tokens(300)

    consumer.run(scenario)


def test_many_waits_are_kept_as_few(clock: Clock) -> None:
    """Promise 9.  Hazard: each of a million waits is remembered; or one that goes on is lost."""
    meter = Meter()
    going_on = [meter.waiting() for _ in range(3)]
    for _ in range(5000):
        with meter.waiting():
            clock.now += 1.0
    assert meter.blocked() == 5000.0 * 4
    assert len(meter._waits) < 1500
    for wait in going_on:
        with wait:
            pass
    clock.now += 1.0
    assert meter.blocked() == 5000.0 * 4


def test_a_wait_that_begins_while_others_are_added_up(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard: it came after they were looked at, and goes with them."""
    meter = Meter()
    late: list[object] = []

    def monotonic() -> float:
        if meter._folding.locked() and not late:
            late.append("begins")
            late.append(meter.waiting())
        return clock.now

    monkeypatch.setattr(_meter, "monotonic", monotonic)
    while not late:
        with meter.waiting():
            clock.now += 1.0
    waited = meter.blocked()
    clock.now += 5.0
    assert meter.blocked() == waited + 5.0


def test_a_look_between_any_two_steps(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard: a wait that ends, or is added to others, is missing for a moment, or there twice.

    Time passes in waits alone, one after the other, so that all of it was waited.
    """
    monkeypatch.setattr(_meter, "_FOLD", 4)
    meter = Meter()
    looks = 0

    def look(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal looks
        if frame.f_code.co_filename != _meter.__file__:
            return None
        frame.f_trace_opcodes = True
        looks += 1
        assert meter.blocked() == clock.now - 100.0
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        for _ in range(20):
            with meter.waiting():
                clock.now += 1.0
    finally:
        sys.settrace(before)
    assert looks > 200
    assert len(meter._waits) < 20


def test_looks_from_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with several that wait at once."""
    several_wait_while_one_looks(Meter(), monkeypatch)


def several_wait_while_one_looks(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have waits counted in several threads, and hold against their number what is seen of them.

    By the clock of a thread that waits, each wait lasts a second; the reader's stands still.
    """

    class Clocks(threading.local):
        now = 0.0
        runs = False

    clocks = Clocks()

    def monotonic() -> float:
        clocks.now += clocks.runs
        return clocks.now

    monkeypatch.setattr(_meter, "monotonic", monotonic)
    monkeypatch.setattr(_meter, "_FOLD", 8)
    meter._fold_at = 8
    threads, waits = 4, 1500

    def wait_often() -> None:
        clocks.runs = True
        for _ in range(waits):
            with meter.waiting():
                pass

    with hasty():
        waiting = [in_another_thread(wait_often) for _ in range(threads)]
        try:
            last = 0.0
            while any(thread.is_alive() for thread in waiting):
                now = meter.blocked()
                assert last <= now <= threads * waits
                last = now
        finally:
            for thread in waiting:
                thread.join()
    assert meter.blocked() == threads * waits


class LosesWhoComesMeanwhile(Meter):
    """Makes a new list of the waits that it has added up, without those that have begun since."""

    def _fold(self) -> None:
        if not self._folding.acquire(blocking=False):
            return
        waits = self._waits.copy()
        if self._fold_at == 8:  # the first time: see that there are some
            eventually(lambda: len(self._waits) > len(waits))
        total = _Wait()
        total.lasted = sum(wait.lasted or 0.0 for wait in waits)
        self._waits = [total, *(wait for wait in waits if wait.lasted is None)]
        self._fold_at = len(self._waits) + 8
        self._folding.release()


def test_a_race_of_waits_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary: some begin while others are added up, and are lost."""
    with pytest.raises(AssertionError, match=r"assert \d+\.\d"):
        several_wait_while_one_looks(LosesWhoComesMeanwhile(), monkeypatch)


# -- looking is harmless -----------------------------------------------------------------------


@pytest.mark.parametrize("run_in", ["thread", "background"])
def test_a_look_takes_no_lock(run_in: RunIn) -> None:
    """Hazard: a monitoring thread waits for the stream, or the stream for it."""
    model = silent_model(*tokens(2))
    looks: list[str] = []
    with stream(model, "?", run_in=run_in) as answer:
        assert next(answer) == tokens(1)[0]
        eventually(queue_of(answer).has_items)
        buffer, meter = queue_of(answer).buffer, queue_of(answer).meter

        def look() -> None:
            looks.append(repr(answer.statistics))
            looks.append(f"{answer.usage} {answer.text}")

        with queue_of(answer).lock, buffer._lock, meter._folding:
            thread = in_another_thread(look)
            thread.join(5)
        assert looks[1:] == ["None t0 "]
        assert looks[0].startswith("StreamStatistics(tokens=2, characters=6, ")


def test_a_dropped_stream_stops_though_its_statistics_are_kept() -> None:
    """Promise 4.  Hazard: the statistics refer to the stream."""
    model = ScriptedChatModel(tokens=tokens(50))
    answer = stream(model, "?", maxsize=4)
    statistics = answer.statistics
    assert next(answer) == tokens(1)[0]
    model.record.wait_until_produced(5)
    reference = weakref.ref(answer)
    del answer
    gc.collect()
    assert reference() is None
    model.record.wait_until_finalized()
    assert model.record.produced == statistics.tokens <= 1 + 4 + 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is for Unix")
def test_a_look_in_a_forked_child() -> None:
    """Promise 8.  Hazard: the child waits for a lock that was held at the fork."""
    program = """
        import os, sys, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork while there are threads
        from queuestream import stream
        from tests.support.gates import eventually
        from tests.support.models import ScriptedChatModel, tokens

        answers = [
            stream(ScriptedChatModel(tokens=tokens(50)), "?", maxsize=2, run_in=run_in)
            for run_in in ("thread", "background")
        ]
        for answer in answers:
            assert next(answer) == "t0 "
            eventually(lambda: answer._tokens.buffer._putters)
        held, may_release = threading.Event(), threading.Event()

        def hold():
            inside = [answer._tokens for answer in answers]
            for tokens in inside:
                tokens.lock.acquire()
                tokens.buffer._lock.acquire()
                tokens.meter._folding.acquire()
            held.set()
            may_release.wait(20)
            for tokens in inside:
                tokens.meter._folding.release()
                tokens.buffer._lock.release()
                tokens.lock.release()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(20)
        child = os.fork()
        if not child:
            for answer in answers:
                assert answer.text == "t0 " and answer.usage is None
                assert repr(answer.statistics).startswith("StreamStatistics(tokens=4, ")
                assert answer.statistics.blocked > 0
            os._exit(7)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        may_release.set()
        holder.join()
        for answer in answers:
            answer.close()
        sys.exit(code)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (7, "")
