"""A writer and its readers, one server, nothing goes wrong but the run itself."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import anyio
import janus
import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.runnables import RunnableLambda

from queuestream import TokenEvent, stream
from queuestream._failures import status_of
from queuestream.errors import (
    ConcurrentIterationError,
    EntryTooLargeError,
    NotFinishedError,
    RelayError,
    RemoteRunError,
    RunCancelledError,
    StreamClosedError,
    StreamTimeoutError,
)
from queuestream.relay import RedisRelay, RelayEvent
from tests.support.backends import ALL_BACKENDS
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.models import ScriptedChatModel, silent_model, tokens, usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.relay.servers import RedisServer

ON_ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"])


def texts(events: Any) -> list[str]:
    return [event.text for event in events]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ALL_BACKENDS)
async def test_on_every_loop(relay: RedisRelay) -> None:
    """Promise 1, by way of Redis: reader and writer are tasks of one loop."""
    model = ScriptedChatModel(tokens=tokens(50))
    events: list[RelayEvent] = []
    result: Any = None

    async def read() -> None:
        events.extend([event async for event in relay.subscribe("a")])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        result = await relay.publish("a", stream(model, "?"))
    assert result.content == "".join(tokens(50))
    assert texts(events) == tokens(50)
    assert await relay.status("a") == "finished"
    assert all(issubclass(type(event), TokenEvent) for event in events)
    assert len({event.id for event in events}) == 50


def test_in_threads(relay: RedisRelay) -> None:
    model = ScriptedChatModel(tokens=tokens(50))
    read: list[list[str]] = []
    readers = [
        threading.Thread(target=lambda: read.append(texts(relay.subscribe_sync("a"))))
        for _ in range(3)
    ]
    for reader in readers:
        reader.start()
    result = relay.publish_sync("a", stream(model, "?"))
    for reader in readers:
        reader.join(10)
    assert result.content == "".join(tokens(50))
    assert read == [tokens(50)] * 3
    assert relay.status_sync("a") == "finished"


@pytest.mark.parametrize("select", ["text", "message", "event"])
@pytest.mark.parametrize("run_in", ["thread", "background"])
def test_whatever_the_stream_selects(relay: RedisRelay, select: Any, run_in: Any) -> None:
    chunk = AIMessageChunk(content="b", usage_metadata=usage(1, 2))
    model = ScriptedChatModel(tokens=["a", chunk])
    source = stream(model, "?", select=select, run_in=run_in, overflow="merge", maxsize=1)
    relay.publish_sync("a", source)
    events = list(relay.subscribe_sync("a"))
    assert "".join(texts(events)) == "ab"  # the second may have joined the first
    assert {event.kind for event in events[:-1]} == {"text"}
    assert events[-1].kind == "usage"
    assert events[-1].chunk is not None
    assert events[-1].chunk.usage_metadata == usage(1, 2)
    assert source.text == "ab"


@pytest.mark.parametrize("select", ["text", "message", "event"])
def test_a_stream_that_was_entered(relay: RedisRelay, select: Any) -> None:
    with stream(ScriptedChatModel(tokens=tokens(30)), "?", select=select, maxsize=4) as source:
        eventually(lambda: source.statistics.tokens >= 4)
        relay.publish_sync("a", source)
    assert texts(relay.subscribe_sync("a")) == tokens(30)


@pytest.mark.anyio
@ON_ASYNCIO
async def test_a_queue_of_janus(relay: RedisRelay) -> None:
    """It cannot hold slots: each event is written before the next is taken."""
    source = stream(ScriptedChatModel(tokens=tokens(9)), "?", queue=janus.Queue[Any](2))
    await relay.publish("a", source)
    assert texts([event async for event in relay.subscribe("a")]) == tokens(9)


@pytest.mark.anyio
@ON_ASYNCIO
@pytest.mark.parametrize("fail_at", [0, 3, 5])
async def test_the_runs_own_error(relay: RedisRelay, fail_at: int) -> None:
    """Promise 3: the writer gets the error itself, readers its type's name and message."""
    own = ZeroDivisionError("at the third")
    model = ScriptedChatModel(tokens=tokens(5), failure=own, fail_at=fail_at)
    with pytest.raises(ZeroDivisionError) as raised:
        await relay.publish("a", stream(model, "?"))
    assert raised.value is own
    assert await relay.status("a") == "failed"
    read: list[str] = []
    subscription = relay.subscribe("a")
    with pytest.raises(RemoteRunError, match=r"^ZeroDivisionError: at the third$") as told:
        async for event in subscription:
            read.append(event.text)  # noqa: PERF401 - it is to be there when it raises
    assert read == tokens(fail_at)
    assert (told.value.type_name, told.value.message) == ("ZeroDivisionError", "at the third")
    assert [event async for event in subscription] == []


