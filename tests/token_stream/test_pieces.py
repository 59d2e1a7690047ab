"""`TokenStream.pieces`: what waits, joined, with ``for`` and ``async for``."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models import FakeListChatModel

from queuestream import _reader, stream
from queuestream._reader import Reader
from queuestream._token_queue import Ended, TokenQueue
from queuestream.errors import ConcurrentIterationError, StreamClosedError, StreamTimeoutError
from queuestream.events import About, Joinable, ModelRun, Restart
from queuestream.mixed_queue import SyncFace
from tests.support.consumers import CONSUMERS, PAIRINGS, Consumer, in_another_thread, pairings
from tests.support.gates import Gate, eventually
from tests.support.models import ScriptedChatModel, silent_model, tokens
from tests.support.signals import needs_signals, signals_when
from tests.support.streams import getters_of, is_blocked

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.consumers import RunIn

ASYNC_PAIRINGS = [pairing for pairing in PAIRINGS if pairing.values[1].is_async]
everywhere = pytest.mark.parametrize("run_in, consumer", PAIRINGS)
in_tasks = pytest.mark.parametrize("run_in, consumer", ASYNC_PAIRINGS)
NEVER = 3600.0
"""A ``max_delay`` that no test waits for."""


def waiting_in(answer: Any) -> int:
    """How many items wait."""
    return len(answer._tokens.buffer.items)


def kept_by(answer: Any) -> list[str]:
    """Return the tokens that a piece has taken and not delivered."""
    return [text for _, text in answer._reader.kept]


def is_gathering(answer: Any, *gathered: str) -> bool:
    """Whether a consumer has gathered these tokens, and waits for more."""
    return getters_of(answer) == 1 and kept_by(answer) == list(gathered)


async def all_wait(consumer: Consumer, answer: Any, count: int) -> None:
    """Wait until so many items wait."""
    await consumer.eventually(lambda: waiting_in(answer) == count)


async def all_made(consumer: Consumer, model: ScriptedChatModel, count: int) -> None:
    """Wait until a model has ended, and its tokens wait."""
    await consumer.wait(lambda: model.record.wait_until_produced(count))
    await consumer.wait(model.record.wait_until_finalized)


def pieces_of(answer: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the pieces of a stream, for the verbs of a `Consumer`."""
    return answer.pieces(*args, **kwargs)


# -- what a piece is -----------------------------------------------------------------------


@everywhere
def test_all_that_waits(run_in: RunIn, consumer: Consumer) -> None:
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(9), gate=gate)

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as answer:
            pieces = pieces_of(answer)
            for count, start in ((3, 0), (1, 3), (4, 4)):
                gate.release(count)
                await all_wait(consumer, answer, count)
                assert await consumer.next(pieces) == "".join(tokens(count, start=start))
            gate.release()
            assert await consumer.next(pieces) == tokens(1, start=8)[0]
            with pytest.raises(StopAsyncIteration):
                await consumer.next(pieces)
            with pytest.raises(StopAsyncIteration):
                await consumer.next(pieces)
            assert answer.text == answer.result.content == "".join(tokens(9))

    consumer.run(scenario)


