"""The wire formats, event by event.  They need no extra, and run everywhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from langchain_core.messages import AIMessageChunk

from queuestream import stream
from queuestream.events import TokenEvent
from queuestream.web.formats import FORMATS, Answer, OpenAIFormat, make_format
from tests.support.models import ScriptedChatModel, usage

if TYPE_CHECKING:
    from collections.abc import Iterable

A, B = UUID(int=1), UUID(int=2)


def event(kind: Any, text: str = "", run: UUID = A, attempt: int = 1, **said: Any) -> TokenEvent:
    return TokenEvent(
        kind=kind,
        text=text,
        chunk=AIMessageChunk(content="", **said),
        run_id=run,
        parent_run_id=None,
        name="model",
        node=None,
        tags=(),
        attempt=attempt,
        streamed=True,
    )


def call(text: str, run: UUID = A, call_id: str | None = None, name: str | None = None) -> Any:
    piece = {"name": name, "args": text, "id": call_id, "index": 0, "type": "tool_call_chunk"}
    return event("tool_call", text, run, tool_call_chunks=[piece])


def said_by(name: str, items: Iterable[object], *end: Any) -> list[Any]:
    """What a format makes of items, as objects; the last of them is the end."""
    wire = make_format(name)
    frames = wire.start()
    for item in items:
        frames += wire.item(item)
    frames += wire.end(*end)
    assert all("\n" not in frame.data for frame in frames)
    return [json.loads(frame.data) for frame in frames if frame.data != "[DONE]"]


# -- why the model stopped -------------------------------------------------------------------

REASONS = [
    ({"finish_reason": "stop"}, "stop"),
    ({"finish_reason": "length"}, "length"),  # OpenAI, and those that speak as it does
    ({"stop_reason": "max_tokens"}, "length"),  # Anthropic
    ({"finish_reason": "MAX_TOKENS"}, "length"),  # Google
    ({"done_reason": "length"}, "length"),  # Ollama
    ({"stopReason": "max_tokens"}, "length"),  # Bedrock
    ({"incomplete_details": {"reason": "max_output_tokens"}}, "length"),  # OpenAI's responses
    ({"finish_reason": "content_filter"}, "content_filter"),
    ({"stop_reason": "refusal"}, "content_filter"),
    ({"finish_reason": "SAFETY"}, "content_filter"),
    ({"stop_reason": "end_turn"}, "stop"),
    ({"finish_reason": "something new"}, "stop"),
    ({"finish_reason": None, "incomplete_details": None}, "stop"),
]


def reason_in(name: str, told: list[Any]) -> Any:
    if name == "openai":
        return next(c["choices"][0]["finish_reason"] for c in reversed(told) if c.get("choices"))
    if name == "vercel":
        return told[-1]["finishReason"].replace("-", "_")
    if name == "agui":
        return next(e["value"] for e in told if e.get("name") == "finish_reason")
    return told[-1]["finish_reason"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("said, reason", REASONS)
@pytest.mark.parametrize("select", ["text", "message", "event"])
def test_reason_for_the_end_is_not_lost(name: str, said: Any, reason: str, select: Any) -> None:
    """Hazard: it comes with a last chunk that has no text, of which no event is made."""
    last = AIMessageChunk(content="", response_metadata=said)
    with stream(ScriptedChatModel(tokens=["a", last]), "?", select=select) as tokens:
        items = list(tokens)
        told = said_by(name, items, tokens.usage, tokens.finish_reason)
    assert reason_in(name, told) == reason
    if select == "message":  # of any iterator of messages
        assert reason_in(name, said_by(name, items)) == reason


@pytest.mark.parametrize("name", FORMATS)
def test_calls_are_a_reason_unless_the_answer_goes_on(name: str) -> None:
    """Hazard: a client waits to run the tools that an agent has run already."""
    asked = [call("{}", A, "c1", "look")]
    assert reason_in(name, said_by(name, asked, None, "tool_use")) == "tool_calls"
    assert reason_in(name, said_by(name, asked, None, "STOP")) == "tool_calls"
    answered = [*asked, event("text", "a", B)]
    assert reason_in(name, said_by(name, answered, None, "stop")) == "stop"
    assert reason_in(name, said_by(name, asked, None, "length")) == "length"
    again = [*asked, event("restart", run=B, attempt=2), event("text", "a", B)]
    assert reason_in(name, said_by(name, again)) == "stop"


def test_stream_tells_the_reason_of_the_last_run_that_is_heard() -> None:
    def model(name: str, reason: str) -> Any:
        last = AIMessageChunk(content="", response_metadata={"finish_reason": reason})
        return ScriptedChatModel(tokens=[name, last], name=name)

    chain = model("first", "length") | (lambda said: said.content) | model("second", "stop")
    tokens = stream(chain, "?")
    reasons = [tokens.finish_reason]
    assert list(tokens) == ["first", "second"]
    reasons.append(tokens.finish_reason)
    assert reasons == [None, "stop"]
    with stream(chain, "?", include_names=["first"]) as tokens:
        list(tokens)
        assert tokens.finish_reason == "length"
    with stream(ScriptedChatModel(tokens=["a"]), "?") as tokens:
        list(tokens)
        assert tokens.finish_reason is None


def test_whole_answer() -> None:
    answer = Answer()
    for item in [
        event("text", "void"),
        event("restart", run=B, attempt=2),
        event("reasoning", "hm", B),
        event("text", "a", B),
        call('{"x"', B, "c1", "look"),
        call(": 1}", B),
        event("usage", run=B, usage_metadata=usage(3, 4)),
    ]:
        answer.add(item)
    made = answer.completion("m", finish_reason="tool_calls")
    assert made["choices"][0]["finish_reason"] == "tool_calls"
    message = made["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("a", "hm")
    assert message["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"x": 1}'}
    assert made["usage"]["total_tokens"] == 7
    assert answer.completion(finish_reason="max_tokens")["choices"][0]["finish_reason"] == "length"


# -- several runs ----------------------------------------------------------------------------


def shapes(told: list[Any]) -> list[str]:
    return [e["type"] for e in told]


def test_runs_in_turn_have_a_block_each_and_one_is_open_at_a_time() -> None:
    """Hazard: a client is told that the first is still being written."""
    told = said_by("agui", [event("text", "a"), event("text", "b", B)])
    assert shapes(told)[1:-2] == [
        *("TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END"),
        *("TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END"),
    ]
    assert told[1]["messageId"] != told[4]["messageId"]


def test_parallel_runs_keep_their_blocks() -> None:
    """Hazard: each token of two models that take turns begins a block of its own."""
    items = [event("text", str(n), run) for n in range(10) for run in (A, B)]
    told = said_by("vercel", items)
    assert shapes(told).count("text-start") == shapes(told).count("text-end") == 3
    texts: dict[str, str] = {}
    open_now: set[str] = set()
    for part in told:
        if part["type"] == "text-start":
            open_now.add(part["id"])
        elif part["type"] == "text-delta":
            assert part["id"] in open_now
            texts[part["id"]] = texts.get(part["id"], "") + part["delta"]
        elif part["type"] == "text-end":
            open_now.remove(part["id"])
    assert sorted(texts.values()) == ["0", "0123456789", "123456789"]


def test_call_that_another_run_interrupts_is_whole() -> None:
    """Hazard: half the arguments are handed over as all of them."""
    items = [
        call('{"x"', A, "c1", "look"),
        event("text", "b", B),
        call(": 1}", A),
        event("text", "b", B),
    ]
    told = said_by("vercel", items)
    assert [p["input"] for p in told if p["type"] == "tool-input-available"] == [{"x": 1}]
    assert shapes(told).count("tool-input-start") == 1
    assert "tool-input-error" not in shapes(told)
    told = said_by("agui", items)
    assert shapes(told).count("TOOL_CALL_START") == shapes(told).count("TOOL_CALL_END") == 1


@pytest.mark.parametrize("name", FORMATS)
def test_end_follows_an_error(name: str) -> None:
    wire = make_format(name)
    frames = [*wire.start(), *wire.item(call('{"x"', A, "c1", "look"))]
    frames += [*wire.error("The run failed."), *wire.end()]
    assert "The run failed." in "".join(frame.data for frame in frames[-3:])


@pytest.mark.parametrize("name", FORMATS)
def test_kinds_of_the_future_are_passed_over(name: str) -> None:
    wire = make_format(name)
    assert wire.item(event("image")) == []


def test_format_that_is_given_is_used() -> None:
    wire = OpenAIFormat("m", id="x")
    assert make_format(wire) is wire
    with pytest.raises(ValueError, match="got 'x'"):
        make_format("x")
