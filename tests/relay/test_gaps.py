"""Readers that are slow, late or many: everything once and in order, or an error, never silence."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from queuestream import stream
from queuestream.errors import GapError, RelayError
from queuestream.relay._link import Reply
from queuestream.relay._reader import SharedReader
from tests.support.gates import Gate, eventually
from tests.support.models import ScriptedChatModel, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream.relay import RedisRelay
    from tests.relay.servers import RedisServer

ON_ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.mark.anyio
@ON_ASYNCIO
async def test_500_readers_join_at_random_times(make_relay: Callable[..., RedisRelay]) -> None:
    """Each gets everything once and in order, by way of two connections."""
    relay = make_relay()
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    count, gate = 150, Gate()
    model = ScriptedChatModel(tokens=tokens(count), gate=gate)
    writer = asyncio.create_task(relay.publish("a", stream(model, "?", maxsize=8)))

    async def read() -> list[str]:
        return [event.text async for event in relay.subscribe("a")]

    joining = sorted(chance.randrange(count + 1) for _ in range(500))
    readers: list[asyncio.Task[list[str]]] = []
    for number in range(count + 1):
        while joining and joining[0] == number:
            joining.pop(0)
            readers.append(asyncio.create_task(read()))
        gate.release()
        await asyncio.sleep(0)
    await writer
    expected = tokens(count)
    assert all(found == expected for found in await asyncio.gather(*readers))


@pytest.mark.anyio
@ON_ASYNCIO
async def test_random_readers_that_leave_and_come_back(relay: RedisRelay) -> None:
    """A reader that goes on from its last id, again and again, misses and doubles nothing."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    writer = asyncio.create_task(
        relay.publish("a", stream(ScriptedChatModel(tokens=tokens(400)), "?", maxsize=4))
    )

    async def read() -> list[str]:
        found: list[str] = []
        after: str | None = None
        while True:
            left = chance.randrange(1, 90)
            subscription = relay.subscribe("a", after)
            async for event in subscription:
                found.append(event.text)
                left -= 1
                if not left:
                    break
            else:
                return found
            after = subscription.last_id

    assert await asyncio.gather(*[read() for _ in range(10)]) == [tokens(400)] * 10
    await writer


def test_a_slow_reader_of_a_stream_that_is_trimmed(make_relay: Callable[..., RedisRelay]) -> None:
    """What it has is without a gap; then it is told, and so is every cursor that is too old."""
    relay = make_relay(maxlen=50)
    gate = Gate(10)
    source = stream(ScriptedChatModel(tokens=tokens(600), gate=gate), "?", run_in="background")
    slow = relay.subscribe_sync("a")
    writing: Any = Reply(lambda: relay.publish("a", source))
    ids = [next(slow).id]
    gate.open()
    writing.wait()
    read = 1
    with pytest.raises(GapError, match=r"a: entries after [0-9]+-[0-9]+ are gone; the next is"):
        for event in slow:
            assert event.text == tokens(600)[read]
            ids.append(event.id)
            read += 1
    assert read < 600
    for after in (None, ids[0], ids[-1]):
        with pytest.raises(GapError):
            next(relay.subscribe_sync("a", after))
    epoch = ids[0].partition("-")[0]
    kept = list(relay.subscribe_sync("a", f"{epoch}-550"))
    assert [event.text for event in kept] == tokens(600)[550:]
    with pytest.raises(GapError):
        next(relay.subscribe_sync("a", f"{epoch}-540"))


def test_a_stream_of_just_maxlen_events_is_kept(make_relay: Callable[..., RedisRelay]) -> None:
    relay = make_relay(maxlen=5)
    relay.publish_sync("a", stream(ScriptedChatModel(tokens=tokens(5)), "?"))
    assert [event.text for event in relay.subscribe_sync("a")] == tokens(5)
    relay.publish_sync("b", stream(ScriptedChatModel(tokens=tokens(6)), "?"))
    with pytest.raises(GapError):
        next(relay.subscribe_sync("b"))


