"""The tables of ``docs/providers.md``, row by row, against what the real clients give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_openai import ChatOpenAI

from queuestream import stream
from tests.http.shapes import answer_of, client_of
from tests.support.clients import openai_client
from tests.support.models import ScriptedLLM
from tests.support.server import recordings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from langchain_core.messages import AIMessageChunk

    from queuestream import TokenEvent
    from tests.support.server import ReplayServer

# Anthropic's client warns when the provider calls a tool that the request did not offer.
pytestmark = pytest.mark.filterwarnings("ignore:Received unexpected tool content block")

PAGE = Path(__file__).parents[2] / "docs" / "providers.md"
STREAMED = {
    "OpenAI Chat Completions: text": ["chat text", "openai-text"],
    "OpenAI Chat Completions: tool calls": ["chat tool calls", "groq-tool-call"],
    "OpenAI Chat Completions: refusal": ["chat refusal"],
    "`reasoning_content`, by `ChatOpenAI`": ["chat reasoning", "deepseek-reasoning"],
    "`reasoning_content`, by a client that keeps it": [
        "chat reasoning+beside",
        "deepseek-reasoning+beside",
    ],
    "Azure model router: empty first chunk": ["chat empty first", "azure-model-router"],
    "OpenAI Responses: text": ["responses text"],
    "OpenAI Responses: reasoning summary": ["responses reasoning"],
    "OpenAI Responses: tool calls": ["responses tool call"],
    "OpenAI Responses: server tools": ["responses server tool", "openai-web-search-tool"],
    "OpenAI Responses: refusal": ["responses refusal"],
    "Anthropic: text": ["anthropic text", "anthropic-text"],
    "Anthropic: text, tools bound": ["anthropic text+tools", "anthropic-text+tools"],
    "Anthropic: thinking": ["anthropic thinking+thinking"],
    "Anthropic: tool calls, tools bound": [
        "anthropic tool calls+tools",
        "anthropic-tool-no-args+tools",
        "anthropic-json-tool+tools",
    ],
    "Anthropic: server tools with citations, tools bound": [
        "anthropic citations+tools",
        "anthropic-web-search-tool+tools",
    ],
    "Anthropic: refusal": ["anthropic refusal", "anthropic-refusal"],
}
"""The rows of the first table, and the answers that show what each says: the first shows all."""
AT_ONCE = {
    "Chat Completions, not streamed": "chat whole",
    "Responses, not streamed": "responses whole",
    "Anthropic, not streamed": "anthropic whole",
}
"""Rows of the second table."""


def table(number: int) -> dict[str, list[str]]:
    """The rows of a table of the page, by their first cell."""
    text = PAGE.read_text(encoding="utf-8")
    tables = re.findall(r"^\| -.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in tables[number].splitlines()
    ]
    return {first: rest for first, *rest in rows}


def named(cell: str) -> list[str]:
    """The names in a cell, in their order; one that names nothing says so in words."""
    return re.findall(r"`(\w+)`", cell)


def once_each(names: Iterable[str]) -> list[str]:
    """Names in the order in which they first come."""
    return list(dict.fromkeys(names))


def kinds_of(events: Sequence[TokenEvent]) -> list[str]:
    """The kinds of events."""
    return once_each(event.kind for event in events)


def contents_of(messages: Sequence[AIMessageChunk]) -> list[str]:
    """What messages have as content: types of blocks, or words for the rest."""
    found: list[str] = []
    for message in messages:
        content: Any = message.content
        if content:
            found += ["a text"] if isinstance(content, str) else [b["type"] for b in content]
    return once_each(found)


def claimed_contents(cell: str) -> list[str]:
    """What a cell says of the contents."""
    return {"text": ["a text"], "empty": []}.get(cell) or named(cell)


def test_every_row_is_measured() -> None:
    """Hazard: a row is added or renamed, and nothing holds it any more."""
    assert list(table(0)) == list(STREAMED)
    assert list(table(1)) == [*AT_ONCE, "from a cache", "old-style `LLM`"]


@pytest.mark.parametrize(
    "row, name, shows_all",
    [
        pytest.param(row, name, name == names[0], id=name)
        for row, names in STREAMED.items()
        for name in names
        if name == names[0] or recordings()
    ],
)
def test_a_streamed_answer_becomes_what_its_row_says(
    server: ReplayServer, row: str, name: str, shows_all: bool
) -> None:
    content, kinds = table(0)[row]
    answer = answer_of(name)
    model = client_of(name, server.scenario(answer, answer, answer))
    with stream(model, "?", run_in="thread", select="event") as events:
        told = list(events)
    with stream(model, "?", run_in="thread", select="message") as messages:
        contents = contents_of(list(messages))
    with stream(model, "?", run_in="thread") as texts:
        assert list(texts) == [event.text for event in told if event.kind == "text"]
    if shows_all:
        assert kinds_of(told) == named(kinds)
        assert contents == claimed_contents(content)
    else:
        assert [kind for kind in named(kinds) if kind in kinds_of(told)] == kinds_of(told)
        assert set(contents) <= set(claimed_contents(content))


@pytest.mark.parametrize("option", [{"disable_streaming": True}, {"streaming": False}], ids=str)
@pytest.mark.parametrize("row", AT_ONCE)
def test_an_answer_that_comes_at_once_becomes_what_its_row_says(
    server: ReplayServer, row: str, option: dict[str, Any]
) -> None:
    said, kinds = table(1)[row]
    answer = answer_of(AT_ONCE[row])
    model = client_of(AT_ONCE[row], server.scenario(answer, answer), **option)
    with stream(model, "?", run_in="thread", select="event") as events:
        told = list(events)
    assert kinds_of(told) == named(kinds)
    assert not any(event.streamed for event in told)
    with stream(model, "?", run_in="thread", select="message") as messages:
        (message,) = messages
    assert said == "one, with its tool calls and usage"
    assert message.tool_calls
    assert message.usage_metadata


def test_a_cache_and_an_old_style_model_give_what_their_rows_say(server: ReplayServer) -> None:
    caching = openai_client(server.scenario(answer_of("chat text")), cache=InMemoryCache())
    with stream(caching, "?", run_in="thread") as streamed:
        assert list(streamed) == ["a ", "b ", "c"]
    for model, row, text in (
        (caching, "from a cache", "a b c"),
        (ScriptedLLM(tokens=["a ", "b"]), "old-style `LLM`", "a b"),
    ):
        with stream(model, "?", run_in="thread", select="event") as events:
            told = list(events)
        assert kinds_of(told) == named(table(1)[row][1])
        assert not any(event.streamed for event in told)
        with stream(model, "?", run_in="thread", select="message") as messages:
            assert [message.content for message in messages] == [text]
    with stream(caching, "?", run_in="thread", select="event") as again:
        last = list(again)[-1]
        assert last.chunk is not None
        usage: Any = last.chunk.usage_metadata
        assert usage["total_cost"] == 0
        assert again.usage == streamed.usage


def test_what_the_page_says_of_refusals(server: ReplayServer) -> None:
    """The client drops one; one is a block; one is a reason to stop."""
    found: dict[str, AIMessageChunk] = {}
    for name in ("chat refusal", "responses refusal", "anthropic refusal"):
        model = client_of(name, server.scenario(answer_of(name)))
        with stream(model, "?", run_in="thread", select="message") as messages:
            first, *rest = messages
        total: Any = first + rest
        found[name] = total
    assert "cannot" not in repr(found["chat refusal"])
    blocks: Any = found["responses refusal"].content
    (block,) = blocks
    assert (block["type"], block["refusal"]) == ("refusal", "I cannot.")
    assert found["anthropic refusal"].response_metadata["stop_reason"] == "refusal"


def test_what_the_page_says_of_asking_for_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ChatOpenAI` asks OpenAI itself; tests/http looks at the requests to other addresses."""
    for variable in ("OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.delenv(variable, raising=False)
    options: dict[str, Any] = {"model": "m", "api_key": "none"}
    assert ChatOpenAI(**options).stream_usage
    assert not ChatOpenAI(**options, base_url="http://localhost/").stream_usage
