"""`assert_type`: the items of streams and handlers, by `select`.

Each ``type: ignore`` here asserts an error: mypy (``warn_unused_ignores``) and pyright (the
line below) complain where there is none any more.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from typing_extensions import assert_type

from queuestream import QueueStreamHandler, StreamStatistics, TokenEvent, TokenStream, stream
from queuestream._messages import Kind
from queuestream.token_stream import Pieces

if TYPE_CHECKING:
    from queuestream.events import Overflow, Select
    from queuestream.token_stream import RunIn

MODEL = FakeListChatModel(responses=["ab"])


def hear(handler: QueueStreamHandler[Any]) -> None:
    """Let a handler hear a run, from its start to its end."""
    MODEL.invoke("?", {"callbacks": [handler]})


# -- stream() --------------------------------------------------------------------------------------


def test_a_stream_of_texts() -> None:
    assert_type(stream(MODEL, "?"), TokenStream[str])
    assert_type(stream(MODEL, "?", {"tags": ["mine"]}, select="text", stop=["x"]), TokenStream[str])
    assert_type(stream(lambda data, callbacks: data, "?", maxsize=1), TokenStream[str])
    with stream(MODEL, "?") as tokens:
        assert_type(tokens, TokenStream[str])
        for token in tokens:
            assert_type(token, str)
            assert type(token) is str
    assert [token.upper() for token in stream(MODEL, "?")] == ["A", "B"]


def test_a_stream_of_messages() -> None:
    with stream(MODEL, "?", select="message") as messages:
        assert_type(messages, TokenStream[AIMessageChunk])
        for message in messages:
            assert_type(message, AIMessageChunk)
            assert type(message) is AIMessageChunk


def test_a_stream_of_events() -> None:
    with stream(MODEL, "?", select="event", overflow="merge", include_names=None) as events:
        assert_type(events, TokenStream[TokenEvent])
        for event in events:
            assert_type(event, TokenEvent)
            assert type(event) is TokenEvent


def test_the_fields_of_an_event() -> None:
    event = next(stream(MODEL, "?", select="event"))
    assert_type(event.kind, Kind)
    assert_type(event.text, str)
    assert_type(event.chunk, AIMessageChunk | None)
    assert_type(event.run_id, UUID | None)
    assert_type(event.parent_run_id, UUID | None)
    assert_type(event.name, str)
    assert_type(event.node, str | None)
    assert_type(event.tags, tuple[str, ...])
    assert_type(event.attempt, int)
    assert_type(event.streamed, bool)


def test_async_iteration() -> None:
    async def scenario() -> int:
        items = 0
        async with stream(MODEL, "?") as tokens:
            assert_type(tokens, TokenStream[str])
            async for token in tokens:
                assert_type(token, str)
                items += 1
        async for message in stream(MODEL, "?", select="message"):
            assert_type(message, AIMessageChunk)
            items += 1
        async for event in stream(MODEL, "?", select="event"):
            assert_type(event, TokenEvent)
            items += 1
        return items

    assert asyncio.run(scenario()) == 2 + 2 + 2


def test_an_option_in_a_variable() -> None:
    """Hazard: code that passes `select` on cannot be typed."""

    def text_of(select: Select, overflow: Overflow, run_in: RunIn) -> str:
        one = stream(MODEL, "?", select=select, overflow=overflow, run_in=run_in)
        assert_type(one, TokenStream[str] | TokenStream[AIMessageChunk] | TokenStream[TokenEvent])
        for item in one:
            assert_type(item, str | AIMessageChunk | TokenEvent)
        handler = QueueStreamHandler(select=select)
        assert_type(
            handler,
            QueueStreamHandler[str]
            | QueueStreamHandler[AIMessageChunk]
            | QueueStreamHandler[TokenEvent],
        )
        return one.text

    def passed_on(select: Select) -> TokenStream[Any]:
        return stream(MODEL, "?", select=select)

    assert text_of("event", "merge", "thread") == "ab"
    assert [item.text for item in passed_on("event")] == ["a", "b"]


def test_bare_annotations_are_of_texts() -> None:
    def read(tokens: TokenStream, handler: QueueStreamHandler) -> None:
        assert_type(tokens, TokenStream[str])
        assert_type(handler, QueueStreamHandler[str])
        for token in tokens:
            assert_type(token, str)
        hear(handler)
        for token in handler:
            assert_type(token, str)
        assert_type(tokens.pieces(), Pieces)

    read(stream(MODEL, "?"), QueueStreamHandler())


def test_options_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="select must be"):
        stream(MODEL, "?", select="texts")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="overflow must be"):
        stream(MODEL, "?", overflow="drop")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="select must be"):
        QueueStreamHandler(select="texts")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="maxsise"):
        QueueStreamHandler(maxsise=1)  # type: ignore[call-overload]


# -- what a stream knows ---------------------------------------------------------------------------


def test_what_a_stream_knows() -> None:
    with stream(MODEL, "?", select="event") as events:
        assert_type(events.text, str)
        assert_type(events.usage, UsageMetadata | None)
        assert_type(events.statistics, StreamStatistics)
        list(events)
        assert_type(events.result, Any)
        assert events.result.content == events.text
    assert_type(events.statistics.tokens, int)
    assert_type(events.statistics.time_to_first_token, float | None)


def test_pieces_are_texts() -> None:
    for piece in stream(MODEL, "?").pieces(max_tokens=2, max_delay=1):
        assert_type(piece, str)
        assert type(piece) is str

    async def scenario() -> None:
        async for piece in stream(MODEL, "?").pieces():
            assert_type(piece, str)

    asyncio.run(scenario())


def test_pieces_of_anything_else() -> None:
    with pytest.raises(ValueError, match="pieces"):
        stream(MODEL, "?", select="message").pieces()  # type: ignore[misc]
    with pytest.raises(ValueError, match="pieces"):
        stream(MODEL, "?", select="event").pieces()  # type: ignore[misc]


# -- QueueStreamHandler ----------------------------------------------------------------------------


def test_a_handler_of_texts() -> None:
    handler = QueueStreamHandler()
    assert_type(handler, QueueStreamHandler[str])
    assert_type(QueueStreamHandler(4, select="text"), QueueStreamHandler[str])
    hear(handler)
    for token in handler:
        assert_type(token, str)
        assert type(token) is str
    hear(handler)
    with handler as entered:
        assert_type(entered, QueueStreamHandler[str])
        tokens = entered.get_stream()
        assert_type(tokens, Generator[str, None, None])
        assert [token.upper() for token in tokens] == ["A", "B"]


def test_a_handler_of_messages() -> None:
    handler = QueueStreamHandler(select="message")
    assert_type(handler, QueueStreamHandler[AIMessageChunk])
    hear(handler)
    for message in handler:
        assert_type(message, AIMessageChunk)
        assert type(message) is AIMessageChunk


def test_a_handler_of_events() -> None:
    handler = QueueStreamHandler(8, select="event", exclude_tags=["x"])
    assert_type(handler, QueueStreamHandler[TokenEvent])

    async def scenario() -> None:
        async for event in handler:
            assert_type(event, TokenEvent)
            assert type(event) is TokenEvent

    hear(handler)
    asyncio.run(scenario())
