"""``usage`` and ``text``: what a run has cost and given so far, however it ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.messages import AIMessageChunk
from langchain_core.messages.ai import add_usage
from langchain_core.runnables import RunnableLambda, RunnableParallel

from queuestream import stream
from queuestream.errors import StreamClosedError, StreamTimeoutError
from tests.support.clients import anthropic_client, openai_client
from tests.support.consumers import pairings
from tests.support.gates import Gate
from tests.support.models import (
    ScriptedChatModel,
    ScriptedLLM,
    WholeAnswerChatModel,
    tokens,
    usage,
)
from tests.support.server import Answer, anthropic_message, chat_completion, recorded

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages.ai import UsageMetadata

    from tests.support.consumers import Consumer, RunIn
    from tests.support.server import ReplayServer

a_few_pairings = pytest.mark.parametrize("run_in, consumer", pairings("for", "asyncio", "trio"))

ONE = usage(5, 2, input_token_details={"cache_read": 3})
OTHER = usage(1, 4, output_token_details={"reasoning": 3})


def costing(usage: UsageMetadata, content: str = "") -> AIMessageChunk:
    """Return a chunk that reports usage."""
    return AIMessageChunk(content=content, usage_metadata=usage)


def total(*usages: UsageMetadata) -> UsageMetadata:
    """Return the sum, as LangChain makes it."""
    together: UsageMetadata | None = None
    for one in usages:
        together = add_usage(together, one)
    assert together is not None
    return together


async def usage_of(target: Any, run_in: RunIn, consumer: Consumer, **options: Any) -> Any:
    """Run a target to its end; what it has cost."""
    answer = stream(target, "?", run_in=run_in, **options)
    await consumer.collect(answer)
    return answer.usage


# -- usage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["text", "message", "event"])
@a_few_pairings
def test_it_is_the_sum_of_all_chunks_of_all_runs(
    run_in: RunIn, consumer: Consumer, select: Any
) -> None:
    """Details included.  Hazard: the end of a run, which has the sum, counts once more."""
    first = ScriptedChatModel(tokens=["a", costing(ONE), costing(OTHER, "b")])
    second = ScriptedChatModel(tokens=["c", costing(ONE)])
    target = RunnableParallel(first=first, second=second)

    async def scenario() -> None:
        assert await usage_of(target, run_in, consumer, select=select) == {
            "input_tokens": 11,
            "output_tokens": 8,
            "total_tokens": 19,
            "input_token_details": {"cache_read": 6},
            "output_token_details": {"reasoning": 3},
        }

    consumer.run(scenario)


@a_few_pairings
def test_it_is_live(run_in: RunIn, consumer: Consumer) -> None:
    gate = Gate()
    model = ScriptedChatModel(tokens=[costing(ONE, "a"), "b", costing(OTHER, "c"), "d"], gate=gate)

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in)) as answer:
            assert answer.usage is None
            for expected in (ONE, ONE, total(ONE, OTHER)):
                gate.release()
                await consumer.next(answer)
                assert answer.usage == expected

    consumer.run(scenario)
    gate.open()


@a_few_pairings
def test_what_is_not_heard_costs_as_well(run_in: RunIn, consumer: Consumer) -> None:
    """Excluded runs and ``nostream`` count.  Hazard: the bill is larger than what was told."""
    silent = ScriptedChatModel(tokens=["a", costing(ONE)]).with_config(tags=["nostream"])
    whole = WholeAnswerChatModel(tokens=["b", costing(OTHER)]).with_config(run_name="secret")
    heard = ScriptedChatModel(tokens=["c", costing(ONE)])
    target = RunnableParallel(silent=silent, whole=whole, heard=heard)

    async def scenario() -> None:
        answer = stream(target, "?", run_in=run_in, exclude_names=["secret"])
        assert await consumer.collect(answer) == ["c"]
        assert answer.statistics.tokens == 1
        assert answer.usage == total(ONE, OTHER, ONE)

    consumer.run(scenario)


@a_few_pairings
def test_failed_attempts_cost_as_well(run_in: RunIn, consumer: Consumer) -> None:
    model = ScriptedChatModel(
        tokens=["a", costing(ONE), "b"], failure=ValueError("again"), fail_at=2, fail_calls=1
    )

    async def scenario() -> None:
        target = model.with_retry(wait_exponential_jitter=False)
        answer = stream(target, "?", run_in=run_in)
        assert await consumer.collect(answer) == ["a", "a", "b"]
        assert (answer.text, answer.usage) == ("ab", total(ONE, ONE))

    consumer.run(scenario)


@a_few_pairings
def test_whole_answers_and_cache_hits(run_in: RunIn, consumer: Consumer) -> None:
    """Usage that comes with the end alone.  A hit reports what is in the cache, as ever."""
    model = WholeAnswerChatModel(tokens=["a", costing(ONE)], cache=InMemoryCache())
    streams = ScriptedChatModel(tokens=["a", costing(ONE)], cache=InMemoryCache())

    async def scenario() -> None:
        for each in (model, streams):
            assert await usage_of(each, run_in, consumer) == ONE
            assert await usage_of(each, run_in, consumer) == ONE
            assert each.record.calls == 1

    consumer.run(scenario)


@a_few_pairings
def test_a_cost_is_no_usage(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: a cache hit, to which the core adds ``total_cost: 0``, makes a usage of nothing."""
    model = ScriptedChatModel(tokens=["a"], cache=InMemoryCache())
    nothing = ScriptedLLM(tokens=["a"])

    async def scenario() -> None:
        for _ in range(2):
            assert await usage_of(model, run_in, consumer) is None
            assert await usage_of(nothing, run_in, consumer) is None
        assert model.record.calls == 1

    consumer.run(scenario)