@everywhere
def test_one_token_when_the_consumer_keeps_up(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: a piece waits for a second token."""
    gate = Gate(1)
    model = ScriptedChatModel(tokens=tokens(6), gate=gate)

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as answer:
            received: list[str] = []
            async for piece in consumer.iterate(pieces_of(answer)):
                received.append(piece)
                gate.release()
            assert received == tokens(6)

    consumer.run(scenario)


@everywhere
def test_no_more_than_max_tokens(run_in: RunIn, consumer: Consumer) -> None:
    model = ScriptedChatModel(tokens=tokens(8))

    async def scenario() -> list[str]:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as answer:
            await all_wait(consumer, answer, 8)
            return await consumer.collect(pieces_of(answer, max_tokens=3))

    texts = tokens(8)
    expected = ["".join(texts[:3]), "".join(texts[3:6]), "".join(texts[6:])]
    assert consumer.run(scenario) == expected


@everywhere
def test_merged_items_are_split(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: an item of many tokens passes ``max_tokens``, or what is beyond it is lost."""
    model = ScriptedChatModel(tokens=tokens(11))

    async def scenario() -> list[str]:
        made = stream(model, "?", run_in=run_in, maxsize=2, overflow="merge")
        async with consumer.entered(made) as answer:
            await all_made(consumer, model, 11)
            pieces = pieces_of(answer, max_tokens=3)
            received = await consumer.take(pieces, 2)
            assert answer.text == "".join(tokens(6))
            assert answer.statistics.merged == 9
            received += await consumer.take(pieces_of(answer, 1), 1)
            received += await consumer.take(answer, 1)  # one by one, too
            return received + await consumer.collect(pieces_of(answer))

    texts = tokens(11)
    assert consumer.run(scenario) == [
        "".join(texts[:3]),
        "".join(texts[3:6]),
        texts[6],
        texts[7],
        "".join(texts[8:]),
    ]


@everywhere
def test_a_run_that_waits_goes_on(run_in: RunIn, consumer: Consumer) -> None:
    """Promises 1 and 2.  Hazard: a piece takes items and wakes nobody."""
    model = ScriptedChatModel(tokens=tokens(90))

    async def scenario() -> list[str]:
        async with consumer.entered(stream(model, "?", run_in=run_in, maxsize=4)) as answer:
            received: list[str] = []
            await consumer.eventually(lambda: is_blocked(answer))
            async for piece in consumer.iterate(pieces_of(answer)):
                received.append(piece)
                taken = "".join(received).count("t")
                assert model.record.produced <= taken + 4 + 1
            return received

    received = consumer.run(scenario)
    assert received[0] == "".join(tokens(4))
    assert "".join(received) == "".join(tokens(90))


# -- waiting for more ----------------------------------------------------------------------


def one_by_one(answer: Any, gate: Gate, count: int, start: int = 0) -> None:
    """Let a model make a token each time that the consumer has all that was before it."""
    for number in range(start, start + count):
        eventually(lambda: is_gathering(answer, *tokens(number)))  # noqa: B023 - called at once
        gate.release()


@everywhere
@pytest.mark.parametrize("max_delay", [NEVER, inf], ids=["long", "infinite"])
def test_max_delay_waits_for_more_and_the_end_completes(
    run_in: RunIn, consumer: Consumer, max_delay: float
) -> None:
    """Hazard: the last piece waits for its time, or is lost with the end."""
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(4), gate=gate)

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as answer:
            helper = in_another_thread(partial(one_by_one, answer, gate, 4))
            pieces = pieces_of(answer, max_delay=max_delay)
            assert await consumer.collect(pieces) == ["".join(tokens(4))]
            assert answer.result.content == "".join(tokens(4))
            await consumer.wait(helper.join)

    consumer.run(scenario)


@everywhere
def test_max_tokens_completes_before_max_delay(run_in: RunIn, consumer: Consumer) -> None:
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(5), gate=gate)

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as answer:
            helper = in_another_thread(partial(one_by_one, answer, gate, 2))
            pieces = pieces_of(answer, 2, NEVER)
            assert await consumer.next(pieces) == "".join(tokens(2))  # the model is silent
            await consumer.wait(helper.join)
            gate.open()
            assert "".join(await consumer.collect(pieces)) == "".join(tokens(3, start=2))

    consumer.run(scenario)


@everywhere
def test_max_delay_completes_while_the_model_is_silent(run_in: RunIn, consumer: Consumer) -> None:
    """Promise 10: the wait itself ends; no timer runs for the stream."""
    model = silent_model(*tokens(2))

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as answer:
            await all_wait(consumer, answer, 2)
            before = threading.active_count()
            piece = await consumer.next(pieces_of(answer, max_delay=0.01))
            assert piece == "".join(tokens(2))
            assert threading.active_count() <= before
            assert getters_of(answer) == 0

    consumer.run(scenario)


