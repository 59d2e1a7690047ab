"""Redis restarts, freezes, stays away; connections are cut in the middle."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.exceptions import MasterDownError, ResponseError, TryAgainError

from queuestream import stream
from queuestream.errors import RelayError, RelayUnavailableError, StreamClosedError
from queuestream.relay._entries import OPENING, STOP
from queuestream.relay._link import Reply, is_transient
from queuestream.relay._reader import SharedReader
from queuestream.relay._scripts import STATE, STOP_RUN
from tests.relay.servers import Cutter, RedisServer, free_port
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.models import ScriptedChatModel, silent_model, tokens

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from queuestream.relay import RedisRelay


class Publishing(threading.Thread):
    """A writer in a thread."""

    def __init__(self, relay: RedisRelay, model: ScriptedChatModel, **options: Any) -> None:
        super().__init__()
        self.outcome: Any = None
        self.source = stream(model, "?", **options)
        self._relay = relay
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._relay.publish_sync("a", self.source)
        except BaseException as error:
            self.outcome = error


class Reading(threading.Thread):
    """A reader in a thread."""

    def __init__(self, relay: RedisRelay) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.outcome: Any = None
        self._relay = relay
        self.start()

    def run(self) -> None:
        try:
            for event in self._relay.subscribe_sync("a"):
                self.texts.append(event.text)
        except BaseException as error:
            self.outcome = error


def info(server: RedisServer, section: str) -> Any:
    """Return what a server counts."""
    with redis.Redis(port=server.port, socket_timeout=9) as client:
        return client.info(section)


def test_the_server_is_killed_and_restarted_in_the_middle(
    make_relay: Callable[..., RedisRelay], durable_server: RedisServer
) -> None:
    """Both ends go on, nothing is lost or doubled; three times."""
    writer, other = (make_relay(durable_server.url, outage=20, lease=2) for _ in range(2))
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(90), gate=gate)
    publishing = Publishing(writer, model, maxsize=8)
    readings = [Reading(other), Reading(other)]
    for number in range(1, 4):
        gate.release(15)
        eventually(lambda number=number: len(readings[0].texts) >= number * 30 - 15)  # type: ignore[misc]
        durable_server.kill()
        gate.release(15)
        durable_server.start()
        eventually(lambda number=number: len(readings[0].texts) >= number * 30, 10)  # type: ignore[misc]
    publishing.join(15)
    for reading in readings:
        reading.join(15)
        assert reading.outcome is None
        assert reading.texts == tokens(90)
    assert publishing.outcome.content == "".join(tokens(90))
    assert other.status_sync("a") == "finished"


def test_a_connection_is_cut_at_every_command(
    make_relay: Callable[..., RedisRelay], redis_server: RedisServer
) -> None:
    """Hazard: nobody knows whether Redis has what was under way.

    Cut before it gets it, in the middle of it, or after it, but before the answer.
    """
    reader = make_relay()
    for share in (0.0, 0.5, 2.0):
        with Cutter(redis_server.port) as cutter:
            relay = make_relay(cutter.url, prefix=f"cut-{share}", client_name="cut")
            checking = make_relay(prefix=f"cut-{share}")
            cutter.cut_at = dict.fromkeys(range(1, 40, 2), share)
            model = ScriptedChatModel(tokens=tokens(60))
            relay.publish_sync("a", stream(model, "?", maxsize=4))
            events = list(checking.subscribe_sync("a"))
            assert [event.text for event in events if event.kind == "text"] == tokens(60)
            assert not [event for event in events if event.kind == "restart"]
            assert cutter.cuts >= 10
            relay.close()
    assert reader.status_sync("a") == "pending"


@pytest.mark.parametrize("argument", ["\ud800", None, object()], ids=["text", "None", "object"])
def test_what_cannot_be_sent_is_the_error_of_its_caller_alone(
    relay: RedisRelay, argument: Any
) -> None:
    """Hazard: it fails with the pipeline that it is in, and ends the runs of others."""
    assert relay.status_sync("a") == "pending"
    (home,) = relay._homes.values()
    keys = relay._keys("a")

    async def ask() -> list[Any]:
        calls = [
            home.link.call(STATE, [keys.entries, keys.lease], *more)
            for more in ((), (argument,), ())
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    before, error, after = Reply(ask).wait()
    assert before == after == []
    assert isinstance(error, RelayError)
    assert "the script 'state' cannot be sent" in str(error)


@pytest.mark.parametrize(
    "options", [{"encoding": "klingon"}, {"encoding": "ascii", "encoding_errors": "klingon"}]
)
def test_an_encoding_that_python_does_not_know(
    make_relay: Callable[..., RedisRelay], options: dict[str, str]
) -> None:
    """Hazard: the task that lets a reader in dies of it, and the reader waits for ever."""
    relay = make_relay(**options)
    reading: Any = Reply(partial(anext, relay.subscribe_sync("é")))
    with pytest.raises(RelayError, match="cannot be sent: unknown"):
        reading.wait()
    with pytest.raises(RelayError, match="cannot be sent: unknown"):
        relay.status_sync("é")


def test_a_stop_before_the_beginning_holds_where_that_is_sent_twice(
    make_relay: Callable[..., RedisRelay], redis_server: RedisServer
) -> None:
    """Promise 4.  Hazard: what had the answer for the writer is overtaken by its second try."""
    model = ScriptedChatModel(tokens=tokens(3))
    assert make_relay().stop_sync("a")
    with Cutter(redis_server.port) as cutter:
        cutter.cut_at = {1: 2.0}  # Redis has it, and we no answer
        with pytest.raises(StreamClosedError):
            make_relay(cutter.url).publish_sync("a", stream(model, "?"))
        assert cutter.cuts == 1
    assert model.record.calls == 0
    assert make_relay().status_sync("a") == "stopped"


@pytest.mark.parametrize("is_begun", [True, False])
def test_a_stop_that_is_sent_twice_says_that_it_has_stopped_the_run(
    make_relay: Callable[..., RedisRelay], redis_server: RedisServer, *, is_begun: bool
) -> None:
    """Hazard: its second try finds the run over, by the first."""
    relay = make_relay()
    assert relay.stop_sync("another")  # Redis knows the script from now on
    publishing, model = None, silent_model("one")
    if is_begun:
        publishing = Publishing(relay, model, run_in="background")
        assert next(relay.subscribe_sync("a")).text == "one"
    with Cutter(redis_server.port) as cutter:
        cutter.cut_at = {1: 2.0}  # Redis has it, and we no answer
        assert make_relay(cutter.url).stop_sync("a") is True
        assert cutter.cuts == 1
    assert relay.status_sync("a") == "stopped"
    assert relay.stop_sync("a") is False
    if publishing is not None:
        publishing.join(10)
        assert isinstance(publishing.outcome, StreamClosedError)
        assert model.record.open == 0


def test_a_stop_that_is_sent_twice_stops_nobody_who_has_begun_since(relay: RedisRelay) -> None:
    """Hazard: between its two tries somebody asks the same again."""

    def stop(name: str, who: str) -> int:
        (home,) = relay._homes.values()
        keys = relay._keys(name)

        async def ask() -> int:
            told: int = await home.link.call(
                STOP_RUN, [keys.entries, keys.lease], STOP, OPENING, 60_000, who
            )
            return told

        return Reply(ask).wait()

    first, second = silent_model("one"), silent_model("two")
    for model in (first, second):
        publishing = Publishing(relay, model, run_in="background")
        model.record.wait_until_produced(1)
        eventually(lambda: relay.status_sync("a") == "streaming")
        assert stop("a", "x") == 1
        if model is second:
            assert relay.status_sync("a") == "streaming"
            assert stop("a", "y") == 1
        publishing.join(10)
        assert isinstance(publishing.outcome, StreamClosedError)
        assert relay.status_sync("a") == "stopped"
    assert [stop("a", who) for who in "xyz"] == [1, 1, 0]
    assert stop("b", "x") == 1
    with pytest.raises(StreamClosedError):
        relay.publish_sync("b", stream(ScriptedChatModel(tokens=["a"]), "?"))
    assert [stop("b", who) for who in "xy"] == [1, 0]


def test_a_frozen_server_holds_the_run_up(
    make_relay: Callable[..., RedisRelay], tmp_path: Path
) -> None:
    """Promise 2: never more than `maxsize` ahead of what Redis has taken, and one in the making."""
    with RedisServer(tmp_path) as server:
        relay = make_relay(server.url)
        gate = Gate(10)
        model = ScriptedChatModel(tokens=tokens(100), gate=gate)
        publishing, reading = Publishing(relay, model, maxsize=6), Reading(relay)
        eventually(lambda: len(reading.texts) == 10)
        server.freeze()
        gate.open()
        model.record.wait_until_produced(17)
        eventually(lambda: publishing.source.statistics.blocked > 0)
        assert model.record.produced == 17
        server.thaw()
        publishing.join(10)
        reading.join(10)
        assert reading.texts == tokens(100)


def test_what_comes_while_one_write_is_under_way_goes_into_the_next(
    make_relay: Callable[..., RedisRelay], tmp_path: Path
) -> None:
    """A slow run's tokens go one by one, without delay; those that Redis held up go together."""
    with RedisServer(tmp_path) as server, redis.Redis(port=server.port, socket_timeout=9) as ask:

        def writes() -> int:
            done: Any = ask.info("commandstats")
            return int(done["cmdstat_evalsha"]["calls"])

        relay = make_relay(server.url, lease=100)  # which is not renewed meanwhile
        gate = Gate()
        model = ScriptedChatModel(tokens=tokens(60), gate=gate)
        publishing, reading = Publishing(relay, model), Reading(relay)
        for number in range(1, 11):
            before = writes() if number > 1 else 0
            gate.release()
            eventually(lambda number=number: len(reading.texts) == number)  # type: ignore[misc]
            assert number == 1 or writes() == before + 1
        server.freeze()
        gate.release()
        eventually(lambda: publishing.source.statistics.tokens == 11)
        gate.release(40)
        eventually(lambda: publishing.source.statistics.tokens == 51)
        server.thaw()
        before = writes()
        eventually(lambda: len(reading.texts) == 51)
        assert writes() - before <= 3
        gate.open()
        publishing.join(10)
        reading.join(10)
        assert reading.texts == tokens(60)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_writer_is_cancelled_while_it_begins(
    make_relay: Callable[..., RedisRelay], tmp_path: Path
) -> None:
    """Hazard: it begins after all, and its lease is renewed for ever."""
    with RedisServer(tmp_path) as server:
        relay = make_relay(server.url)
        assert await relay.status("a") == "pending"
        server.freeze()
        model = ScriptedChatModel(tokens=["a"])
        task = asyncio.create_task(relay.publish("a", stream(model, "?")))
        (home,) = relay._homes.values()
        await eventually_async(lambda: home.link._sender is not None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.thaw()
        await asyncio.to_thread(lambda: eventually(lambda: relay.status_sync("a") == "failed"))
        assert home._writers == set()
        assert model.record.calls == 0


def test_redis_stays_away(make_relay: Callable[..., RedisRelay], tmp_path: Path) -> None:
    """Promise 3: both ends get an error that says so, and the run is stopped."""
    with RedisServer(tmp_path) as server:
        relay = make_relay(server.url, outage=0.3)
        gate = Gate(5)
        model = ScriptedChatModel(tokens=tokens(10_000), gate=gate)
        publishing, reading = Publishing(relay, model, maxsize=6), Reading(relay)
        eventually(lambda: len(reading.texts) == 5)
        server.kill()
        gate.open()
        for thread in (publishing, reading):
            thread.join(10)
            assert isinstance(thread.outcome, RelayUnavailableError)
            assert "out of reach for 0.3 seconds" in str(thread.outcome)
        model.record.wait_until_finalized()
        assert model.record.produced <= 5 + 6 + 1
        server.start()
        assert relay.status_sync("a") == "pending"


def test_a_failover_is_waited_for(make_relay: Callable[..., RedisRelay], tmp_path: Path) -> None:
    """Hazard: what Redis says meanwhile is taken for a refusal, and ends every stream."""
    with RedisServer(tmp_path, "--replica-serve-stale-data", "no") as server:
        relay = make_relay(server.url, outage=20)
        gate = Gate(5)
        model = ScriptedChatModel(tokens=tokens(40), gate=gate)
        publishing, reading = Publishing(relay, model, maxsize=4), Reading(relay)
        eventually(lambda: len(reading.texts) == 5)
        assert server.ask("REPLICAOF", "127.0.0.1", str(free_port())) == "+OK"
        gate.open()
        eventually(lambda: publishing.source.statistics.blocked > 0)
        eventually(lambda: "errorstat_MASTERDOWN" in info(server, "errorstats"))
        assert server.ask("REPLICAOF", "NO", "ONE") == "+OK"
        publishing.join(10)
        reading.join(10)
        assert (reading.outcome, reading.texts) == (None, tokens(40))
        assert publishing.outcome.content == "".join(tokens(40))


def test_a_cluster_that_is_down_is_waited_for(
    make_relay: Callable[..., RedisRelay], tmp_path: Path
) -> None:
    """Hazard: as above, in another word."""
    with RedisServer(tmp_path, "--cluster-enabled", "yes") as server:
        relay = make_relay(server.url, cluster=True, outage=20)
        answer: Any = Reply(lambda: relay.status("a"))
        eventually(lambda: "errorstat_CLUSTERDOWN" in info(server, "errorstats"))
        assert server.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383") == "+OK"
        assert answer.wait() == "pending"


@pytest.mark.parametrize(
    "error",
    [
        ResponseError("TRYAGAIN not now"),
        TryAgainError("not now"),
        ResponseError("MASTERDOWN not now"),
        MasterDownError("not now"),
    ],
    ids=repr,
)
def test_a_class_says_as_much_as_a_word(error: ResponseError) -> None:
    """Hazard: redis-py 5 leaves the word in the message, and redis-py 6 has a class instead."""
    assert is_transient(error)


def test_a_failover_that_goes_on_is_told_of_after_one_outage(
    make_relay: Callable[..., RedisRelay], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard: it is taken for a refusal of one stream, and whose is asked for another `outage`."""
    asked: list[object] = []
    ask = SharedReader._read_singly

    def read_singly(reader: SharedReader, cursors: Any) -> Any:
        asked.append(cursors)
        return ask(reader, cursors)

    monkeypatch.setattr(SharedReader, "_read_singly", read_singly)
    with RedisServer(tmp_path, "--replica-serve-stale-data", "no") as server:
        relay = make_relay(server.url, outage=0.3)
        reading = Reading(relay)
        eventually(
            lambda: [
                reader
                for home in relay._homes.values()
                for reader in home._readers.values()
                if reader._under_way
            ]
        )
        assert server.ask("REPLICAOF", "127.0.0.1", str(free_port())) == "+OK"
        reading.join(10)
        assert isinstance(reading.outcome, RelayUnavailableError)
        assert asked == []


def test_nobody_is_there_at_all(make_relay: Callable[..., RedisRelay]) -> None:
    relay = make_relay(f"redis://127.0.0.1:{free_port()}", outage=0.1)
    model = ScriptedChatModel(tokens=["a"])
    for call in (
        lambda: relay.publish_sync("a", stream(model, "?")),
        lambda: next(relay.subscribe_sync("a")),
        lambda: relay.status_sync("a"),
        lambda: relay.stop_sync("a"),
    ):
        with pytest.raises(RelayUnavailableError, match="out of reach"):
            call()
    assert model.record.calls == 0


def test_a_wrong_password_is_told_at_once(
    make_relay: Callable[..., RedisRelay], tmp_path: Path
) -> None:
    with RedisServer(tmp_path) as server:
        server.ask("CONFIG", "SET", "requirepass", "secret")
        relay = make_relay(server.url, outage=30)
        began = time.monotonic()
        with pytest.raises(RelayError, match="refuse"):
            relay.status_sync("a")
        assert time.monotonic() - began < 5
        good = make_relay(server.url, password="secret")
        assert good.status_sync("a") == "pending"


def test_redis_has_no_memory_for_a_while(
    make_relay: Callable[..., RedisRelay], tmp_path: Path
) -> None:
    """Hazard: an entry is refused and the next one is taken."""
    with RedisServer(tmp_path) as server:
        relay = make_relay(server.url)
        gate = Gate(5)
        model = ScriptedChatModel(tokens=tokens(40), gate=gate)
        publishing, reading = Publishing(relay, model, maxsize=4), Reading(relay)
        eventually(lambda: len(reading.texts) == 5)
        assert server.ask("CONFIG", "SET", "maxmemory", "1") == "+OK"
        gate.open()
        eventually(lambda: publishing.source.statistics.blocked > 0)
        assert server.ask("CONFIG", "SET", "maxmemory", "0") == "+OK"
        publishing.join(10)
        reading.join(10)
        assert reading.texts == tokens(40)


def test_the_scripts_are_forgotten(
    make_relay: Callable[..., RedisRelay], redis_server: RedisServer
) -> None:
    relay = make_relay()
    gate = Gate(3)
    publishing = Publishing(relay, ScriptedChatModel(tokens=tokens(6), gate=gate))
    reading = Reading(relay)
    eventually(lambda: len(reading.texts) == 3)
    assert redis_server.ask("SCRIPT", "FLUSH") == "+OK"
    gate.open()
    publishing.join(10)
    reading.join(10)
    assert reading.texts == tokens(6)


def test_a_lease_that_ran_out_while_the_server_was_down(
    make_relay: Callable[..., RedisRelay], durable_server: RedisServer
) -> None:
    """Hazard: the writer lives, and its readers take it for dead."""
    relay = make_relay(durable_server.url, lease=0.3, outage=20)
    gate = Gate(3)
    publishing = Publishing(relay, ScriptedChatModel(tokens=tokens(6), gate=gate))
    other = make_relay(durable_server.url, lease=0.3, outage=20)
    reading = Reading(other)
    eventually(lambda: len(reading.texts) == 3)
    durable_server.kill()
    down = time.monotonic()
    eventually(lambda: time.monotonic() - down > 0.5)
    durable_server.start()
    eventually(lambda: other.status_sync("a") == "streaming")
    gate.open()
    publishing.join(10)
    reading.join(10)
    assert reading.texts == tokens(6)


def test_a_cluster(make_relay: Callable[..., RedisRelay], tmp_path: Path) -> None:
    """Whatever is done in one step has one hash slot, and readers of many slots are served."""
    with RedisServer(tmp_path, "--cluster-enabled", "yes") as server:
        assert server.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383") == "+OK"
        eventually(lambda: server.ask("SET", "x", "y") == "+OK")
        relay = make_relay(server.url, cluster=True, shards=4)
        names = [f"s{number}" for number in range(12)]
        assert len({relay._keys(name).tag for name in names}) == 4
        found: dict[str, list[str]] = {}

        def read(name: str) -> None:
            found[name] = [event.text for event in relay.subscribe_sync(name)]

        readers = [threading.Thread(target=read, args=(name,)) for name in names]
        for reader in readers:
            reader.start()
        for name in names:
            relay.publish_sync(name, stream(ScriptedChatModel(tokens=tokens(9)), "?"))
        for reader in readers:
            reader.join(10)
        assert found == {name: tokens(9) for name in names}
        assert relay.stop_sync("other")
        assert len(server.client_list()) <= 1 + 4 + 1