@pytest.mark.parametrize("end", ["end", "error"])
def test_reconnect_at_every_id(relay: RedisRelay, end: str) -> None:
    """Every event exactly once, in order, from any cursor; and then the end."""
    failure = ValueError("x") if end == "error" else None
    model = ScriptedChatModel(tokens=tokens(40), failure=failure, fail_at=40)
    try:
        relay.publish_sync("a", stream(model, "?"))
    except ValueError:
        assert end == "error"
    ids: list[str] = []
    for number in range(41):
        subscription = relay.subscribe_sync("a", ids[number - 1] if number else None)
        read: list[str] = []
        try:
            for event in subscription:
                read.append(event.text)
                if not number:
                    ids.append(event.id)
        except RemoteRunError:
            assert end == "error"
        assert read == tokens(40)[number:]
        assert subscription.last_id == ids[-1]


def test_a_restart_within_a_run(relay: RedisRelay) -> None:
    """Fact 8: readers get what was void, the restart, and the second attempt."""
    first = ScriptedChatModel(tokens=["a", "b"], failure=ValueError("x"), fail_at=1)
    chain = first.with_fallbacks([ScriptedChatModel(tokens=["c", "d"])])
    relay.publish_sync("a", stream(chain, "?"))
    events = list(relay.subscribe_sync("a"))
    assert [event.kind for event in events] == ["text", "restart", "text", "text"]
    assert [event.attempt for event in events] == [1, 2, 2, 2]


def test_readers_find_a_run_before_its_model_is_asked(relay: RedisRelay) -> None:
    model = ScriptedChatModel(tokens=tokens(3))
    seen: list[tuple[str, int]] = []
    relay.publish_sync(
        "a",
        stream(model, "?"),
        on_open=lambda: seen.append((relay.status_sync("a"), model.record.calls)),
    )
    assert seen == [("streaming", 0)]


def test_whoever_cannot_begin_opens_nothing(relay: RedisRelay) -> None:
    relay.stop_sync("a")
    seen: list[None] = []
    with pytest.raises(StreamClosedError):
        relay.publish_sync("a", stream(silent_model(), "?"), on_open=lambda: seen.append(None))
    assert seen == []


@pytest.mark.parametrize(
    "returned, told",
    [
        ("a text", "a text"),
        (AIMessageChunk(content="a message"), "a message"),
        ({"messages": [AIMessageChunk(content="a state")]}, "a state"),
        ({"messages": []}, ""),
        (42, ""),
    ],
    ids=["text", "message", "state", "empty state", "number"],
)
def test_what_a_run_without_a_model_returned(
    relay: RedisRelay, returned: object, told: str
) -> None:
    relay.publish_sync("a", stream(RunnableLambda(lambda _: returned), "?"))
    subscription = relay.subscribe_sync("a")
    assert subscription.returned == ""
    assert list(subscription) == []
    assert subscription.returned == told
    assert relay.status_sync("a") == "finished"


def test_why_the_model_stopped(relay: RedisRelay) -> None:
    last = AIMessageChunk(content="", response_metadata={"finish_reason": "length"})
    relay.publish_sync("a", stream(ScriptedChatModel(tokens=["one", last]), "?"))
    subscription = relay.subscribe_sync("a")
    told = [subscription.finish_reason, *texts(subscription), subscription.finish_reason]
    assert told == [None, "one", "length"]
    assert subscription.returned == ""


def test_a_returned_text_that_is_too_large(make_relay: Callable[..., RedisRelay]) -> None:
    relay = make_relay(max_entry=100)
    with pytest.raises(EntryTooLargeError, match="what the run returned has"):
        relay.publish_sync("a", stream(RunnableLambda(lambda _: "x" * 100), "?"))
    assert relay.status_sync("a") == "failed"


