"""What each provider's answer becomes, through the real clients: texts, messages, events.

The measure is the client's own `stream` of the same answer, message by message.  What the
messages tell is read from them by LangChain's own means (`content_blocks`, `text`), so that
nothing of ours says what ours should be.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import pytest
from langchain_core.messages.ai import add_usage

from queuestream import TokenEvent, stream
from tests.http.shapes import (
    LONG,
    RAISING,
    READABLE,
    SMALL,
    WHOLE,
    answer_of,
    client_of,
    is_long,
)
from tests.support.clients import openai_client
from tests.support.consumers import pairings
from tests.support.server import ReplayServer, recorded, recordings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_core.language_models import LanguageModelInput
    from langchain_core.messages import AIMessage, AIMessageChunk
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.runnables import Runnable

    from queuestream import TokenStream
    from tests.support.consumers import Consumer, RunIn

pytestmark = [
    # Anthropic's client warns when the provider calls a tool that the request did not offer.
    pytest.mark.filterwarnings("ignore:Received unexpected tool content block"),
    # LangChain's, when it reads content blocks out of the pieces of one.
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings"),
]

PAIRINGS = pairings("for", "asyncio")
"""Each kind of run, and each kind of consumer; what is delivered is the same on every loop."""
ONE_EACH = [case for case in PAIRINGS if case.id in ("thread-for", "task-asyncio")]
"""A pairing of each of the client's own two ways."""
EACH_RUN_IN = [*ONE_EACH, *(case for case in PAIRINGS if case.id == "background-for")]


def on_pairings(names: Sequence[str]) -> list[Any]:
    """Answers on pairings: real ones on all, self-made on some, long ones and variants on two."""
    return [
        pytest.param(name, *case.values, id=f"{case.id}-{name}")
        for name in names
        for case in (
            ONE_EACH
            if is_long(name) or "+" in name
            else PAIRINGS
            if name in recordings()
            else EACH_RUN_IN
        )
    ]


Told: TypeAlias = tuple[str, str]
"""Kind and text of an event."""


@dataclass(frozen=True)
class Own:
    """What a client's own `stream` gives of an answer."""

    messages: Sequence[AIMessageChunk]
    error: Exception | None

    @property
    def text(self) -> str:
        """Their text."""
        return "".join(str(message.text) for message in self.messages)

    @property
    def usage(self) -> UsageMetadata | None:
        """The usage that they tell."""
        total: UsageMetadata | None = None
        for message in self.messages:
            total = add_usage(total, message.usage_metadata) if message.usage_metadata else total
        return total

    @property
    def events(self) -> list[Told]:
        """What they tell, one by one."""
        return [event for message in self.messages for event in told_by(message)]


def told_by(message: AIMessageChunk) -> list[Told]:
    """What LangChain itself finds in a message."""
    blocks = cast("list[Any]", message.content_blocks)
    reasoning = "".join(block.get("reasoning", "") for block in blocks)
    events = [("reasoning", reasoning), ("text", str(message.text))]
    events = [event for event in events if event[1]]
    events += [("tool_call", call["args"] or "") for call in message.tool_call_chunks]
    return events + [("usage", "")] * bool(message.usage_metadata)


def own(model: Runnable[LanguageModelInput, AIMessage]) -> Own:
    """Stream the next answer with the client alone."""
    messages: list[Any] = []
    try:
        messages.extend(model.stream("?"))
    except Exception as error:  # it is what the test looks at
        return Own(messages, error)
    return Own(messages, None)


@functools.cache
def own_of(server: ReplayServer, name: str) -> Own:
    """What the client alone gives of an answer."""
    return own(client_of(name, server.scenario(answer_of(name))))


