"""Why the model stopped, as real clients read it from what real providers send."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from queuestream import stream
from queuestream.web.formats import OpenAIFormat
from tests.http.test_recordings import client
from tests.support.server import anthropic_message, chat_completion, recorded

if TYPE_CHECKING:
    from tests.support.server import Answer, ReplayServer

pytestmark = pytest.mark.filterwarnings("ignore:Received unexpected tool content block")

TOLD = {
    "anthropic-refusal": "content_filter",
    "anthropic-text": "stop",
    "anthropic-json-tool": "tool_calls",
    "azure-model-router": "stop",
    "deepseek-reasoning": "stop",
    "deepseek-tool-call": "tool_calls",
    "groq-tool-call": "tool_calls",
    "openai-text": "stop",
    "openai-web-search-tool": "stop",
    "xai-tool-call": "tool_calls",
}


def cut_off(answer: Answer, was: bytes, becomes: bytes) -> Answer:
    """The same, but that the provider says that it met the limit of tokens."""
    events = [event.replace(was, becomes) for event in answer.events]
    assert events != list(answer.events)
    return dataclasses.replace(answer, events=events)


LENGTHS = {
    "self-made chat": cut_off(chat_completion(["a "]), b'"stop"', b'"length"'),
    "self-made anthropic": cut_off(anthropic_message(["a "]), b"end_turn", b"max_tokens"),
}


@pytest.mark.parametrize("select", ["text", "event"])
@pytest.mark.parametrize("name", [*LENGTHS, *TOLD])
def test_reason_for_the_end_reaches_the_client(
    server: ReplayServer, name: str, select: Any
) -> None:
    """Hazard: it comes in a chunk without text, and is gone before a format sees it."""
    answer = LENGTHS[name] if name in LENGTHS else recorded(name)
    wire = OpenAIFormat()
    with stream(client(name, server.scenario(answer)), "?", select=select) as tokens:
        for item in tokens:
            wire.item(item)
        frames = wire.end(tokens.usage, tokens.finish_reason)
    reason = json.loads(frames[0].data)["choices"][0]["finish_reason"]
    expected = TOLD.get(name, "length")
    if select == "text" and expected == "tool_calls":
        expected = "stop"  # of calls nothing was sent, and nothing is to be waited for
    assert reason == expected