def test_an_id_can_be_used_again(relay: RedisRelay) -> None:
    """Who reads from the start gets both, with a restart between; a cursor goes on anywhere."""
    for text in ("a", "b", "c"):
        relay.publish_sync("x", stream(ScriptedChatModel(tokens=[text]), "?"))
    events = list(relay.subscribe_sync("x"))
    assert [(event.kind, event.text, event.attempt) for event in events] == [
        ("text", "a", 1),
        ("restart", "", 2),
        ("text", "b", 2),
        ("restart", "", 3),
        ("text", "c", 3),
    ]
    for number, event in enumerate(events):
        assert list(relay.subscribe_sync("x", event.id)) == events[number + 1 :]


@pytest.mark.anyio
@ON_ASYNCIO
async def test_the_states_of_a_run(relay: RedisRelay) -> None:
    assert await relay.status("a") == "pending"
    model = silent_model("one")
    task = asyncio.create_task(relay.publish("a", stream(model, "?")))
    subscription = relay.subscribe("a")
    assert (await anext(subscription)).text == "one"
    assert await relay.status("a") == "streaming"
    assert await relay.stop("a") is True
    assert await relay.status("a") == "stopped"
    with pytest.raises(StreamClosedError, match="a was stopped from elsewhere"):
        await task
    with pytest.raises(StreamClosedError, match="a was stopped before its end"):
        await anext(subscription)
    assert await relay.stop("a") is False
    await eventually_async(lambda: not model.record.open)


def test_stopped_before_it_began(relay: RedisRelay) -> None:
    """The model is not asked; the next writer after that begins as always."""
    model = ScriptedChatModel(tokens=["a"])
    assert relay.stop_sync("a")
    assert relay.status_sync("a") == "stopped"
    with pytest.raises(StreamClosedError, match="stopped before it began"):
        relay.publish_sync("a", stream(model, "?"))
    assert model.record.calls == 0
    relay.publish_sync("a", stream(model, "?"))
    assert texts(relay.subscribe_sync("a"))[-1] == "a"


@pytest.mark.anyio
@ON_ASYNCIO
@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_the_writer_itself_stops(relay: RedisRelay, how: str) -> None:
    """Promise 4: readers are told, and nothing of the run is left."""
    model = silent_model("one")
    source = stream(model, "?")
    task = asyncio.create_task(relay.publish("a", source))
    subscription = relay.subscribe("a")
    await anext(subscription)
    if how == "close":
        source.close()
        expected: Any = StreamClosedError
    else:
        task.cancel()
        expected = RemoteRunError
    with pytest.raises(StreamClosedError if how == "close" else asyncio.CancelledError):
        await task
    with pytest.raises(expected):
        await anext(subscription)
    assert model.record.open == 0
    assert await relay.status("a") == ("stopped" if how == "close" else "failed")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ALL_BACKENDS)
async def test_a_cancelled_writer_has_the_status_of_a_cancelled_run(relay: RedisRelay) -> None:
    """Hazard: its readers' clients hear that the run failed, and not to try again."""
    subscription = relay.subscribe("a")
    async with anyio.create_task_group() as group:
        group.start_soon(relay.publish, "a", stream(silent_model("one"), "?"))
        assert (await anext(subscription)).text == "one"
        group.cancel_scope.cancel()
    with pytest.raises(RemoteRunError) as told:
        await anext(subscription)
    assert told.value.status == status_of(RunCancelledError()) == 503


def test_an_entry_that_is_too_large(make_relay: Callable[..., RedisRelay]) -> None:
    relay = make_relay(max_entry=500)
    model = ScriptedChatModel(tokens=["a", "b" * 600, "c"])
    with pytest.raises(EntryTooLargeError, match="max_entry allows 500"):
        relay.publish_sync("a", stream(model, "?"))
    with pytest.raises(RemoteRunError, match="EntryTooLargeError"):
        list(relay.subscribe_sync("a"))


def test_a_stream_that_was_used_up(relay: RedisRelay) -> None:
    source = stream(ScriptedChatModel(tokens=["a"]), "?")
    assert list(source) == ["a"]
    relay.publish_sync("a", source)
    assert list(relay.subscribe_sync("a")) == []
    closed = stream(ScriptedChatModel(tokens=["a"]), "?")
    closed.close()
    with pytest.raises(StreamClosedError):
        relay.publish_sync("b", closed)
    assert relay.status_sync("b") == "stopped"


