"""Writers and readers in several processes: they are killed, race, and stop each other."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from queuestream import stream
from queuestream.errors import ProducerLostError, ProducerReplacedError, StreamClosedError
from tests.relay.programs import LEASE
from tests.support.gates import eventually
from tests.support.models import ScriptedChatModel, silent_model, tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from langchain_core.outputs import ChatGenerationChunk

    from queuestream.relay import RedisRelay

POSITIONS = 8


def test_a_writer_killed_between_two_writes_at_every_position(
    make_relay: Callable[..., RedisRelay], run_program: Callable[..., Any]
) -> None:
    """Readers get all that was written, then the loss; a new writer goes on with a restart."""
    relay = make_relay(lease=LEASE)
    writers = run_program("killed", str(POSITIONS))
    read: dict[int, list[str]] = {position: [] for position in range(POSITIONS)}
    last: dict[int, str | None] = {}
    after: dict[int, float] = {}

    def follow(position: int) -> None:
        subscription = relay.subscribe_sync(f"k{position}")
        seen = time.monotonic()
        try:
            for event in subscription:
                read[position].append(event.text)
                seen = time.monotonic()
        except ProducerLostError:
            after[position] = time.monotonic() - seen
        last[position] = subscription.last_id

    readers = [threading.Thread(target=follow, args=(one,)) for one in range(POSITIONS)]
    for reader in readers:
        reader.start()
    assert writers.line() == " ".join(["-9"] * POSITIONS)
    for reader in readers:
        reader.join(10)
    for position in range(POSITIONS):
        assert read[position] == tokens(position)
        assert relay.status_sync(f"k{position}") == "lost"
        if position:
            assert after[position] < LEASE + 1.5
    late = relay.subscribe_sync("k3")
    assert [next(late).text for _ in range(3)] == tokens(3)
    with pytest.raises(ProducerLostError, match="its writer has died"):
        next(late)
    writers.go()
    assert writers.line() == " ".join(["0"] * POSITIONS)
    for position in range(POSITIONS):
        events = list(relay.subscribe_sync(f"k{position}", last[position]))
        if position:
            assert (events[0].kind, events[0].attempt) == ("restart", 2)
        assert [event.text for event in events if event.kind == "text"] == tokens(POSITIONS)
        whole = list(relay.subscribe_sync(f"k{position}"))
        assert [event.kind for event in whole].count("restart") == 1
        assert len(whole) == position + 1 + POSITIONS


def test_two_writers_race_for_one_id(
    make_relay: Callable[..., RedisRelay], run_program: Callable[..., Any]
) -> None:
    """One is refused and its run is stopped; readers get the other's tokens without a gap."""
    relay = make_relay(lease=LEASE)
    rounds = 15
    pair = [run_program("race", str(rounds)) for _ in range(2)]
    pids = {str(program.process.pid) for program in pair}
    for program in pair:
        assert program.line() == "ready"
    refused = 0
    for number in range(rounds):
        for program in pair:
            program.go()
        outcomes = sorted(program.line() for program in pair)
        assert outcomes in (
            ["finished 0", "finished 0"],  # one after the other
            ["finished 0", "replaced 0"],
        )
        refused += outcomes[1] == "replaced 0"
        events = list(relay.subscribe_sync(f"r{number}"))
        restarts = [place for place, event in enumerate(events) if event.kind == "restart"]
        assert len(restarts) == 1
        first, second = events[: restarts[0]], events[restarts[0] + 1 :]
        assert len(second) == 30
        assert {event.text.strip() for event in second} < pids
        assert {event.text for event in first} != {event.text for event in second}
    print(f"{refused} of {rounds} rounds met")


def test_the_later_writer_goes_on(relay: RedisRelay) -> None:
    """Also where the earlier one is silent: its own process hears of it."""
    first, second = silent_model("a"), ScriptedChatModel(tokens=["b"])
    errors: list[BaseException] = []

    def publish() -> None:
        try:
            relay.publish_sync("x", stream(first, "?"))
        except ProducerReplacedError as error:
            errors.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    events = relay.subscribe_sync("x")
    assert next(events).text == "a"
    relay.publish_sync("x", stream(second, "?"))
    thread.join(5)
    assert "another writer has begun" in str(errors[0])
    assert [(event.kind, event.text) for event in events] == [("restart", ""), ("text", "b")]


class PacedModel(ScriptedChatModel):
    """Makes a token every five milliseconds, and notes when."""

    made: list[float] = []  # noqa: RUF012 - pydantic copies it

    def _stream(self, *arguments: Any, **options: Any) -> Iterator[ChatGenerationChunk]:
        for chunk in super()._stream(*arguments, **options):
            time.sleep(0.005)  # the pace, and not a wait for anything
            self.made.append(time.monotonic())
            yield chunk


def test_a_reader_in_another_process_stops_the_model(
    relay: RedisRelay, run_program: Callable[..., Any]
) -> None:
    """Promise 4: within 100 ms, while tokens flow.  Both processes have one monotonic clock."""
    model = PacedModel(tokens=tokens(5_000))
    reader = run_program("stop", "x", "20")
    with pytest.raises(StreamClosedError, match="stopped from elsewhere"):
        relay.publish_sync("x", stream(model, "?"))
    stopped = float(reader.line())
    model.record.wait_until_finalized()
    assert 20 <= len(model.made) < 5_000
    assert model.made[-1] - stopped < 0.1
    assert relay.status_sync("x") == "stopped"


def test_a_silent_model_is_stopped_from_another_process(
    relay: RedisRelay, run_program: Callable[..., Any]
) -> None:
    """An asynchronous run ends at once."""
    model = silent_model("one")
    reader = run_program("stop", "x", "1")
    with pytest.raises(StreamClosedError):
        relay.publish_sync("x", stream(model, "?", run_in="background"))
    stopped = float(reader.line())
    eventually(lambda: model.record.open == 0)
    assert time.monotonic() - stopped < 2


def test_a_reader_goes_on_in_another_process(
    relay: RedisRelay, run_program: Callable[..., Any]
) -> None:
    """A cursor is worth the same everywhere."""
    relay.publish_sync("x", stream(ScriptedChatModel(tokens=["a", "b", "c"]), "?"))
    first, *_ = relay.subscribe_sync("x")
    reader = run_program("read", "x", first.id)
    assert reader.line() == "ready"
    assert [reader.line().split()[1] for _ in range(2)] == ["b", "c"]
    assert reader.line() == "end"
