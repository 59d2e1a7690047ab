"""`select`: what is iterated, and that nothing is lost where a model does not stream (issue 3)."""

from __future__ import annotations

import dataclasses
from datetime import date
from typing import TYPE_CHECKING, Any, cast, get_args

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel, BaseLLM, FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import (
    ChatGeneration,
    ChatResult,
    Generation,
    GenerationChunk,
    LLMResult,
)
from langchain_core.runnables import RunnableConfig, RunnableLambda
from pydantic import BaseModel

from queuestream import TokenEvent, TokenStream, events, stream
from queuestream._messages import Kind
from tests.support.consumers import pairings
from tests.support.models import ScriptedChatModel, ScriptedLLM, WholeAnswerChatModel, tokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from uuid import UUID

    from langchain_core.runnables import Runnable

    from tests.support.consumers import Consumer, RunIn

PAIRINGS = pairings("for", "asyncio")
USAGE: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
CALL = tool_call_chunk(name="look", args='{"at": 1}', id="c1", index=0)
CALL_AND_USAGE = AIMessageChunk(content="", tool_call_chunks=[CALL], usage_metadata=USAGE)


class Witness(BaseCallbackHandler):
    """Sees what LangChain hands to callbacks, before ours does."""

    run_inline = True

    def __init__(self) -> None:
        self.messages: list[Any] = []
        """The messages, the very objects."""
        self.copies: list[Any] = []
        """The same as they were then."""
        self.runs: list[tuple[UUID, UUID | None]] = []
        """The id of each model run, and its parent's."""

    def _start(self, *_: Any, run_id: UUID, parent_run_id: UUID | None = None, **__: Any) -> None:
        self.runs.append((run_id, parent_run_id))

    on_chat_model_start = on_llm_start = _start

    def on_llm_new_token(self, *_: Any, chunk: Any = None, **__: Any) -> None:
        """Keep a chunk."""
        message = getattr(chunk, "message", None)
        self.messages.append(message)
        self.copies.append(message.model_copy(deep=True) if message is not None else None)


def consume(
    run_in: RunIn,
    consumer: Consumer,
    target: Runnable[Any, Any],
    config: Any = None,
    **options: Any,
) -> tuple[list[Any], TokenStream[Any]]:
    """Iterate a stream to its end; return the items, and the stream."""

    async def scenario() -> tuple[list[Any], TokenStream[Any]]:
        async with consumer.entered(stream(target, "?", config, run_in=run_in, **options)) as made:
            return await consumer.collect(made), made

    return consumer.run(scenario)


def told(items: list[TokenEvent]) -> list[tuple[str, str]]:
    """Return the kind and the text of each event."""
    return [(event.kind, event.text) for event in items]


def total(messages: list[AIMessageChunk]) -> AIMessageChunk:
    """Add messages up."""
    first, *more = messages
    return first + more if more else first


# -- messages --------------------------------------------------------------------------------------

MESSAGES: dict[str, list[str | AIMessageChunk]] = {
    "text": ["", "a ", "", "b "],
    "text, tool call, usage": ["a ", CALL_AND_USAGE],
    "list content": [
        AIMessageChunk(content=[{"type": "thinking", "thinking": "hm", "index": 0}]),
        AIMessageChunk(content=[{"type": "text", "text": "a", "index": 1}]),
        AIMessageChunk(content=[]),
    ],
}


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_each_message_is_the_providers_own(run_in: RunIn, consumer: Consumer, name: str) -> None:
    """Promise 1.  Hazard: a message is copied, altered, or passed over since it has no text."""
    model = ScriptedChatModel(tokens=MESSAGES[name])
    witness = Witness()
    received, made = consume(
        run_in, consumer, model, {"callbacks": [witness]}, select="message", maxsize=1
    )
    assert all(one is own for one, own in zip(received, witness.messages, strict=True))
    assert received == witness.copies
    assert len(received) == len(model.tokens) + 1  # the last one, fact 6
    assert [one.chunk_position for one in received] == [None] * len(model.tokens) + ["last"]
    whole = total(received)
    assert whole.content == made.result.content
    assert whole.tool_calls == made.result.tool_calls
    assert whole.usage_metadata == made.result.usage_metadata == made.usage
    assert whole.id == made.result.id
    assert made.text == whole.text
    assert made.statistics.tokens == len(received)