def test_nobody_begins(make_relay: Callable[..., RedisRelay]) -> None:
    relay = make_relay(start_timeout=0.05)
    with pytest.raises(StreamTimeoutError, match=r"nobody began .* start_timeout=0.05 seconds"):
        next(relay.subscribe_sync("a"))


def test_a_thousand_readers_have_one_connection(
    make_relay: Callable[..., RedisRelay], redis_server: RedisServer
) -> None:
    """Each of another stream; all of them hear at once when somebody begins."""
    relay = make_relay(client_name="thousand")
    subscriptions = [relay.subscribe_sync(f"s{number}") for number in range(1000)]
    taken: list[int] = []
    threads = [
        threading.Thread(target=lambda one=one: taken.append(len(list(one))))
        for one in subscriptions[:20]
    ]
    for thread in threads:
        thread.start()
    for one in subscriptions[20:]:
        one._add(one._watch)
        one._has_begun = True
    home = next(iter(relay._homes.values()), None)
    eventually(lambda: bool(relay._homes))
    home = next(iter(relay._homes.values()))
    eventually(lambda: sum(map(len, _reader(home)._watches.values())) == 1000)
    for number in range(20):
        relay.publish_sync(f"s{number}", stream(ScriptedChatModel(tokens=["a"]), "?"))
    for thread in threads:
        thread.join(10)
    assert taken == [1] * 20
    connections = [one for one in redis_server.client_list() if "name=thousand" in one]
    assert len(connections) == 2
    for one in subscriptions:
        one.close()
    eventually(lambda: not _reader(home)._watches)


def _reader(home: Any) -> Any:
    (reader,) = home._readers.values()
    return reader


def test_a_subscription_that_is_added_twice_is_read_once(relay: RedisRelay) -> None:
    """Hazard: it goes on just when it was to pause; the second one stays for ever."""
    reading = relay.subscribe_sync("a")
    for _ in range(2):
        relay._add(reading._watch)
    relay.publish_sync("a", stream(ScriptedChatModel(tokens=tokens(9)), "?"))
    assert [event.text for event in reading if event.kind == "text"] == tokens(9)
    (home,) = relay._homes.values()
    eventually(lambda: not any(reader._watches for reader in home._readers.values()))


def test_a_subscription_that_is_dropped_is_let_go(relay: RedisRelay) -> None:
    relay.publish_sync("b", stream(ScriptedChatModel(tokens=["a"]), "?"))
    subscription = relay.subscribe_sync("a")
    thread = threading.Thread(target=lambda: list(relay.subscribe_sync("b")))
    thread.start()
    thread.join()
    reader: Any = _reader(next(iter(relay._homes.values())))
    subscription._enter()
    eventually(lambda: reader._watches)
    del subscription
    eventually(lambda: not reader._watches)


@pytest.mark.anyio
@ON_ASYNCIO
async def test_closing_a_subscription(relay: RedisRelay) -> None:
    subscription = relay.subscribe("a")
    waiting = asyncio.create_task(anext(subscription))
    await eventually_async(lambda: subscription._is_waiting)
    with pytest.raises(ConcurrentIterationError):
        await anext(subscription)
    await subscription.aclose()
    subscription.close()
    for _ in range(2):
        with pytest.raises(StreamClosedError, match="the subscription to a was closed"):
            await (waiting if not waiting.done() else anext(subscription))


@pytest.mark.anyio
@ON_ASYNCIO
async def test_a_cancelled_wait_has_taken_nothing(relay: RedisRelay) -> None:
    gate = Gate()
    task = asyncio.create_task(
        relay.publish("a", stream(ScriptedChatModel(tokens=tokens(3), gate=gate), "?"))
    )
    async with relay.subscribe("a") as subscription:
        for number in range(3):
            waiting = asyncio.create_task(anext(subscription))
            await eventually_async(lambda: subscription._is_waiting)
            waiting.cancel()
            await asyncio.wait([waiting])
            gate.release()
            assert (await anext(subscription)).text == tokens(3)[number]
    await task


@pytest.mark.anyio
@ON_ASYNCIO
async def test_closing_the_relay_ends_everything(make_relay: Callable[..., RedisRelay]) -> None:
    model = silent_model("one")
    async with make_relay() as relay:
        task = asyncio.create_task(relay.publish("a", stream(model, "?")))
        subscription = relay.subscribe("a")
        await anext(subscription)
    with pytest.raises(StreamClosedError, match="the relay was closed"):
        await anext(subscription)
    with pytest.raises(RelayError, match="the relay was closed"):
        await task
    assert model.record.open == 0
    assert await relay.status("a") == "streaming"  # used again; the lease runs on


