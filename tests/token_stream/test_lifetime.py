"""One stream from its making to its end: lazy, one-shot, and what is known of it when."""

from __future__ import annotations

import gc
import logging
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from queuestream import stream
from queuestream.errors import NotFinishedError, StreamClosedError
from tests.support.gates import Gate, eventually
from tests.support.models import ScriptedChatModel, tokens
from tests.support.streams import STREAM_CASES, is_blocked

if TYPE_CHECKING:
    from tests.support.streams import Case

each_case = pytest.mark.parametrize("case", STREAM_CASES)


@each_case
def test_nothing_starts_before_it_is_asked_for(case: Case) -> None:
    """Hazard: a stream that is made and never used costs a model call."""
    model = ScriptedChatModel(tokens=tokens(3))

    async def scenario() -> None:
        answer = case.stream(model)
        assert answer._run is None
        assert "new" in repr(answer)
        with pytest.raises(NotFinishedError):
            _ = answer.result
        assert answer.text == ""
        assert model.record.calls == 0
        assert await case.consumer.collect(answer) == tokens(3)  # without a with block

    case.consumer.run(scenario)
    assert model.record.calls == 1


def test_a_stream_that_is_made_and_dropped() -> None:
    model = ScriptedChatModel(tokens=tokens(3))
    stream(model, "?")
    answer = stream(model, "?")
    answer.close()
    with pytest.raises(StreamClosedError), answer:
        next(answer)
    assert model.record.calls == 0


@each_case
def test_entering_starts_the_run_up_to_maxsize(case: Case) -> None:
    """Entered but never iterated: the run goes to ``maxsize``; leaving stops it."""
    model = ScriptedChatModel(tokens=tokens(50))

    async def scenario() -> None:
        async with case.running(model, maxsize=4) as running:
            await case.consumer.wait(lambda: model.record.wait_until_produced(5))
            if case.queue == "default":
                await case.consumer.eventually(lambda: is_blocked(running))
        assert model.record.produced == 5
        await case.consumer.wait(model.record.wait_until_finalized)
        with pytest.raises(StreamClosedError):
            _ = running.result

    case.consumer.run(scenario)


@each_case
def test_one_shot(case: Case) -> None:
    """Hazard: a second loop over it starts a second run, or hangs."""
    model = ScriptedChatModel(tokens=tokens(3))

    async def scenario() -> None:
        answer = case.stream(model)
        assert await case.consumer.collect(answer) == tokens(3)
        assert await case.consumer.collect(answer) == []
        async with case.consumer.entered(answer) as again:
            assert await case.consumer.collect(again) == []
        assert "finished" in repr(answer)
        assert answer.result.content == "".join(tokens(3))

    case.consumer.run(scenario)
    assert model.record.calls == 1


@each_case
def test_result_and_text_while_it_runs(case: Case) -> None:
    """``result`` never waits; ``text`` is what was delivered, not what was made."""
    gate = Gate(3)
    model = ScriptedChatModel(tokens=tokens(4), gate=gate)

    async def scenario() -> None:
        async with case.running(model) as running:
            assert "running" in repr(running)
            await case.consumer.wait(lambda: model.record.wait_until_produced(3))
            assert await case.consumer.take(running, 2) == tokens(2)
            assert running.text == "".join(tokens(2))
            with pytest.raises(NotFinishedError):
                _ = running.result
            gate.open()
            await case.consumer.wait(model.record.wait_until_finalized)
            with pytest.raises(NotFinishedError):  # the consumer has not received the end
                _ = running.result
            assert await case.consumer.collect(running) == tokens(2, start=2)
            assert running.result.content == running.text == "".join(tokens(4))
        assert running.result.content == "".join(tokens(4))

    case.consumer.run(scenario)


@each_case
def test_after_an_early_stop(case: Case) -> None:
    model = ScriptedChatModel(tokens=tokens(50))

    async def scenario() -> None:
        async with case.running(model) as running:
            assert await case.consumer.take(running, 2) == tokens(2)
        assert running.text == "".join(tokens(2))
        assert "closed" in repr(running)
        with pytest.raises(StreamClosedError, match="closed before its end"):
            _ = running.result
        with pytest.raises(StreamClosedError):
            await case.consumer.next(running)

    case.consumer.run(scenario)


@each_case
def test_all_tokens_taken_but_not_the_end(case: Case) -> None:
    """Hazard: the consumer that counts its tokens leaves before it has heard of the end."""
    model = ScriptedChatModel(tokens=tokens(3))

    async def scenario() -> None:
        async with case.running(model) as running:
            assert await case.consumer.take(running, 3) == tokens(3)
            with pytest.raises(NotFinishedError):
                _ = running.result
        with pytest.raises(StreamClosedError):
            _ = running.result

    case.consumer.run(scenario)


@each_case
def test_an_error_in_the_body_wins(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """A ``with`` body that raises wins; the run's error after a close is logged for debugging."""
    caplog.set_level(logging.DEBUG, "queuestream")
    model = ScriptedChatModel(tokens=tokens(9), failure=ValueError("the run's"), fail_at=3)
    problem = KeyError("the body's")

    async def scenario() -> None:
        with pytest.raises(KeyError) as raised:
            async with case.running(model) as running:
                await case.consumer.take(running, 2)
                raise problem
        assert raised.value is problem
        assert problem.__context__ is None
        await case.consumer.wait(model.record.wait_until_finalized)

    case.consumer.run(scenario)
    assert all(record.levelno == logging.DEBUG for record in caplog.records)


def test_the_runs_error_after_a_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "queuestream")
    gate = Gate(1)
    failure = ValueError("the run's")
    model = ScriptedChatModel(tokens=tokens(9), failure=failure, fail_at=1, gate=gate)
    answer = stream(model, "?")
    assert next(answer) == tokens(1)[0]
    answer.close()
    run: Any = answer._run
    gate.open()
    eventually(lambda: run.gone._set)
    assert any("the run's" in record.getMessage() for record in caplog.records)


@each_case
def test_nothing_of_the_stream_is_kept_after_its_end(case: Case) -> None:
    """Hazard: a module-level registry grows with each stream."""
    model = ScriptedChatModel(tokens=tokens(3))

    async def scenario() -> weakref.ref[Any]:
        answer = case.stream(model)
        assert await case.consumer.collect(answer) == tokens(3)
        return weakref.ref(answer)

    reference = case.consumer.run(scenario)
    gc.collect()
    assert reference() is None


def test_a_stream_has_no_other_attributes() -> None:
    """Hazard: ``tokens.resutl = ...`` goes unnoticed."""
    answer: Any = stream(ScriptedChatModel(tokens=[]), "?")
    with pytest.raises(AttributeError):
        answer.resutl = 1
