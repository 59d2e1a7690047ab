"""`DebugStreamHandler`: all that is known of each token, to `logging` and to a bounded log."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest
from langchain_core.runnables import RunnableLambda

from queuestream.handlers import DebugStreamHandler, debug
from tests.support.callbacks import RunLog
from tests.support.handlers import (
    INVOKE_AND_AINVOKE,
    PLAIN_AND_COROUTINE,
    EchoChatModel,
    Received,
    Way,
    answer,
)
from tests.support.models import ScriptedChatModel, tokens


class Clock:
    """Both clocks, as the test sets them."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_000_000 + self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of the module."""
    clock = Clock()
    monkeypatch.setattr(debug, "time", clock)
    return clock


@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
def test_what_is_known_of_each_token(
    way: Way, caplog: pytest.LogCaptureFixture, *, is_async: bool
) -> None:
    """Hazard: the document knows what comes with the token, which is not its run's name."""
    caplog.set_level(logging.INFO, "queuestream")
    received, log = Received(is_async=is_async), RunLog()
    made: list[DebugStreamHandler] = []

    def make() -> list[Any]:
        made.append(DebugStreamHandler(received.on_token))
        return [log, made[0]]

    model = ScriptedChatModel(
        tokens=["a", "", "bc"], name="scribe", tags=["fast"], metadata={"user": 7}
    )
    before = time.time()
    way.run(model, make)
    entries = made[0].token_log
    assert received.texts == ["a", "bc"]
    assert [entry["token"] for entry in entries] == ["a", "bc"]
    for entry in entries:
        assert set(entry) == {"token", "timestamp", "run_id", "name", "tags", "metadata"}
        assert before <= entry["timestamp"] <= time.time()
        assert entry["run_id"] == log.outermost[0]
        assert entry["name"] == "scribe"
        assert "fast" in entry["tags"]
        assert entry["metadata"]["user"] == 7
    records = [record for record in caplog.records if record.name == "queuestream"]
    assert [record.levelname for record in records] == ["INFO", "INFO"]
    for number, (token, record) in enumerate(zip(["a", "bc"], records, strict=True)):
        told = record.getMessage()
        assert told.startswith(f"token {number}: {token!r}, run {log.outermost[0]} (scribe)")
        assert "'fast'" in told
        assert "'user': 7" in told


@INVOKE_AND_AINVOKE
def test_not_verbose(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    """Hazard: nothing is kept, either."""
    caplog.set_level(logging.DEBUG, "queuestream")
    made: list[DebugStreamHandler] = []

    def make() -> DebugStreamHandler:
        made.append(DebugStreamHandler(lambda _: None, verbose=False))
        return made[0]

    way.run(EchoChatModel(), make)
    assert "token" not in caplog.text
    assert made[0].get_stats()["total_tokens"] == len(made[0].token_log) == len(answer("a"))


def test_whose_each_token_is() -> None:
    """Hazard: two runs under one chain have the id of one of them."""
    handler = DebugStreamHandler(lambda _: None, verbose=False)
    log = RunLog()
    one = EchoChatModel(name="one")
    chain = one | RunnableLambda(lambda _: "b") | EchoChatModel(name="other")
    chain.invoke("a", {"callbacks": [log, handler]})
    named = {entry["name"]: entry["run_id"] for entry in handler.token_log}
    assert [entry["name"] for entry in handler.token_log] == ["one"] * 7 + ["other"] * 7
    assert len(set(named.values())) == 2
    assert set(named.values()) <= set(log.started)


@pytest.mark.parametrize(
    "given, expected",
    [
        ([], {"total_tokens": 0, "avg_token_length": 0.0, "duration": 0.0}),
        ([("abc", 1)], {"total_tokens": 1, "avg_token_length": 3.0, "duration": 0.0}),
        ([("abc", 1), ("d", 4)], {"total_tokens": 2, "avg_token_length": 2.0, "duration": 3.0}),
        ([("a", 0), ("b", 4), ("cd", 5)], {"total_tokens": 3, "duration": 5.0}),
    ],
)
def test_statistics(clock: Clock, given: list[Any], expected: dict[str, float]) -> None:
    """Hazard: the document's divide by zero, and look at an entry that is not there."""
    handler = DebugStreamHandler(lambda _: None)
    for token, now in given:
        clock.now = now
        handler(token)
    stats = handler.get_stats()
    assert set(stats) == {"total_tokens", "avg_token_length", "duration"}
    assert {name: stats[name] for name in expected} == expected


def test_timestamps_are_of_the_calendar(clock: Clock) -> None:
    """Hazard: they are of the clock by which the duration is measured."""
    handler = DebugStreamHandler(lambda _: None)
    handler("a")
    assert handler.token_log[0]["timestamp"] == 1_000_100.0


def test_the_log_is_bounded_and_the_statistics_are_of_all(clock: Clock) -> None:
    """Promise 9.  Hazard: the statistics are those of what is left in the log."""
    handler = DebugStreamHandler(lambda _: None, max_log=3)
    for number in range(10):
        clock.now = number
        handler("x" * (number + 1))
    assert [len(entry["token"]) for entry in handler.token_log] == [8, 9, 10]
    assert handler.get_stats() == {
        "total_tokens": 10,
        "avg_token_length": 5.5,
        "duration": 9.0,
    }


def test_a_thousand_by_default() -> None:
    handler = DebugStreamHandler(lambda _: None, verbose=False)
    for token in tokens(1001):
        handler(token)
    assert len(handler.token_log) == 1000
    assert handler.token_log[0]["token"] == "t1 "


def test_a_token_called_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    """Hazard: it has no run."""
    caplog.set_level(logging.INFO, "queuestream")
    handler = DebugStreamHandler(lambda _: None)
    handler("Hi")
    assert handler.token_log[0]["run_id"] is None
    assert "token 0: 'Hi', run None" in caplog.text


def test_the_log_is_a_copy() -> None:
    """Hazard: it changes under whoever looks at it."""
    handler = DebugStreamHandler(lambda _: None)
    handler("a")
    handler.token_log.clear()
    assert len(handler.token_log) == 1


@pytest.mark.parametrize(
    "given, error, says",
    [
        (0, ValueError, "max_log must be 1 or more, not 0"),
        (1.5, TypeError, "max_log must be an int, not 1.5"),
        (None, TypeError, "max_log must be an int, not None"),
    ],
)
def test_bad_arguments(given: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        DebugStreamHandler(print, max_log=given)