def test_nothing_connects_once_the_relay_is_closed(
    make_relay: Callable[..., RedisRelay], redis_server: RedisServer
) -> None:
    """Hazard: a reader that is just being let in opens connections that nobody closes."""
    for number in range(20):
        relay = make_relay(client_name=f"closing-{number}")
        readers = [relay.subscribe_sync(f"s{one}") for one in range(5)]
        for reader in readers:
            reader._enter()
        relay.close()
        for reader in readers:
            reader._is_waiting = False
            with pytest.raises((StreamClosedError, RelayError), match="the relay was closed"):
                next(reader)
    eventually(lambda: not any("closing-" in line for line in redis_server.client_list()))


def test_a_relay_inside_a_background_run(relay: RedisRelay) -> None:
    """Hazard: a synchronous call on the loop that has to answer it."""
    said: list[str] = []

    async def ask(_: str) -> str:
        for call in (
            lambda: relay.status_sync("a"),
            lambda: relay.stop_sync("a"),
            lambda: relay.publish_sync("a", stream(silent_model(), "?")),
            lambda: next(relay.subscribe_sync("a")),
            relay.close,
        ):
            with pytest.raises(RuntimeError) as error:
                call()
            said.append(str(error.value))
        return await relay.status("a")

    with stream(RunnableLambda(ask), "?", run_in="background") as source:
        assert list(source) == []
        assert source.result == "pending"
    assert len(said) == 5
    assert all("asynchronous twin" in text for text in said)


def test_a_result_that_is_not_there(relay: RedisRelay) -> None:
    source = stream(ScriptedChatModel(tokens=["a"]), "?")
    with pytest.raises(NotFinishedError):
        _ = source.result
    assert relay.publish_sync("a", source) is source.result


@pytest.mark.parametrize(
    "arguments, error, said",
    [
        ({"url": "http://x"}, ValueError, "url must begin with redis://"),
        ({"url": None}, TypeError, "url must be a str"),
        ({"url": "redis://localhost:abc"}, ValueError, "url is none that redis-py knows"),
        (
            {"url": "redis://localhost?socket_connect_timeout=x"},
            ValueError,
            "none that redis-py knows",
        ),
        ({"url": "redis://localhost?socket_timeout=1"}, ValueError, "sets socket_timeout itself"),
        ({"url": "redis://localhost?protocol=3&db=1"}, ValueError, "sets protocol itself"),
        ({"ttl": 0}, ValueError, "ttl must be more than 0"),
        ({"ttl": None}, TypeError, "ttl must be"),
        ({"lease": -1}, ValueError, "lease must be"),
        ({"outage": None}, TypeError, "outage must be"),
        ({"maxlen": 0}, ValueError, "maxlen must be 1 or more"),
        ({"max_entry": 1.5}, TypeError, "max_entry must be an int"),
        ({"shards": 0}, ValueError, "shards must be 1 or more"),
        ({"prefix": "a{b}"}, ValueError, "without braces"),
        ({"prefix": 1}, TypeError, "prefix must be a str"),
        ({"start_timeout": "1"}, TypeError, "start_timeout must be"),
        ({"protocol": 3}, TypeError, "the relay sets protocol itself"),
    ],
)
def test_arguments(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        RedisRelay.from_url(arguments.pop("url", "redis://localhost"), **arguments)


def test_ids_and_streams_are_checked(relay: RedisRelay) -> None:
    for wrong, error in ((1, TypeError), ("", ValueError), ("\ud800", ValueError)):
        for call in (relay.subscribe, relay.subscribe_sync, relay.status_sync, relay.stop_sync):
            with pytest.raises(error, match="id must"):
                call(wrong)  # type: ignore[arg-type]
    given: Any = iter(["a"])
    with pytest.raises(TypeError, match="stream must be a TokenStream"):
        relay.publish_sync("a", given)


def test_no_secret_is_shown() -> None:
    relay = RedisRelay.from_url("redis://me:secret@localhost:6379/1")
    assert repr(relay) == "<RedisRelay: redis://localhost:6379/1>"