def test_expiry_under_a_slow_reader(make_relay: Callable[..., RedisRelay]) -> None:
    """Hazard: a blocking read of a key that is gone waits for ever."""
    relay = make_relay(ttl=0.4)
    relay.publish_sync("a", stream(ScriptedChatModel(tokens=tokens(300)), "?"))
    slow = relay.subscribe_sync("a")
    first = next(slow)
    eventually(lambda: relay.status_sync("a") == "pending")
    read = 1
    with pytest.raises(GapError, match="a has expired"):
        for event in slow:
            assert event.text == tokens(300)[read]
            read += 1
    assert 1 <= read < 300
    with pytest.raises(GapError, match="a has expired"):
        next(relay.subscribe_sync("a", first.id))


def test_a_cursor_of_an_earlier_life(make_relay: Callable[..., RedisRelay]) -> None:
    """Hazard: the id was used again after it had expired, and its numbers begin at 1 again."""
    relay = make_relay(ttl=0.3)
    relay.publish_sync("a", stream(ScriptedChatModel(tokens=tokens(9)), "?"))
    old = [event.id for event in relay.subscribe_sync("a")]
    eventually(lambda: relay.status_sync("a") == "pending")
    later = make_relay()
    later.publish_sync("a", stream(ScriptedChatModel(tokens=tokens(20)), "?"))
    for after in old:
        with pytest.raises(GapError):
            next(later.subscribe_sync("a", after))
    assert len(list(later.subscribe_sync("a"))) == 20


def test_a_cursor_that_is_ahead(relay: RedisRelay) -> None:
    """Hazard: Redis has lost the end of the stream, and its reader waits for ever."""
    relay.publish_sync("a", stream(ScriptedChatModel(tokens=["a"]), "?"))
    (event,) = relay.subscribe_sync("a")
    epoch = int(event.id.partition("-")[0])
    with pytest.raises(GapError, match="is after the last entry"):
        next(relay.subscribe_sync("a", f"{epoch + 1}-3"))


def test_a_stream_that_is_deleted_while_it_is_read(
    make_relay: Callable[..., RedisRelay], redis_server: RedisServer
) -> None:
    relay = make_relay(lease=0.2)
    gate = Gate(3)
    source = stream(ScriptedChatModel(tokens=tokens(6), gate=gate), "?", run_in="background")
    writing: Any = Reply(lambda: relay.publish("a", source))
    reader = relay.subscribe_sync("a")
    assert [next(reader).text for _ in range(3)] == tokens(3)
    key = relay._keys("a").entries
    assert redis_server.ask("DEL", key) == ":1"
    with pytest.raises(GapError):
        next(reader)
    gate.open()
    writing.wait()
    with pytest.raises(GapError):
        next(relay.subscribe_sync("a"))


def is_waiting(server: RedisServer, reader: SharedReader, key: str, client_name: str) -> bool:
    """Whether the server has the reader's read, of this stream too, and answers later."""
    if key not in (reader._under_way or ()):  # first: the reads before it are over then
        return False
    clients = server.client_list()
    return any(f"name={client_name}" in line and "flags=b" in line for line in clients)


@pytest.mark.parametrize("seen_by", ["the read", "the look at its state"])
def test_a_stream_that_redis_refuses_to_read(
    make_relay: Callable[..., RedisRelay], redis_server: RedisServer, seen_by: str
) -> None:
    """Hazard: one read is for all, and so is its error."""
    relay = make_relay(client_name="refused")
    gate = Gate(2)
    source = stream(ScriptedChatModel(tokens=tokens(6), gate=gate), "?", run_in="background")
    writing: Any = Reply(lambda: relay.publish("a", source))
    good = relay.subscribe_sync("a")
    assert [next(good).text for _ in range(2)] == tokens(2)
    bad = [relay.subscribe_sync("b") for _ in range(2)]
    readings: list[Any] = [Reply(partial(anext, one)) for one in bad]
    ((reader,),) = [home._readers.values() for home in relay._homes.values()]
    key = relay._keys("b").entries
    eventually(lambda: len(reader._watches.get(key, ())) == 2)
    eventually(lambda: is_waiting(redis_server, reader, key, "refused"))
    assert redis_server.ask("SET", key, "x") == "+OK"
    if seen_by == "the read":
        gate.release()  # and what is read next is refused
    else:
        for watch in reader._watches[key]:
            watch.deadline = 0.0
        reader.loop.call_soon_threadsafe(reader._wake)
    for reading in readings:
        with pytest.raises(RelayError, match=r"refused .*: WRONGTYPE"):
            reading.wait()
    gate.open()
    assert [event.text for event in good] == tokens(6)[2:]
    assert writing.wait().content == "".join(tokens(6))