@functools.cache
def own_of_cut(server: ReplayServer, name: str) -> dict[int, Own]:
    """What the client alone gives of an answer that is cut, by the events before the cut.

    A short one is cut at every event, and not at all; a long one here and there.
    """
    answer = answer_of(name)
    cuts = range(len(answer.events) + 1)
    if is_long(name):
        # LangChain cannot add up parts of two answers, which one recording holds, and hides
        # with its complaint what happens after the first.
        starts = [n for n in cuts[1:-1] if b'"response.created"' in answer.events[n]]
        end = starts[0] if starts else cuts[-1]
        cuts = range(1, end, end // 4)
    model = client_of(name, server.scenario(*map(answer.cut, cuts)))
    return {cut: own(model) for cut in cuts}


def plain(message: AIMessage) -> dict[str, Any]:
    """A message without the id, which may be the run's."""
    return message.model_dump(exclude={"id"})


def in_one(messages: Sequence[AIMessageChunk]) -> AIMessageChunk:
    """The sum of messages."""
    first, *rest = messages
    return first + rest if rest else first


async def consumed(
    consumer: Consumer, tokens: TokenStream[Any], error: Exception | None
) -> list[Any]:
    """Take all items; the end is the one that the client alone comes to."""
    received: list[Any] = []
    if error is None:
        received += await consumer.collect(tokens)
        return received
    with pytest.raises(type(error)) as raised:
        while True:
            received.append(await consumer.next(tokens))
    assert str(raised.value) == str(error)
    with pytest.raises(type(error)):
        _ = tokens.result
    return received


@pytest.mark.parametrize("name, run_in, consumer", on_pairings([*READABLE, *RAISING]))
def test_messages_are_those_of_the_clients_own_stream(
    server: ReplayServer, name: str, run_in: RunIn, consumer: Consumer
) -> None:
    """Promises 1 and 3.  Hazard: a message is dropped, changed, or taken apart."""
    model = client_of(name, server.scenario(answer_of(name)))
    expected = own_of(server, name)
    assert expected.error is None or name in RAISING

    async def consume() -> None:
        selected = stream(model, "?", run_in=run_in, select="message")
        async with consumer.entered(selected) as tokens:
            messages = await consumed(consumer, tokens, expected.error)
            assert [*map(plain, messages)] == [*map(plain, expected.messages)]
            assert tokens.text == expected.text
            assert tokens.usage == expected.usage
            assert tokens.statistics.tokens == len(messages)
            if expected.error is None:
                total = in_one(messages)
                assert plain(total) == plain(in_one(expected.messages))
                assert total.content == tokens.result.content
                assert total.usage_metadata == tokens.result.usage_metadata == tokens.usage
                assert total.tool_calls == tokens.result.tool_calls
                assert total.additional_kwargs == tokens.result.additional_kwargs

    consumer.run(consume)


@pytest.mark.parametrize("name, run_in, consumer", on_pairings([*READABLE, *RAISING]))
def test_events_tell_what_the_messages_tell(
    server: ReplayServer, name: str, run_in: RunIn, consumer: Consumer
) -> None:
    """Promises 1 and 3.  Hazard: a part is lost, doubled, of a wrong kind or in another order."""
    answer = answer_of(name)
    model = client_of(name, server.scenario(answer, answer))
    expected = own_of(server, name)

    async def consume() -> None:
        selected = stream(model, "?", run_in=run_in, select="event")
        async with consumer.entered(selected) as tokens:
            events: list[TokenEvent] = await consumed(consumer, tokens, expected.error)
            assert [(event.kind, event.text) for event in events] == expected.events
            assert all(event.streamed and event.attempt == 1 for event in events)
            assert len({event.run_id for event in events}) <= 1
            text = "".join(event.text for event in events if event.kind == "text")
            assert text == tokens.text == expected.text
            assert tokens.usage == expected.usage == _usage_in(events)
            if expected.error is None:
                assert _calls_in(events) == _calls(tokens.result)
        async with consumer.entered(stream(model, "?", run_in=run_in)) as texts:
            received = await consumed(consumer, texts, expected.error)
            assert "" not in received
            assert [("text", each) for each in received] == [
                event for event in expected.events if event[0] == "text"
            ]
            assert (texts.text, texts.usage) == (text, expected.usage)

    consumer.run(consume)


def _usage_in(events: Sequence[TokenEvent]) -> UsageMetadata | None:
    total: UsageMetadata | None = None
    for event in events:
        if event.kind == "usage":
            assert event.chunk is not None
            assert event.chunk.usage_metadata is not None
            total = add_usage(total, event.chunk.usage_metadata)
    return total


def _calls_in(events: Sequence[TokenEvent]) -> list[tuple[str | None, str | None, Any]]:
    """The calls that the events piece together by their index, in the order of their start."""
    calls: dict[object, dict[str, Any]] = {}
    for event in events:
        if event.kind == "tool_call":
            assert event.chunk is not None
            (piece,) = event.chunk.tool_call_chunks
            assert event.text == (piece["args"] or "")
            call = calls.setdefault(piece["index"], {"id": None, "name": None, "args": ""})
            call["id"] = call["id"] or piece["id"]
            call["name"] = call["name"] or piece["name"]
            call["args"] += event.text
    return [(call["id"], call["name"], json.loads(call["args"] or "{}")) for call in calls.values()]


def _calls(message: AIMessage) -> list[tuple[str | None, str | None, Any]]:
    return [(call["id"], call["name"], call["args"]) for call in message.tool_calls]


@pytest.mark.parametrize("name", [*READABLE, *RAISING])
def test_the_clients_own_two_streams_agree(server: ReplayServer, name: str) -> None:
    """What the other tests rest on: `stream` is a measure for `ainvoke`, too."""
    model = client_of(name, server.scenario(answer_of(name)))
    expected = own_of(server, name)
    messages: list[Any] = []
    error: Exception | None = None

    async def consume() -> None:
        nonlocal error
        try:
            async for message in model.astream("?"):
                messages.append(message)  # noqa: PERF401 - those before an error count
        except Exception as raised:  # it is what the test looks at
            error = raised

    asyncio_consumer: Consumer = pairings("asyncio")[0].values[1]
    asyncio_consumer.run(consume)
    assert [*map(plain, messages)] == [*map(plain, expected.messages)]
    assert repr(error) == repr(expected.error)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("run_in, consumer", ONE_EACH)
def test_what_an_event_of_the_provider_holds_is_received_before_the_next_is_sent(
    server: ReplayServer, name: str, run_in: RunIn, consumer: Consumer
) -> None:
    """Promise 1.  Hazard: something waits for the next event, or tells more than was sent."""
    cut = own_of_cut(server, name)
    pace, paced = answer_of(name).paced()
    scenario = server.scenario(paced)
    model = client_of(name, scenario)

    async def consume() -> None:
        selected = stream(model, "?", run_in=run_in, select="event")
        async with consumer.entered(selected) as tokens:
            seen: list[Told] = []
            for sent in range(1, len(cut)):
                pace.release()
                new = cut[sent].events[len(seen) :]
                for expected in new:
                    event = await consumer.next(tokens)
                    assert (event.kind, event.text) == expected
                    assert scenario.exchanges[0].sent <= sent
                seen += new
                assert seen == cut[sent].events
            assert await consumed(consumer, tokens, cut[len(cut) - 1].error) == []

    consumer.run(consume)


@pytest.mark.parametrize(
    "name, run_in, consumer",
    [
        pytest.param(name, *case.values, id=f"{case.id}-{name}")
        for name in [*SMALL, *LONG]
        for case in (EACH_RUN_IN if name in recordings() and name in SMALL else ONE_EACH)
    ],
)
def test_an_answer_that_is_cut_gives_what_was_sent_and_the_clients_own_end(
    server: ReplayServer, name: str, run_in: RunIn, consumer: Consumer
) -> None:
    """Promise 3.  Hazard: the end of a broken connection is lost, or takes items with it."""
    alone = own_of_cut(server, name)
    model = client_of(name, server.scenario(*(answer_of(name).cut(cut) for cut in alone)))

    async def consume() -> None:
        for expected in alone.values():
            selected = stream(model, "?", run_in=run_in, select="event")
            async with consumer.entered(selected) as tokens:
                events: list[TokenEvent] = await consumed(consumer, tokens, expected.error)
                assert [(event.kind, event.text) for event in events] == expected.events
                assert (tokens.text, tokens.usage) == (expected.text, expected.usage)

    consumer.run(consume)
    whole = own_of(server, name).events
    assert all(whole[: len(cut.events)] == cut.events for cut in alone.values())
    assert all(cut.error is not None for cut in [*alone.values()][:-1])


@pytest.mark.parametrize("name", READABLE)
def test_merging_loses_nothing_of_any_shape(server: ReplayServer, name: str) -> None:
    """Promise 1.  Hazard: pieces of two calls, or of text and reasoning, are joined."""
    answer = answer_of(name)
    model = client_of(name, server.scenario(answer, answer))
    expected = own_of(server, name)
    options: dict[str, Any] = {"run_in": "thread", "maxsize": 1, "overflow": "merge"}
    with stream(model, "?", select="message", **options) as messages:
        total = in_one(list(messages))
    assert plain(total) == plain(in_one(expected.messages))
    with stream(model, "?", select="event", **options) as tokens:
        events = list(tokens)
        assert _calls_in(events) == _calls(tokens.result)
    for kind in ("reasoning", "text"):
        assert "".join(event.text for event in events if event.kind == kind) == "".join(
            text for each, text in expected.events if each == kind
        )
    assert _usage_in(events) == expected.usage


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_an_answer_that_comes_at_once_is_told_once(
    server: ReplayServer, name: str, run_in: RunIn, consumer: Consumer
) -> None:
    """Promise 1.  Hazard: a whole message lacks its calls, its usage or its end, or comes twice."""
    answer = answer_of(name)
    model = client_of(name, server.scenario(*[answer] * 4), disable_streaming=True)
    expected = model.invoke("?")
    reasoning = [("reasoning", "hm ")] * (name != "chat whole")
    calls = [("tool_call", '{"x": 1}'), ("tool_call", "{}")]

    async def consume() -> None:
        selected = stream(model, "?", run_in=run_in, select="event")
        async with consumer.entered(selected) as tokens:
            events: list[TokenEvent] = await consumer.collect(tokens)
            found = [(event.kind, event.text) for event in events]
            assert found == [*reasoning, ("text", "a b"), *calls, ("usage", "")]
            assert not any(event.streamed for event in events)
            names = [
                (piece["id"], piece["name"])
                for event in events
                if event.kind == "tool_call" and event.chunk is not None
                for piece in event.chunk.tool_call_chunks
            ]
            assert names == [(call["id"], call["name"]) for call in expected.tool_calls]
            assert (tokens.text, tokens.usage) == ("a b", expected.usage_metadata)
        async with consumer.entered(
            stream(model, "?", run_in=run_in, select="message")
        ) as selected_messages:
            (message,) = await consumer.collect(selected_messages)
            assert message.content == expected.content
            assert message.tool_calls == expected.tool_calls
            assert message.usage_metadata == expected.usage_metadata
            assert message.chunk_position == "last"
        async with consumer.entered(stream(model, "?", run_in=run_in)) as texts:
            assert await consumer.collect(texts) == ["a b"]

    consumer.run(consume)


@pytest.mark.parametrize(
    "name", ["chat reasoning", *(name for name in recordings() if name.startswith("deepseek"))]
)
@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_reasoning_beside_the_content_is_told(
    server: ReplayServer, name: str, run_in: RunIn, consumer: Consumer
) -> None:
    """Promise 1.  Hazard: reasoning is looked for in the content only, or taken for text."""
    answer = answer_of(name)
    deltas = [
        choice["delta"]
        for event in answer.events[:-1]
        for choice in json.loads(event.removeprefix(b"data: "))["choices"]
    ]
    model = client_of(f"{name}+beside", server.scenario(answer))

    async def consume() -> None:
        selected = stream(model, "?", run_in=run_in, select="event")
        async with consumer.entered(selected) as tokens:
            events = await consumer.collect(tokens)
            for kind, key in (("reasoning", "reasoning_content"), ("text", "content")):
                expected = [delta[key] for delta in deltas if delta.get(key)]
                assert [event.text for event in events if event.kind == kind] == expected
            assert tokens.text == "".join(delta.get("content") or "" for delta in deltas)
            assert "reasoning" in {event.kind for event in events}

    consumer.run(consume)


@pytest.mark.parametrize(
    "options, is_asked_for", [({}, False), ({"stream_usage": True}, True)], ids=["", "asked"]
)
def test_usage_is_asked_for_by_the_client_alone(
    server: ReplayServer, options: dict[str, Any], is_asked_for: bool
) -> None:
    """Hazard: the docs say wrongly when OpenAI's client reports usage at another address."""
    scenario = server.scenario(recorded("openai-text") if recordings() else answer_of("chat text"))
    with stream(openai_client(scenario, **options), "?", run_in="thread") as tokens:
        assert list(tokens)
    asked = scenario.exchanges[0].request.get("stream_options")
    assert asked == ({"include_usage": True} if is_asked_for else None)