class StreamingLLM(ScriptedLLM):
    """An old-style model that streams where it is asked to."""

    def _stream(
        self, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[GenerationChunk]:
        for token in self.tokens:
            chunk = GenerationChunk(text=token)
            if run_manager is not None:
                run_manager.on_llm_new_token(token, chunk=chunk)
            yield chunk

    async def _astream(
        self, prompt: str, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[GenerationChunk]:
        for token in self.tokens:
            chunk = GenerationChunk(text=token)
            if run_manager is not None:
                await run_manager.on_llm_new_token(token, chunk=chunk)
            yield chunk


def streaming_llm() -> Runnable[Any, Any]:
    """Return what streams an old-style model: its ``invoke`` never does."""
    llm = StreamingLLM(tokens=["a ", "", "b "])

    def plain(data: str, config: RunnableConfig) -> str:
        return "".join(llm.stream(data, config))

    async def in_task(data: str, config: RunnableConfig) -> str:
        return "".join([token async for token in llm.astream(data, config)])

    return RunnableLambda(plain, in_task)


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_an_old_style_model_that_streams(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: its chunks hold no message."""
    target = streaming_llm()
    assert consume(run_in, consumer, target)[0] == ["a ", "b "]
    messages, made = consume(run_in, consumer, target, select="message")
    assert [type(message) for message in messages] == [AIMessageChunk] * len(messages)
    assert [one.content for one in messages if one.content] == ["a ", "b "]
    assert made.text == made.result == total(messages).content == "a b "
    received, _ = consume(run_in, consumer, target, select="event")
    assert told(received) == [("text", "a "), ("text", "b ")]
    assert [event.chunk.content for event in received] == ["a ", "b "]
    assert all(event.streamed for event in received)


# -- events ----------------------------------------------------------------------------------------


def test_what_an_event_is() -> None:
    """Hazard: a field is renamed, or moves where it is matched by position."""
    names = "kind text chunk run_id parent_run_id name node tags attempt streamed"
    assert [field.name for field in dataclasses.fields(TokenEvent)] == names.split()
    assert set(get_args(Kind)) == {"text", "reasoning", "tool_call", "usage", "restart"}
    [event] = stream(ScriptedChatModel(tokens=["a"]), "?", select="event")
    assert not hasattr(event, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.text = "b"  # type: ignore[misc]
    assert dataclasses.replace(event, text="b").run_id == event.run_id


def in_pieces(*pieces: tuple[str | None, str | None, int | None]) -> AIMessageChunk:
    """Return a chunk with a piece of a tool call for each id, arguments, index."""
    chunks = [tool_call_chunk(name=name, args=args, id=name, index=at) for name, args, at in pieces]
    return AIMessageChunk(content="", tool_call_chunks=chunks)


SHAPES: dict[str, tuple[AIMessageChunk, list[tuple[str, str]]]] = {
    "text": (AIMessageChunk(content="a"), [("text", "a")]),
    "nothing": (AIMessageChunk(content=""), []),
    "empty list": (AIMessageChunk(content=[]), []),
    "texts": (AIMessageChunk(content=["a", "b"]), [("text", "ab")]),
    "text block": (AIMessageChunk(content=[{"type": "text", "text": "a"}]), [("text", "a")]),
    "text blocks": (
        AIMessageChunk(content=[{"type": "text", "text": "a"}, "b", {"type": "text", "text": ""}]),
        [("text", "ab")],
    ),
    "block without text": (AIMessageChunk(content=[{"type": "text"}]), []),
    "unknown block": (AIMessageChunk(content=[{"type": "image", "text": "no"}]), []),
    "thinking": (
        AIMessageChunk(content=[{"type": "thinking", "thinking": "hm", "index": 0}]),
        [("reasoning", "hm")],
    ),
    "signature": (AIMessageChunk(content=[{"type": "thinking", "signature": "x"}]), []),
    "summary": (
        AIMessageChunk(
            content=[{"type": "reasoning", "summary": [{"text": "h"}, {"text": "m"}], "id": "r"}]
        ),
        [("reasoning", "hm")],
    ),
    "empty summary": (AIMessageChunk(content=[{"type": "reasoning", "summary": []}]), []),
    "standard reasoning": (
        AIMessageChunk(content=[{"type": "reasoning", "reasoning": "hm"}]),
        [("reasoning", "hm")],
    ),
    "reasoning beside": (
        AIMessageChunk(content="", additional_kwargs={"reasoning_content": "hm"}),
        [("reasoning", "hm")],
    ),
    "reasoning beside is None": (
        AIMessageChunk(content="a", additional_kwargs={"reasoning_content": None}),
        [("text", "a")],
    ),
    "thinking and text": (
        AIMessageChunk(
            content=[{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "hm"}]
        ),
        [("reasoning", "hm"), ("text", "a")],
    ),
    "piece of a tool call": (in_pieces((None, '{"a', 0)), [("tool_call", '{"a')]),
    "tool call without arguments": (in_pieces(("f", None, 0)), [("tool_call", "")]),
    "tool calls": (
        in_pieces(("f", "{1}", 0), ("g", "{2}", 1)),
        [("tool_call", "{1}"), ("tool_call", "{2}")],
    ),
    "tool calls without index": (
        in_pieces(("f", "{1}", None), ("f", "{2}", None)),
        [("tool_call", "{1}"), ("tool_call", "{2}")],
    ),
    "usage": (AIMessageChunk(content="", usage_metadata=USAGE), [("usage", "")]),
    "text and usage": (
        AIMessageChunk(content="a", usage_metadata=USAGE),
        [("text", "a"), ("usage", "")],
    ),
    "all": (
        AIMessageChunk(
            content=[{"type": "text", "text": "a"}],
            additional_kwargs={"reasoning_content": "hm"},
            tool_call_chunks=[CALL],
            usage_metadata=USAGE,
        ),
        [("reasoning", "hm"), ("text", "a"), ("tool_call", '{"at": 1}'), ("usage", "")],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_events_of_a_chunk(shape: str) -> None:
    """Hazard: a shape that some provider sends makes no event, two, or one of another kind."""
    chunk, expected = SHAPES[shape]
    made = stream(ScriptedChatModel(tokens=[chunk]), "?", select="event")
    received = list(made)
    assert told(received) == expected
    assert made.text == "".join(text for kind, text in expected if kind == "text")
    assert made.statistics.tokens == len(expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_text_of_a_chunk_is_that_of_its_events(shape: str) -> None:
    """Hazard: the short way of a text (no event) finds another text than the long one."""
    chunk, expected = SHAPES[shape]
    received = list(stream(ScriptedChatModel(tokens=[chunk]), "?"))
    assert received == [text for kind, text in expected if kind == "text"]
    messages = stream(ScriptedChatModel(tokens=[chunk]), "?", select="message")
    assert len(list(messages)) == 2
    assert messages.text == "".join(received)


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_every_kind_of_event(run_in: RunIn, consumer: Consumer) -> None:
    model = ScriptedChatModel(tokens=[chunk for chunk, _ in SHAPES.values()])
    received, made = consume(run_in, consumer, model, select="event", maxsize=1)
    assert told(received) == [part for _, expected in SHAPES.values() for part in expected]
    assert {event.run_id for event in received} == {received[0].run_id}
    assert made.text == made.result.text


def test_the_events_of_a_chunk_share_it() -> None:
    """Hazard: the index, id and name of a call, or the usage, are not to be had."""
    witness = Witness()
    text_and_usage = AIMessageChunk(content="a", usage_metadata=USAGE)
    model = ScriptedChatModel(
        tokens=[
            text_and_usage,
            in_pieces(("f", "{1}", 0), ("g", "{2}", 1)),
            in_pieces((None, "3", 1)),
        ]
    )
    received: list[Any] = list(stream(model, "?", {"callbacks": [witness]}, select="event"))
    text, usage, *calls = received
    assert text.chunk is usage.chunk is witness.messages[0]
    assert usage.chunk.usage_metadata == USAGE
    assert [event.chunk.tool_call_chunks for event in calls] == [
        [tool_call_chunk(name="f", args="{1}", id="f", index=0)],
        [tool_call_chunk(name="g", args="{2}", id="g", index=1)],
        [tool_call_chunk(name=None, args="3", id=None, index=1)],
    ]
    assert calls[-1].chunk is witness.messages[2]
    assert {event.chunk.id for event in received} == {witness.messages[0].id}


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_whose_an_event_is(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: it has the ids, name or tags of another run: its parent's, the one before it."""
    witness = Witness()
    first = ScriptedChatModel(tokens=tokens(2))
    second = ScriptedLLM(tokens=tokens(1)).with_config(run_name="the second", tags=["mine"])
    chain = first | RunnableLambda(str) | second
    received, _ = consume(
        run_in, consumer, chain, {"callbacks": [witness], "tags": ["all"]}, select="event"
    )
    of_first, of_second = received[0], received[2]
    assert received[1] == dataclasses.replace(of_first, text="t1 ", chunk=received[1].chunk)
    assert [(event.run_id, event.parent_run_id) for event in (of_first, of_second)] == witness.runs
    assert of_first.parent_run_id == of_second.parent_run_id is not None
    assert (of_first.name, of_first.tags) == ("ScriptedChatModel", ("seq:step:1", "all"))
    assert of_second.name == "the second"
    assert set(of_second.tags) == {"seq:step:3", "all", "mine"}
    assert [(event.node, event.attempt, event.streamed) for event in received] == [
        (None, 1, True),
        (None, 1, True),
        (None, 1, False),
    ]


def test_a_text_run_builds_no_event_and_copies_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hazard: whoever wants texts pays for events."""

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError

    for name in ("TokenEvent", "AIMessageChunk", "parts_of", "_event", "message_of"):
        monkeypatch.setattr(events, name, never)
    failing = ScriptedChatModel(tokens=tokens(3), failure=ValueError("no"), fail_at=2)
    block = AIMessageChunk(content=[{"type": "text", "text": "b"}])
    spare = ScriptedChatModel(tokens=["a", block, CALL_AND_USAGE])
    target = failing.with_fallbacks([spare]) | RunnableLambda(str) | WholeMessageModel()
    made = stream(target, "?")
    assert list(made) == [*tokens(2), "a", "b", "a b "]
    assert made.statistics.attempts == 2
    for select in ("message", "event"):  # or the above would prove nothing
        with pytest.raises(AssertionError):
            list(cast("Any", stream)(target, "?", select=select))


# -- whole answers ---------------------------------------------------------------------------------

WHOLE = AIMessage(
    content="a b ",
    tool_calls=[{"name": "look", "args": {"at": 1}, "id": "c1", "type": "tool_call"}],
    usage_metadata=USAGE,
    response_metadata={"model_name": "m"},
)


class WholeMessageModel(BaseChatModel):
    """A model without `_stream`; it answers with messages, as clients do, not with chunks."""

    answers: list[AIMessage] = [WHOLE]  # noqa: RUF012 - pydantic copies it

    @property
    def _llm_type(self) -> str:
        return "whole"

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        copies = [answer.model_copy(deep=True) for answer in self.answers]
        return ChatResult(generations=[ChatGeneration(message=copy) for copy in copies])


class Client(WholeMessageModel):
    """A model that streams, but for those who ask it not to."""

    streaming: bool = True

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[Any]:
        return ScriptedChatModel(tokens=["it ", "streams "])._stream([])

    def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        return ScriptedChatModel(tokens=["it ", "streams "])._astream([])


def cached() -> Runnable[Any, Any]:
    """Return a model whose answer is in its cache already."""
    model = Client(cache=InMemoryCache())
    assert model.invoke("?").content == "a b "
    return model


WHOLE_ANSWERS: dict[str, Callable[[], Runnable[Any, Any]]] = {
    "cache hit": cached,
    "disable_streaming": lambda: Client(disable_streaming=True),
    "disable_streaming for tools": lambda: Client(disable_streaming="tool_calling").bind(
        tools=[{}]
    ),
    "streaming=False": lambda: Client(streaming=False),
    "stream=False": lambda: Client().bind(stream=False),
    "no _stream": WholeMessageModel,
}


@pytest.mark.parametrize("name", WHOLE_ANSWERS)
@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_a_whole_answer(run_in: RunIn, consumer: Consumer, name: str) -> None:
    """Fact 7.  Hazard: the answer is lost where no token tells it, or comes twice."""
    target = WHOLE_ANSWERS[name]()
    texts, made = consume(run_in, consumer, target)
    assert texts == ["a b "]
    assert made.usage == USAGE
    [message], made = consume(run_in, consumer, target, select="message")
    assert type(message) is AIMessageChunk
    assert message.chunk_position == "last"
    assert message.content == made.result.content == "a b "
    assert message.tool_calls == made.result.tool_calls == WHOLE.tool_calls
    assert message.usage_metadata == made.result.usage_metadata
    assert made.usage == USAGE
    assert message.response_metadata == made.result.response_metadata
    assert message.id == made.result.id is not None
    received, made = consume(run_in, consumer, target, select="event")
    assert told(received) == [("text", "a b "), ("tool_call", '{"at": 1}'), ("usage", "")]
    assert [event.streamed for event in received] == [False] * 3
    assert received[1].chunk.tool_calls == WHOLE.tool_calls
    assert made.usage == USAGE
    assert made.text == "a b "


def test_the_same_clients_stream_where_nobody_asks_them_not_to() -> None:
    """Hazard: the test above proves nothing."""
    for client in (Client(), Client(disable_streaming="tool_calling"), Client(streaming=True)):
        assert list(stream(client, "?")) == ["it ", "streams "]
        assert all(event.streamed for event in stream(client, "?", select="event"))


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_an_old_style_model(run_in: RunIn, consumer: Consumer) -> None:
    """Fact 7.  Hazard: it has no message to select, and no token to hear."""
    llm = ScriptedLLM(tokens=tokens(2))
    assert consume(run_in, consumer, llm)[0] == ["t0 t1 "]
    [message], made = consume(run_in, consumer, llm, select="message")
    assert (type(message), message.content) == (AIMessageChunk, "t0 t1 ")
    assert made.result == made.text == "t0 t1 "
    [event], _ = consume(run_in, consumer, llm, select="event")
    assert (event.kind, event.text, event.streamed) == ("text", "t0 t1 ", False)
    assert event.chunk.content == "t0 t1 "


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_a_whole_chunk_is_the_models_own(run_in: RunIn, consumer: Consumer) -> None:
    """A model without `_stream` that answers with a chunk: it is a chunk already."""
    model = WholeAnswerChatModel(tokens=["a ", CALL_AND_USAGE])
    [message], made = consume(run_in, consumer, model, select="message")
    assert message is made.result


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_an_answer_of_tool_calls_alone(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: an empty text is delivered, or the calls go with it."""
    calls: Any = [{"name": name, "args": {}, "id": name, "type": "tool_call"} for name in "fg"]
    model = WholeMessageModel(answers=[AIMessage(content="", tool_calls=calls)])
    texts, made = consume(run_in, consumer, model)
    assert (texts, made.result.tool_calls) == ([], calls)
    [message], _ = consume(run_in, consumer, model, select="message")
    assert (message.content, message.tool_calls) == ("", calls)
    received, _ = consume(run_in, consumer, model, select="event")
    assert told(received) == [("tool_call", "{}"), ("tool_call", "{}")]
    assert [event.chunk.tool_calls for event in received] == [calls[:1], calls[1:]]


class TwoAnswersLLM(BaseLLM):
    """An old-style model that makes two generations."""

    @property
    def _llm_type(self) -> str:
        return "two"

    def _generate(
        self, prompts: list[str], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> LLMResult:
        return LLMResult(generations=[[Generation(text="first "), Generation(text="second ")]])


@pytest.mark.parametrize("select", ["text", "message", "event"])
@pytest.mark.parametrize(
    "model",
    [
        WholeMessageModel(answers=[AIMessage("first "), AIMessage("second ")]),
        TwoAnswersLLM(),
    ],
    ids=["chat", "old-style"],
)
@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_only_the_first_generation(
    run_in: RunIn, consumer: Consumer, model: Any, select: str
) -> None:
    """Hazard: a model that makes several is heard as one long answer."""
    received, made = consume(run_in, consumer, model, select=select)
    assert len(received) == 1
    assert made.text == "first "


@pytest.mark.parametrize("is_old_style", [False, True])
def test_nothing_comes_of_an_empty_whole_answer(is_old_style: bool) -> None:
    """Hazard: an empty text is delivered."""
    model: Any = ScriptedLLM() if is_old_style else WholeMessageModel(answers=[AIMessage("")])
    assert list(stream(model, "?")) == []
    assert list(stream(model, "?", select="event")) == []
    assert [message.content for message in stream(model, "?", select="message")] == [""]


@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_a_cache_hit_of_an_answer_without_usage(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: LangChain adds a cost of 0, which alone is no usage: the message is refused."""
    models = [
        WholeAnswerChatModel(tokens=["ab"], cache=InMemoryCache()),
        FakeListChatModel(responses=["ab"], cache=InMemoryCache()),
    ]
    for model in models:
        model.invoke("?")
        assert consume(run_in, consumer, model)[0] == ["ab"]
        [message], _ = consume(run_in, consumer, model, select="message")
        assert message.content == "ab"
        received, made = consume(run_in, consumer, model, select="event")
        assert told(received) == [("text", "ab")]
        assert made.usage is None


class Parsed(BaseModel):
    """What a client may put beside an answer."""

    number: int = 1


def test_an_object_in_a_whole_answer_stays_itself() -> None:
    """Hazard: a dump of the message makes a dict of it."""
    parsed = Parsed()
    model = WholeMessageModel(answers=[AIMessage("a", additional_kwargs={"parsed": parsed})])
    [message] = stream(model, "?", select="message")
    assert message.additional_kwargs["parsed"] == parsed


ODD_ANSWERS = [
    AIMessage("a", tool_calls=[{"name": "f", "args": {"when": date(2020, 1, 1)}, "id": "1"}]),
    AIMessage("a", tool_calls=[{"name": "f", "args": {"all": {1, 2}}, "id": None}]),
]


@pytest.mark.parametrize("answer", ODD_ANSWERS)
@pytest.mark.parametrize("run_in, consumer", PAIRINGS)
def test_an_answer_that_is_no_json_is_delivered(
    run_in: RunIn, consumer: Consumer, answer: AIMessage
) -> None:
    """Hazard: our callback serializes it, fails, and ends a run that goes well without us."""
    model = WholeMessageModel(answers=[answer])
    [message], made = consume(run_in, consumer, model, select="message")
    assert message.tool_call_chunks[0]["name"] == "f"
    assert made.result.tool_calls == answer.tool_calls
    received, _ = consume(run_in, consumer, model, select="event")
    assert [event.kind for event in received] == ["text", "tool_call"]
    assert consume(run_in, consumer, model, overflow="merge")[0] == ["a"]


def test_usage_that_is_set_by_hand_is_delivered() -> None:
    """Hazard: we validate a message that LangChain took as it is."""
    answer = AIMessage("a")
    answer.usage_metadata = cast("Any", {"total_tokens": 5})
    [message] = stream(WholeMessageModel(answers=[answer]), "?", select="message")
    assert message.usage_metadata == {"total_tokens": 5}
