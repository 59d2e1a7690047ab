"""Events as JSON: nothing is lost on the way, nothing unknown breaks it."""

from __future__ import annotations

import json
from copy import copy
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.messages import AIMessageChunk

from queuestream import TokenEvent, stream
from queuestream._failures import retry_after, status_of
from queuestream.errors import EntryTooLargeError, RelayError
from queuestream.events import events_of
from queuestream.relay import RelayEvent
from queuestream.relay._entries import (
    LAST,
    START,
    EntryId,
    cursor_of,
    encode,
    encode_error,
    entry_of,
    error_of,
)
from tests.support.models import ScriptedChatModel, usage

CALL: Any = {
    "index": 0,
    "id": "call_1",
    "name": "search",
    "args": '{"q": ',
    "type": "tool_call_chunk",
}
CHUNKS = [
    AIMessageChunk(content="é 😀 \n\0 \u2028"),
    AIMessageChunk(content=[{"type": "text", "text": "a", "index": 0}]),
    AIMessageChunk(content=[{"type": "thinking", "thinking": "hm", "signature": "s", "index": 1}]),
    AIMessageChunk(content="", additional_kwargs={"reasoning_content": "so"}),
    AIMessageChunk(content="", tool_call_chunks=[CALL]),
    AIMessageChunk(
        content="x",
        id="msg_1",
        usage_metadata=usage(1, 2),
        response_metadata={"finish_reason": "length"},
    ),
]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_what_is_written_is_read(chunk: AIMessageChunk) -> None:
    events = list(stream(ScriptedChatModel(tokens=[chunk]), "?", select="event"))
    assert events
    for event in events:
        read = entry_of(b"7-3", {b"d": encode(event, 0, 10_000)}).event
        assert isinstance(read, RelayEvent)
        assert read.id == "7-3"
        assert read.chunk is not event.chunk
        for name in TokenEvent.__dataclass_fields__:
            assert getattr(read, name) == getattr(event, name), name


def event(**changes: Any) -> TokenEvent:
    fields: dict[str, Any] = {
        "kind": "text",
        "text": "a",
        "chunk": AIMessageChunk(content="a"),
        "run_id": uuid4(),
        "parent_run_id": uuid4(),
        "name": "M",
        "node": "n",
        "tags": ("x", "y"),
        "attempt": 3,
        "streamed": False,
    }
    return TokenEvent(**{**fields, **changes})


def test_all_fields_are_kept() -> None:
    given = event()
    read = entry_of(b"1-1", {b"d": encode(given, 2, 10_000)}).event
    assert read is not None
    assert (read.attempt, read.node, read.tags) == (5, "n", ("x", "y"))
    assert (read.run_id, read.parent_run_id) == (given.run_id, given.parent_run_id)


def test_what_json_does_not_know_becomes_a_string() -> None:
    """Hazard: an integration's own object, or half a surrogate pair, in the middle of a run."""
    chunk = AIMessageChunk(content="\ud800", additional_kwargs={"raw": object(), "bytes": b"x"})
    read = entry_of(b"1-1", {b"d": encode(event(text="\ud800", chunk=chunk), 0, 10_000)}).event
    assert read is not None
    assert read.chunk is not None
    assert read.text == "\ud800"
    assert read.chunk.additional_kwargs["raw"].startswith("<object")


def test_usage_is_not_validated() -> None:
    chunk = AIMessageChunk(content="").model_copy(update={"usage_metadata": {"total_tokens": 1}})
    read = entry_of(b"1-1", {b"d": encode(event(kind="usage", text="", chunk=chunk), 0, 999)}).event
    assert read is not None
    assert read.chunk is not None
    assert read.chunk.usage_metadata == {"total_tokens": 1}


def test_an_event_that_is_too_large() -> None:
    with pytest.raises(EntryTooLargeError, match=r"kind 'text' has 10[0-9]+ bytes .* allows 1000"):
        encode(event(text="a" * 900, chunk=None), 0, 1000)


def test_a_long_message_of_an_error_is_cut() -> None:
    assert len(encode_error(ValueError("x" * 10_000_000))) < 3_000


class RudeError(Exception):
    """Raises when it is looked at."""

    status_code = 429

    def __str__(self) -> str:
        raise ValueError("no")


class SecretiveError(Exception):
    """Raises when it is asked for a status."""

    @property
    def response(self) -> object:
        raise ValueError("no")


def test_how_a_run_failed_is_written_and_read() -> None:
    """What it does when it is looked at keeps nobody from its end."""
    read = error_of(json.loads(encode_error(TimeoutError("late"))))
    assert (str(read), read.status, read.retry_after) == ("TimeoutError: late", 504, None)
    read = error_of(json.loads(encode_error(RudeError())))
    assert (str(read), read.status, read.retry_after) == ("RudeError", 429, None)
    read = error_of(json.loads(encode_error(SecretiveError("late"))))
    assert (str(read), read.status, read.retry_after) == ("SecretiveError: late", None, None)


@pytest.mark.parametrize("more", [{}, {"status": "429", "retry_after": "7"}, {"status": 418}])
def test_an_error_that_another_version_has_written(more: dict[str, Any]) -> None:
    """Older ones have told no status; newer ones may know others."""
    read = error_of({"k": "error", "type": "RateLimitError", "message": "no", **more})
    assert str(read) == "RateLimitError: no"
    assert (status_of(read), retry_after(read)) == (500, None)
    assert str(copy(read)) == str(read)


@pytest.mark.parametrize(
    "raw_id, fields",
    [
        (b"1-1", {}),
        (b"1-1", {b"d": b"no json"}),
        (b"1-1", {b"d": b"[]"}),
        (b"1-1", {b"d": b"{}"}),
        (b"1-0", {b"d": b"{}"}),
        (b"1-0", {b"d": b"{}", b"previous": b"x"}),
        (b"%d-%d" % (1, LAST), {b"d": b"{}"}),
        (b"1-1", {b"d": b'{"k": "text", "r": "no uuid"}'}),
    ],
)
def test_what_somebody_else_has_written(raw_id: bytes, fields: dict[bytes, bytes]) -> None:
    with pytest.raises(RelayError, match="was not written by a relay"):
        entry_of(raw_id, fields)


@pytest.mark.parametrize("given", [None, "", "0", "0-0", "1", "17"])
def test_a_reader_without_an_event_begins_at_the_start(given: str | None) -> None:
    """The last two are what server-sent events number before the first event."""
    assert cursor_of(given) == START


def test_ids_are_ordered_as_numbers() -> None:
    assert cursor_of("9-10") > cursor_of("9-9") > cursor_of("1-99")
    assert str(EntryId.parse(b"12-3")) == "12-3"


TOO_LARGE = ["1-18446744073709551616", "99999999999999999999-1"]  # Redis has no such numbers


@pytest.mark.parametrize(
    "given",
    ["$", "x", "1-x", "1-", "-1", "1-2-3", " 1-2", "1-2\n", "\u0661-\u0662", *TOO_LARGE],
)
def test_an_id_that_is_none(given: str) -> None:
    with pytest.raises(ValueError, match="after must be the id of an event"):
        cursor_of(given)


@pytest.mark.parametrize("given", [1, 1.5, b"1-2"])
def test_an_id_of_another_type(given: Any) -> None:
    with pytest.raises(TypeError, match="after must be the id of an event"):
        cursor_of(given)


def test_texts_become_events() -> None:
    run: Any = type("Run", (), {"about": None, "attempt": 1, "streamed": True})()
    given = event()
    assert events_of(run, given) == [given]