def test_a_read_that_redis_refuses_though_no_stream_is_to_blame(
    relay: RedisRelay, redis_server: RedisServer
) -> None:
    """Hazard: it is tried again and again."""
    gate = Gate(1)
    source = stream(ScriptedChatModel(tokens=tokens(3), gate=gate), "?", run_in="background")
    writing: Any = Reply(lambda: relay.publish("a", source))
    reading = relay.subscribe_sync("a")
    assert next(reading).text == tokens(3)[0]
    ((reader,),) = [home._readers.values() for home in relay._homes.values()]
    eventually(lambda: reader._under_way is not None)
    assert redis_server.ask("SET", reader._wake_key, "x") == "+OK"
    gate.release()
    with pytest.raises(RelayError, match="refused a command: WRONGTYPE"):
        list(reading)
    with pytest.raises(RelayError, match="refused a command: WRONGTYPE"):
        writing.wait()


def test_a_stream_that_redis_refuses_to_read_and_that_is_gone_before_each_is_asked_for(
    make_relay: Callable[..., RedisRelay],
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hazard: nobody is to blame then, and all readers of the process fail.  Three times."""
    relay = make_relay(client_name="gone")
    gate = Gate(1)
    source = stream(ScriptedChatModel(tokens=tokens(6), gate=gate), "?", run_in="background")
    writing: Any = Reply(lambda: relay.publish("a", source))
    good = relay.subscribe_sync("a")
    assert next(good).text == tokens(6)[0]
    reading: Any = Reply(partial(anext, relay.subscribe_sync("b")))
    ((reader,),) = [home._readers.values() for home in relay._homes.values()]
    key = relay._keys("b").entries
    asked: list[str] = []
    ask = SharedReader._read_singly

    def read_singly(reader: SharedReader, cursors: Any) -> Any:
        asked.append(redis_server.ask("DEL", key))
        return ask(reader, cursors)

    monkeypatch.setattr(SharedReader, "_read_singly", read_singly)
    for number in range(1, 4):
        eventually(lambda: is_waiting(redis_server, reader, key, "gone"))
        assert redis_server.ask("SET", key, "x") == "+OK"
        gate.release()  # and what is read next is refused
        assert next(good).text == tokens(6)[number]
        eventually(lambda number=number: len(asked) == number)  # type: ignore[misc]
    gate.open()
    assert [event.text for event in good] == tokens(6)[4:]
    assert writing.wait().content == "".join(tokens(6))
    relay.publish_sync("b", stream(ScriptedChatModel(tokens=["b"]), "?"))
    assert reading.wait().text == "b"
    assert asked == [":1"] * 3


def test_an_entry_of_somebody_else(relay: RedisRelay, redis_server: RedisServer) -> None:
    relay.publish_sync("a", stream(ScriptedChatModel(tokens=["a"]), "?"))
    key = relay._keys("b").entries
    redis_server.ask("XADD", key, "1-1", "x", "y")
    with pytest.raises(RelayError, match="was not written by a relay"):
        next(relay.subscribe_sync("b"))
    redis_server.ask("SET", relay._keys("c").entries, "x")
    with pytest.raises(RelayError, match="WRONGTYPE"):
        relay.publish_sync("c", stream(ScriptedChatModel(tokens=["a"]), "?"))
    with pytest.raises(RelayError, match="WRONGTYPE"):
        next(relay.subscribe_sync("c"))
