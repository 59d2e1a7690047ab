"""What real providers have sent, through the real clients: the same text, the same errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from queuestream import stream
from tests.support.clients import anthropic_client, openai_client
from tests.support.consumers import pairings
from tests.support.server import (
    ABSENT,
    anthropic_message,
    chat_completion,
    recorded,
    recordings,
    responses,
)

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from tests.support.consumers import Consumer, RunIn
    from tests.support.server import ReplayServer, Scenario

# Anthropic's client warns when the provider calls a tool that the request did not offer.
pytestmark = pytest.mark.filterwarnings("ignore:Received unexpected tool content block")

SELF_MADE = {
    "self-made chat": chat_completion(["a ", "b ", "c"]),
    "self-made responses": responses(["a ", "b ", "c"]),
    "self-made anthropic": anthropic_message(["a ", "b ", "c"]),
    "self-made tool call": chat_completion(["a "], tool_call=("look", "{}")),
}
BREAKING = {
    "self-made error": chat_completion(["a ", "b "], error="out of luck"),
    "self-made cut": chat_completion(["a ", "b ", "c"]).cut(3),
}
PAIRINGS = pairings("for", "asyncio")
"""Each kind of run, and each kind of consumer; the text is the same on every loop."""
RAISES = ["anthropic-clear-thinking", "openai-error", "openai-reasoning-encrypted-content"]
"""The recorded streams at which today's clients raise."""


def client(name: str, scenario: Scenario) -> BaseChatModel:
    """Return the client for what is recorded under a name."""
    if "anthropic" in name:
        return anthropic_client(scenario, streaming=True)
    in_new_format = (name.startswith("openai-") and name != "openai-text") or "responses" in name
    return openai_client(scenario, streaming=True, use_responses_api=in_new_format)


@pytest.fixture(params=[*SELF_MADE, *(name for name in recordings() if name not in RAISES)])
def whole(request: pytest.FixtureRequest, server: ReplayServer) -> tuple[Scenario, BaseChatModel]:
    """Return an answer that today's clients read to its end, twice."""
    name: str = request.param
    answer = SELF_MADE[name] if name in SELF_MADE else recorded(name)
    scenario = server.scenario(answer, answer)
    return scenario, client(name, scenario)


@pytest.fixture(params=[*BREAKING, *RAISES])
def breaking(request: pytest.FixtureRequest, server: ReplayServer) -> BaseChatModel:
    """Return the client of an answer at which it raises, twice."""
    name: str = request.param
    answer = BREAKING[name] if name in BREAKING else recorded(name)
    return client(name, server.scenario(answer, answer))


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_the_text_is_the_clients_own(
    whole: tuple[Scenario, BaseChatModel], run_in: RunIn, consumer: Consumer
) -> None:
    """Promise 1.  Hazard: list content, reasoning, tool calls or an empty first chunk upset us."""
    scenario, model = whole
    expected = model.invoke("?")

    async def consume() -> tuple[list[str], Any]:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as tokens:
            return await consumer.collect(tokens), tokens.result

    received, result = consumer.run(consume)
    assert "".join(received) == expected.text
    assert "" not in received
    assert result.content == expected.content
    assert result.tool_calls == expected.tool_calls
    assert [exchange.disconnected.is_set() for exchange in scenario.exchanges] == [False, False]


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_the_clients_own_exception_comes_after_the_tokens_before_it(
    breaking: BaseChatModel, run_in: RunIn, consumer: Consumer
) -> None:
    """Promise 3.  Hazard: tokens are lost with the error, or the error is another one."""
    own: list[str] = []
    with pytest.raises(Exception) as expected:
        own.extend(str(chunk.text) for chunk in breaking.stream("?"))

    async def consume() -> list[str]:
        received = []
        async with consumer.entered(stream(breaking, "?", run_in=run_in)) as tokens:
            with pytest.raises(expected.type) as raised:
                while True:
                    received.append(await consumer.next(tokens))
        assert str(raised.value) == str(expected.value)
        assert raised.value.__traceback__ is not None
        return received

    assert "".join(consumer.run(consume)) == "".join(own)


def test_the_recordings_are_known_here() -> None:
    """Hazard: a recording is renamed or added, and no test reads it any more."""
    if not recordings():
        pytest.skip(ABSENT)
    assert len(recordings()) >= 15
    assert set(RAISES) <= set(recordings())