def test_max_delay_counts_from_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard: each token starts it anew, and a steady model is never shown.

    The clock goes on by 2,000 seconds for each token; the third is past the 3,000.
    """
    clock = iter(range(0, 100_000, 2_000))
    monkeypatch.setattr(_reader, "monotonic", lambda: float(next(clock)))
    gate = Gate()
    with stream(ScriptedChatModel(tokens=tokens(6), gate=gate), "?") as answer:

        def go_on() -> None:
            for _ in range(6):
                eventually(lambda: getters_of(answer) and gate.waiting)
                gate.release()

        helper = in_another_thread(go_on)
        pieces = list(answer.pieces(max_delay=3_000))
        helper.join()
    assert pieces == ["".join(tokens(3)), "".join(tokens(3, start=3))]


@pytest.mark.parametrize("max_delay", [0.04, NEVER, inf], ids=["short", "long", "infinite"])
@everywhere
def test_token_timeout_limits_the_wait_for_more(
    run_in: RunIn, consumer: Consumer, max_delay: float
) -> None:
    """Hazard: a piece waits for ever for a silent model; or what it had gathered is lost."""
    model = silent_model(*tokens(2))

    async def scenario() -> None:
        made = stream(model, "?", run_in=run_in, token_timeout=0.01)
        async with consumer.entered(made) as answer:
            await all_wait(consumer, answer, 2)
            pieces = pieces_of(answer, max_delay=max_delay)
            assert await consumer.next(pieces) == "".join(tokens(2))
            with pytest.raises(StreamTimeoutError, match=r"token_timeout=0\.01"):
                await consumer.next(pieces)
            with pytest.raises(StopAsyncIteration):
                await consumer.next(pieces)
            assert answer.text == "".join(tokens(2))

    consumer.run(scenario)


@everywhere
def test_first_token_timeout_is_for_the_first_piece(run_in: RunIn, consumer: Consumer) -> None:
    model = silent_model()

    async def scenario() -> None:
        made = stream(model, "?", run_in=run_in, first_token_timeout=0.01)
        async with consumer.entered(made) as answer:
            with pytest.raises(StreamTimeoutError, match=r"first_token_timeout=0\.01"):
                await consumer.next(pieces_of(answer, max_delay=NEVER))

    consumer.run(scenario)


# -- ends ----------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("max_delay", [0.0, NEVER], ids=["at once", "waits"])
def test_an_error_comes_after_what_was_gathered(
    run_in: RunIn, consumer: Consumer, max_delay: float
) -> None:
    """Promise 3.  Hazard: the error takes the place of the last piece."""
    problem = ValueError("out of luck")
    gate = Gate(3)
    model = ScriptedChatModel(tokens=tokens(9), failure=problem, fail_at=3, gate=gate)

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as answer:
            await all_wait(consumer, answer, 3)
            if max_delay:
                in_another_thread(partial(one_by_one, answer, gate, 1, start=3))
            pieces = pieces_of(answer, max_delay=max_delay)
            assert await consumer.next(pieces) == "".join(tokens(3))
            gate.open()
            with pytest.raises(ValueError, match="out of luck") as raised:
                await consumer.next(pieces)
            assert raised.value is problem
            with pytest.raises(StopAsyncIteration):
                await consumer.next(pieces)

    consumer.run(scenario)


@everywhere
def test_a_restart_ends_a_piece(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: void text and its replacement arrive as one."""
    failing = ScriptedChatModel(tokens=["a ", "b ", "-"], failure=ValueError("no"), fail_at=2)
    target = failing.with_fallbacks([ScriptedChatModel(tokens=["a ", "b ", "c "])])

    async def scenario() -> None:
        async with consumer.entered(stream(target, "?", run_in=run_in)) as answer:
            await all_wait(consumer, answer, 2 + 1 + 3)
            pieces = pieces_of(answer)
            assert await consumer.next(pieces) == "a b "
            assert await consumer.next(pieces) == "a b c "
            assert answer.text == "a b c "
            assert answer.statistics.attempts == 2
            with pytest.raises(StopAsyncIteration):
                await consumer.next(pieces)

    consumer.run(scenario)