def test_what_is_changed_by_the_user_is_the_users() -> None:
    """Hazard: the sum, or a message, changes with what was handed out."""
    model = ScriptedChatModel(tokens=[costing(ONE, "a")])
    answer = stream(model, "?", select="message")
    message = next(answer)
    usage = cast("dict[str, Any]", answer.usage)
    usage["input_tokens"] = 0
    usage["input_token_details"]["cache_read"] = 0
    assert answer.usage == message.usage_metadata == ONE


# -- as LangChain's own handler has it ----------------------------------------------------------

_COUNTS = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 6, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def _chat_completion_with_usage() -> Answer:
    """As of OpenAI with ``stream_options={"include_usage": True}``: an event without choices."""
    answer = chat_completion(tokens(3))
    about = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    last = {**about, "choices": [], "usage": _COUNTS}
    *events, done = answer.events
    return Answer([*events, f"data: {json.dumps(last)}\n\n".encode(), done])


PROVIDERS: dict[str, Answer | None] = {
    "self-made chat": _chat_completion_with_usage(),
    "self-made anthropic": anthropic_message(tokens(3)),
    "anthropic-text": None,
    "anthropic-json-tool": None,
    "anthropic-tool-no-args": None,
    "anthropic-refusal": None,
    "azure-model-router": None,
    "deepseek-reasoning": None,
    "groq-tool-call": None,
    "openai-text": None,
    "openai-web-search-tool": None,
    "xai-tool-call": None,
}
"""Self-made answers, and the names of recorded ones."""


@pytest.mark.filterwarnings("ignore:Received unexpected tool content block")
@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    "run_in, consumer",
    [param for param in pairings("for", "asyncio") if param.id in ("thread-for", "task-asyncio")],
)
def test_it_is_what_the_own_handler_says(
    server: ReplayServer, run_in: RunIn, consumer: Consumer, name: str
) -> None:
    """Two runs, through the real clients.  Hazard: what their chunks tell adds up otherwise."""
    answer = PROVIDERS[name] or recorded(name)
    scenario_of_server = server.scenario(answer, answer)
    model: BaseChatModel
    if "anthropic" in name:
        model = anthropic_client(scenario_of_server, streaming=True)
    else:
        in_new_format = name == "openai-web-search-tool"
        model = openai_client(
            scenario_of_server, stream_usage=True, use_responses_api=in_new_format
        )

    def twice(query: str, config: Any) -> str:
        return "".join(model.invoke(query, config).text for _ in range(2))

    async def atwice(query: str, config: Any) -> str:
        return "".join([(await model.ainvoke(query, config)).text for _ in range(2)])

    own = UsageMetadataCallbackHandler()

    async def scenario() -> None:
        target = RunnableLambda(twice, atwice)
        tokens = stream(target, "?", {"callbacks": [own]}, run_in=run_in)
        await consumer.collect(tokens)
        assert tokens.usage == (total(*own.usage_metadata.values()) if own.usage_metadata else None)
        if PROVIDERS[name] is not None:
            assert tokens.usage is not None

    consumer.run(scenario)


# -- after an early end ------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["text", "message", "event"])
@pytest.mark.parametrize("ending", ["close", "timeout", "error", "end"])
@pytest.mark.parametrize("run_in, consumer", pairings("for", "asyncio"))
def test_what_was_given_and_what_it_cost(
    run_in: RunIn, consumer: Consumer, ending: str, select: Any
) -> None:
    """A stop gives the partial answer and its price.  Hazard: both go with the run."""
    gate = Gate(4)
    failure = ValueError("the model's own")
    model = ScriptedChatModel(
        tokens=[
            AIMessageChunk(content=[{"type": "thinking", "thinking": "hm", "index": 0}]),
            "a ",
            AIMessageChunk(content=[{"type": "text", "text": "b ", "index": 1}]),
            costing(ONE, "c "),
            costing(OTHER, "d"),
        ],
        gate=gate,
        failure=failure if ending == "error" else None,
        fail_at=4,
    )

    async def scenario() -> None:
        limit = 0.05 if ending == "timeout" else None
        answer = stream(model, "?", run_in=run_in, select=select, token_timeout=limit)
        async with consumer.entered(answer):
            while answer.text != "a b c ":
                assert "a b c ".startswith(answer.text)
                await consumer.next(answer)
            if ending == "timeout":
                with pytest.raises(StreamTimeoutError):
                    while True:  # what is left of the chunk, then nothing
                        await consumer.next(answer)
            elif ending != "close":
                gate.open()
            if ending == "error":
                with pytest.raises(ValueError, match="the model's own"):
                    await consumer.collect(answer)
            elif ending == "end":
                await consumer.collect(answer)
        if ending == "end":
            assert (answer.text, answer.usage) == ("a b c d", total(ONE, OTHER))
            return
        for _ in range(2):
            assert (answer.text, answer.usage) == ("a b c ", ONE)
            with pytest.raises((StreamClosedError, StreamTimeoutError, ValueError)):
                _ = answer.result

    consumer.run(scenario)
    gate.open()


@a_few_pairings
def test_the_text_is_what_was_delivered(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: what waits in the buffer, or was dropped with it, is taken for delivered."""
    model = ScriptedChatModel(tokens=tokens(9))

    async def scenario() -> None:
        async with consumer.entered(stream(model, "?", run_in=run_in, maxsize=4)) as answer:
            await consumer.wait(lambda: model.record.wait_until_produced(5))
            assert answer.text == ""
            assert await consumer.take(answer, 2) == tokens(2)
            assert answer.text == "".join(tokens(2))
        assert answer.text == "".join(tokens(2))

    consumer.run(scenario)