@everywhere
def test_a_restart_ends_a_piece_that_waits_for_more(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: the void text is shown when the delay is over, and not when it is known.

    A token before the restart is plain `next`'s, and the next piece begins after it.
    """
    gate = Gate()
    failing = ScriptedChatModel(
        tokens=["a ", "b ", "-"], failure=ValueError("no"), fail_at=2, gate=gate
    )
    spare = ScriptedChatModel(tokens=["c ", "d "])

    async def scenario() -> None:
        made = stream(failing.with_fallbacks([spare]), "?", run_in=run_in)
        async with consumer.entered(made) as answer:

            def go_on() -> None:
                gate.release(2)
                eventually(lambda: is_gathering(answer, "a ", "b "))
                gate.open()

            helper = in_another_thread(go_on)
            assert await consumer.next(pieces_of(answer, max_delay=NEVER)) == "a b "
            await consumer.wait(helper.join)
            assert answer.text == "a b "
            assert await consumer.next(answer) == "c "
            assert answer.text == "c "
            assert await consumer.collect(pieces_of(answer)) == ["d "]
            assert answer.text == "c d "

    consumer.run(scenario)


@everywhere
def test_a_close_in_the_middle_of_a_piece(run_in: RunIn, consumer: Consumer) -> None:
    """Promise 4.  Hazard: it looks like the end, and the piece is given after the close."""
    model = silent_model(*tokens(2))

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as answer:

            def close() -> None:
                eventually(lambda: is_gathering(answer, *tokens(2)))
                answer.close()

            closer = in_another_thread(close)
            with pytest.raises(StreamClosedError):
                await consumer.next(pieces_of(answer, max_delay=NEVER))
            await consumer.wait(closer.join)
            for iterator in (pieces_of(answer), answer):
                with pytest.raises(StreamClosedError):
                    await consumer.next(iterator)
            assert answer.text == ""

    consumer.run(scenario)


@everywhere
def test_nothing_that_was_kept_is_given_after_a_close(run_in: RunIn, consumer: Consumer) -> None:
    model = ScriptedChatModel(tokens=tokens(9))

    async def scenario() -> None:
        made = stream(model, "?", run_in=run_in, maxsize=1, overflow="merge")
        async with consumer.entered(made) as answer:
            await all_made(consumer, model, 9)
            assert await consumer.take(pieces_of(answer, 2), 2) == [
                "".join(tokens(2)),
                "".join(tokens(2, start=2)),
            ]
            assert kept_by(answer) == tokens(5, start=4)
            answer.close()
            for iterator in (pieces_of(answer), pieces_of(answer, 2), answer):
                with pytest.raises(StreamClosedError):
                    await consumer.next(iterator)
            assert answer.text == "".join(tokens(4))

    consumer.run(scenario)


# -- left early ----------------------------------------------------------------------------


CANCELLED = [
    pytest.param(means, *pairing.values, id=f"{means}-{pairing.id}", marks=pairing.marks)
    for pairing in ASYNC_PAIRINGS
    for means in ("task", "scope")
    if (means, pairing.values[1].name) != ("task", "trio")  # it cancels by scopes alone
]


@pytest.mark.parametrize("means, run_in, consumer", CANCELLED)
@pytest.mark.parametrize("after", ["pieces", "next"])
def test_a_cancelled_piece_keeps_what_it_gathered(
    means: str, run_in: RunIn, consumer: Consumer, after: str
) -> None:
    """Promise 1.  Hazard: the tokens go with the coroutine."""
    gate = Gate(3)
    model = ScriptedChatModel(tokens=tokens(6), gate=gate)

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as answer:
            await all_wait(consumer, answer, 3)
            pieces = pieces_of(answer, max_delay=NEVER)
            if means == "task":
                task = asyncio.ensure_future(consumer.next(pieces))
                await consumer.eventually(lambda: is_gathering(answer, *tokens(3)))
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                async with anyio.create_task_group() as group:
                    group.start_soon(consumer.next, pieces)
                    await consumer.eventually(lambda: is_gathering(answer, *tokens(3)))
                    group.cancel_scope.cancel()
            assert kept_by(answer) == tokens(3)
            assert answer.text == ""  # delivered is what somebody got
            if after == "pieces":
                assert await consumer.next(pieces_of(answer, 2)) == "".join(tokens(2))
                assert answer.text == "".join(tokens(2))
                gate.open()
                assert "".join(await consumer.collect(pieces)) == "".join(tokens(4, start=2))
            else:
                assert await consumer.take(answer, 3) == tokens(3)
                gate.open()
                assert await consumer.collect(answer) == tokens(3, start=3)
            assert answer.text == "".join(tokens(6))

    consumer.run(scenario)


@in_tasks
def test_cancelled_at_any_turn(run_in: RunIn, consumer: Consumer) -> None:
    """Promise 1.  Hazard: the cancellation comes together with the token."""
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(30), gate=gate)
    received: list[str] = []

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as answer:

            async def consume(max_delay: float) -> None:
                received.append(await consumer.next(pieces_of(answer, max_delay=max_delay)))

            for turns in range(12):
                async with anyio.create_task_group() as group:
                    group.start_soon(consume, (0.0, NEVER)[turns % 2])
                    gate.release()
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
            gate.open()
            received.extend(await consumer.collect(answer))
            assert answer.text == "".join(tokens(30))

    consumer.run(scenario)
    assert "".join(received) == "".join(tokens(30))


@needs_signals
@pytest.mark.parametrize("run_in", ["thread", "background"])
def test_ctrl_c_while_a_piece_waits_for_more(run_in: RunIn) -> None:
    """Hazard: what was gathered is lost, or the consumer stays marked as waiting."""
    gate = Gate(2)
    model = ScriptedChatModel(tokens=tokens(4), gate=gate)
    with stream(model, "?", run_in=run_in) as answer:

        def it_waits() -> None:
            eventually(lambda: is_gathering(answer, *tokens(2)))

        with (
            signals_when(it_waits, signal.default_int_handler),
            pytest.raises(KeyboardInterrupt),
        ):
            next(answer.pieces(max_delay=NEVER))
        assert answer.text == ""
        gate.open()
        assert "".join(answer.pieces(max_delay=NEVER)) == "".join(tokens(4))


def test_ctrl_c_while_a_piece_takes_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard: all that was taken from the queue until then is lost."""
    usual = SyncFace.get
    left = [2]

    def get(face: SyncFace[Any], *args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return usual(face, *args)

    with stream(ScriptedChatModel(tokens=tokens(4)), "?") as answer:
        eventually(lambda: waiting_in(answer) == 4)
        with monkeypatch.context() as patched:
            patched.setattr(SyncFace, "get", get)
            with pytest.raises(KeyboardInterrupt):
                next(answer.pieces())
        assert kept_by(answer) == tokens(2)
        assert list(answer.pieces()) == ["".join(tokens(4))]


@pytest.mark.parametrize("run_in, consumer", pairings("asyncio", "trio"))
def test_switching_between_pieces_and_tokens(run_in: RunIn, consumer: Consumer) -> None:
    """Promise 1: ``for`` and ``async for``, pieces and tokens, in any order."""
    model = ScriptedChatModel(tokens=tokens(12))

    async def scenario() -> None:
        made = stream(model, "?", run_in=run_in, maxsize=2, overflow="merge")
        async with consumer.entered(made) as answer:
            await all_made(consumer, model, 12)
            received = [await consumer.next(pieces_of(answer, 2))]
            if run_in != "task":
                received.append(next(answer))
                received.append(next(answer.pieces(2)))
            received.append(await consumer.next(answer))
            received.append(await consumer.next(pieces_of(answer, 3)))
            received += await consumer.collect(answer)
            assert "".join(received) == answer.text == "".join(tokens(12))

    consumer.run(scenario)


@pytest.mark.parametrize("consumer", [one for one in CONSUMERS if one.name == "trio"])
def test_what_is_kept_lets_other_tasks_run(consumer: Consumer) -> None:
    """Promise 5.  Hazard: a thousand kept tokens are given in one turn of the loop."""
    model = ScriptedChatModel(tokens=tokens(1_000))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async def scenario() -> None:
        made = stream(model, "?", maxsize=1, overflow="merge")
        async with consumer.entered(made) as answer, anyio.create_task_group() as group:
            await all_made(consumer, model, 1_000)
            await consumer.next(pieces_of(answer, 1))
            assert len(kept_by(answer)) == 999
            group.start_soon(count_turns)
            assert len(await consumer.take(answer, 999)) == 999
            group.cancel_scope.cancel()

    consumer.run(scenario)
    assert turns >= 10


# -- one consumer --------------------------------------------------------------------------

SECOND: dict[str, Callable[[Any], str]] = {
    "next": next,
    "piece": lambda answer: next(answer.pieces()),
    "delayed piece": lambda answer: next(answer.pieces(max_delay=NEVER)),
}


@everywhere
@pytest.mark.parametrize("second", SECOND.values(), ids=SECOND)
def test_an_overlapping_consumer_leaves_the_piece_unharmed(
    run_in: RunIn, consumer: Consumer, second: Callable[[Any], str]
) -> None:
    """Hazard: the second takes what the first has gathered, or ends its waiting."""
    gate = Gate(2)
    model = ScriptedChatModel(tokens=tokens(4), gate=gate)
    complaints: list[BaseException] = []

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as answer:

            def overlap() -> None:
                try:
                    eventually(lambda: is_gathering(answer, *tokens(2)))
                    with pytest.raises(ConcurrentIterationError, match="one consumer at a time"):
                        second(answer)
                    assert is_gathering(answer, *tokens(2))
                except BaseException as error:
                    complaints.append(error)
                finally:
                    gate.open()

            thread = in_another_thread(overlap)
            assert await consumer.collect(pieces_of(answer, max_delay=NEVER)) == [
                "".join(tokens(4))
            ]
            await consumer.wait(thread.join)

    consumer.run(scenario)
    assert not complaints


@pytest.mark.parametrize("run_in, consumer", pairings("for", "asyncio", "trio"))
def test_an_overlapping_consumer_between_two_waits(
    run_in: RunIn, consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard: a piece waits several times, and in between a second consumer gets in.

    1. The piece has its first token, and looks at the clock to wait for more.
    2. Another thread asks for a token, and is refused.
    3. The piece goes on to the end.
    """
    gate = Gate(1)
    model = ScriptedChatModel(tokens=tokens(3), gate=gate)
    complaints: list[BaseException] = []

    def overlap(answer: Any) -> float:
        def ask() -> None:
            try:
                next(answer)
            except BaseException as error:
                complaints.append(error)

        if not complaints:
            thread = in_another_thread(ask)
            thread.join(5)
            assert not thread.is_alive()
            gate.open()
        return monotonic()

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as answer:
            monkeypatch.setattr(_reader, "monotonic", partial(overlap, answer))
            assert await consumer.collect(pieces_of(answer, max_delay=NEVER)) == [
                "".join(tokens(3))
            ]

    consumer.run(scenario)
    assert [type(error) for error in complaints] == [ConcurrentIterationError]


# -- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["message", "event"])
def test_pieces_are_of_text(select: Any) -> None:
    answer = stream(FakeListChatModel(responses=["never"]), "?", select=select)
    with pytest.raises(ValueError, match=rf'"?{select}.*use select="text"'):
        pieces_of(answer)


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        ({"max_tokens": 0}, ValueError, r"max_tokens must be 1 or more, or None; not 0"),
        ({"max_tokens": -1}, ValueError, r"max_tokens must be 1 or more, or None; not -1"),
        ({"max_tokens": 1.0}, TypeError, r"max_tokens must be an int or None, not 1\.0"),
        ({"max_tokens": True}, TypeError, r"max_tokens must be an int or None, not True"),
        ({"max_tokens": "3"}, TypeError, r"max_tokens must be an int or None, not '3'"),
        ({"max_delay": -0.1}, ValueError, r"max_delay must be 0 seconds or more.*-0\.1"),
        ({"max_delay": float("nan")}, ValueError, r"max_delay must be 0 seconds or more.*nan"),
        ({"max_delay": None}, TypeError, r"max_delay must be a number of seconds.*None"),
        ({"max_delay": "1"}, TypeError, r"max_delay must be a number of seconds.*'1'"),
        ({"max_delay": True}, TypeError, r"max_delay must be a number of seconds.*True"),
    ],
)
def test_bad_input(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    """Hazard: it shows at the first piece, and the run has begun."""
    answer = stream(FakeListChatModel(responses=["never"]), "?")
    with pytest.raises(kind, match=message):
        pieces_of(answer, **arguments)
    assert "new" in repr(answer)


# -- anything, in any order ----------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 1)),
        st.tuples(st.just("put"), st.integers(0, 1)),
        st.tuples(st.just("next"), st.none()),
        st.tuples(st.just("piece"), st.one_of(st.none(), st.integers(1, 4))),
        st.tuples(st.just("restart"), st.integers(0, 1)),
    ),
    max_size=40,
)


class Plain:
    """What a reader does, over plain lists.

    Whatever waits or is kept is a list of tokens, each a pair of run and text, or a number:
    the run whose text is void.
    """

    def __init__(self, maxsize: int, *, merges: bool) -> None:
        self.maxsize = maxsize
        self.merges = merges
        self.waiting: list[list[tuple[int, str]] | int] = []
        self.kept: list[tuple[int, str] | int] = []
        self.delivered: list[tuple[int, str]] = []

    def put(self, item: tuple[int, str] | int) -> bool:
        if len(self.waiting) < self.maxsize:
            self.waiting.append(item if isinstance(item, int) else [item])
            return True
        if isinstance(item, int) or not self.merges:
            return False
        own = [each for each in self.waiting if not isinstance(each, int) and each[0][0] == item[0]]
        if own:
            own[-1].append(item)
        return bool(own)

    def void(self, run: int) -> None:
        self.delivered = [token for token in self.delivered if token[0] != run]

    def next(self) -> str | None:
        """Return what comes; None if all is void."""
        while self.kept or self.waiting:
            item = self.kept.pop(0) if self.kept else self.waiting.pop(0)
            if isinstance(item, int):
                self.void(item)
            else:
                tokens = [item] if isinstance(item, tuple) else item
                self.delivered += tokens
                return "".join(text for _, text in tokens)
        return None

    def piece(self, most: int | None) -> str | None:
        taken: list[tuple[int, str]] = []
        while most is None or len(taken) < most:
            if not self.kept:
                if not self.waiting:
                    break
                item = self.waiting.pop(0)
                self.kept += [item] if isinstance(item, int) else item
            if isinstance(self.kept[0], int):
                if taken:
                    break
                self.void(self.kept[0])
            else:
                taken.append(self.kept[0])
            del self.kept[0]
        self.delivered += taken
        return "".join(text for _, text in taken) if taken else None


@settings(max_examples=150, deadline=None, derandomize=True)
@given(maxsize=st.integers(1, 4), merges=st.booleans(), steps=STEPS)
def test_any_schedule(maxsize: int, merges: bool, steps: list[tuple[str, Any]]) -> None:
    """Promise 1, against plain lists: puts, joins, tokens, pieces and restarts in any order.

    Two runs go on side by side; after a restart another one takes the place of the failed one.
    """
    queue = TokenQueue[Any]("queue", maxsize, join=Joinable.join if merges else None)
    reader: Reader[str] = Reader(queue, None, None)
    runs = [ModelRun(About(None, None), 1, is_heard=True) for _ in range(2)]
    going_on = [0, 1]
    plain = Plain(maxsize, merges=merges)
    assert queue.buffer is not None
    for number, (step, value) in enumerate(steps):
        if step == "put" and plain.put((run := going_on[value], text := f"{run}:{number} ")):
            item = Joinable(runs[run], "text", text) if merges else (runs[run], text)
            assert queue.buffer.try_put(item, None, Ended) is None
        elif step == "restart" and plain.put(run := going_on[value]):
            assert queue.buffer.try_put(Restart([runs[run]], None), None, Ended) is None
            going_on[value] = len(runs)
            runs.append(ModelRun(About(None, None), 1, is_heard=True))
        elif step in ("next", "piece"):
            expected = plain.next() if step == "next" else plain.piece(value)
            if expected is None:  # it would wait, after the restarts
                with contextlib.suppress(Ended):
                    while queue.has_items() or reader.kept:
                        reader._value(reader.kept.popleft() if reader.kept else queue.get())
            elif step == "next":
                assert reader.get() == expected
            else:
                assert reader.get_piece(value, 0.0) == expected
        assert len(queue.buffer.items) == len(plain.waiting)
        assert sorted(reader.text.split()) == sorted(text.strip() for _, text in plain.delivered)
    queue.end()
    while (expected := plain.piece(None)) is not None:
        assert reader.get_piece(None, NEVER) == expected
    with pytest.raises(Ended):
        reader.get_piece(None, NEVER)
    assert sorted(reader.text.split()) == sorted(text.strip() for _, text in plain.delivered)
