"""`QueueStreamHandler` with `select` and filters, and shared by runs that overlap (issue 3)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk, GenerationChunk
from langchain_core.runnables import RunnableConfig, RunnableLambda

from queuestream import QueueStreamHandler, TokenEvent
from queuestream.errors import StreamClosedError
from tests.support.consumers import in_another_thread
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.models import ScriptedChatModel, ScriptedLLM, tokens
from tests.support.streams import DEFAULT_CASES, HandlerRun

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from uuid import UUID

    from langchain_core.runnables import Runnable

    from queuestream.events import Select
    from tests.support.streams import Case

CASES = [
    case
    for case in DEFAULT_CASES
    if not case.values[0].is_stream and case.values[0].consumer.name in ("for", "asyncio")
]
SELECTS: list[Select] = ["text", "message", "event"]
USAGE: Any = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
CALL = tool_call_chunk(name="look", args="{}", id="c1", index=0)
CALL_AND_USAGE = AIMessageChunk(content="", tool_call_chunks=[CALL], usage_metadata=USAGE)


class Chunks(BaseCallbackHandler):
    """Keeps the messages that LangChain hands to callbacks."""

    run_inline = True

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def on_llm_new_token(self, *_: Any, chunk: Any = None, **__: Any) -> None:
        """Keep a message."""
        self.messages.append(chunk.message)


@asynccontextmanager
async def listening(
    case: Case, target: Runnable[Any, Any], *others: BaseCallbackHandler, **options: Any
) -> AsyncIterator[Any]:
    """Run a target with a handler of such options; the handler's iteration is yielded."""
    handler: QueueStreamHandler[Any] = QueueStreamHandler(**options)
    run = HandlerRun(case.producer, target, "?", [*others, handler])
    try:
        yield iter(handler)
    finally:
        handler.close()
        await run.wait(case.consumer)


def consume(
    case: Case, target: Runnable[Any, Any], *others: BaseCallbackHandler, **options: Any
) -> list[Any]:
    """Iterate a handler to the end of a run."""

    async def scenario() -> list[Any]:
        async with listening(case, target, *others, **options) as iteration:
            return await case.consumer.collect(iteration)

    return case.consumer.run(scenario)


# -- select ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_each_message_is_the_providers_own(case: Case) -> None:
    """Promise 1.  Hazard: a message is copied, or passed over since it has no text."""
    model = ScriptedChatModel(tokens=["", "a ", CALL_AND_USAGE])
    seen = Chunks()
    received = consume(case, model, seen, select="message", maxsize=1)
    assert all(one is own for one, own in zip(received, seen.messages, strict=True))
    assert [message.content for message in received] == ["", "a ", "", ""]
    assert received[2].tool_call_chunks == [CALL]
    assert received[-1].chunk_position == "last"


@pytest.mark.parametrize("case", CASES)
def test_events(case: Case) -> None:
    model = ScriptedChatModel(tokens=["a ", CALL_AND_USAGE])
    target = model | RunnableLambda(str) | ScriptedLLM(tokens=tokens(2))
    received = consume(case, target, select="event", maxsize=1)
    assert [(event.kind, event.text, event.streamed) for event in received] == [
        ("text", "a ", True),
        ("tool_call", "{}", True),
        ("usage", "", True),
        ("text", "t0 t1 ", False),
    ]
    assert [event.name for event in received] == ["ScriptedChatModel"] * 3 + ["ScriptedLLM"]


@pytest.mark.parametrize("case", CASES)
def test_a_restart_is_an_event(case: Case) -> None:
    """Hazard: models in a fallback report its parent as theirs, none here, and seem outermost."""
    failing = ScriptedChatModel(tokens=tokens(3), failure=ValueError("no"), fail_at=1)
    target = failing.with_fallbacks([ScriptedChatModel(tokens=["b "])])
    received = consume(case, target, select="event")
    assert [(event.kind, event.text, event.attempt) for event in received] == [
        ("text", "t0 ", 1),
        ("restart", "", 2),
        ("text", "b ", 2),
    ]
    assert len(consume(case, target, select="message")) == 1 + 2  # the last one, fact 6
    assert consume(case, target) == ["t0 ", "b "]


# -- filters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_filters(case: Case) -> None:
    one = ScriptedChatModel(tokens=["one "]).with_config(run_name="one", tags=["x"])
    other = ScriptedChatModel(tokens=["other "]).with_config(run_name="other", tags=["x"])
    quiet = ScriptedChatModel(tokens=["quiet "]).with_config(tags=["nostream", "x"])
    target = one | RunnableLambda(str) | other | RunnableLambda(str) | quiet
    assert consume(case, target) == ["one ", "other "]
    assert consume(case, target, include_names=["other"]) == ["other "]
    assert consume(case, target, include_tags=["x"], exclude_names=["other"]) == ["one "]
    assert consume(case, target, include_nodes=["one"]) == []


@pytest.mark.parametrize("case", CASES)
def test_filters_that_match_nothing(case: Case) -> None:
    """Hazard: what nobody hears waits for a slot; or the end does not come."""
    model = ScriptedChatModel(tokens=tokens(50))

    async def scenario() -> None:
        async with listening(case, model, maxsize=1, include_names=[]) as iteration:
            await case.consumer.wait(lambda: model.record.wait_until_produced(50))
            assert await case.consumer.collect(iteration) == []

    case.consumer.run(scenario)


@pytest.mark.parametrize("case", CASES)
def test_a_stop_reaches_a_run_that_is_not_heard(case: Case) -> None:
    """Promise 4.  Hazard: a run that puts nothing into the queue never asks whether to stop."""
    gate = Gate(2)
    model = ScriptedChatModel(tokens=tokens(50), gate=gate)
    spare = ScriptedChatModel(tokens=["never "])

    async def scenario() -> None:
        target = model.with_fallbacks([spare])
        async with listening(case, target, exclude_names=["ScriptedChatModel"]) as iteration:
            await case.consumer.eventually(lambda: model.record.produced == 2 and gate.waiting)
            iteration._handler.close()
            gate.open()
            with pytest.raises(StreamClosedError):
                await case.consumer.next(iteration)

    case.consumer.run(scenario)
    assert model.record.produced <= 3
    assert spare.record.calls == 0


# -- shared by runs that overlap -------------------------------------------------------------------


class Parrot(ScriptedChatModel):
    """Says which question each token answers, so that a mixed-up run shows."""

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self._stream_script(messages):
            chunk.message.content = f"{messages[0].content}:{chunk.message.content}"
            yield chunk

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk in self._astream_script(messages):
            chunk.message.content = f"{messages[0].content}:{chunk.message.content}"
            yield chunk


QUESTIONS: list[Any] = ["a", "b", "c"]


def kept_apart(received: list[TokenEvent]) -> list[str]:
    """Check that each run's events are all of one answer, and in order; return the questions."""
    runs: defaultdict[UUID | None, list[TokenEvent]] = defaultdict(list)
    for event in received:
        runs[event.run_id].append(event)
    questions = []
    for run_id, events in runs.items():
        question = events[0].text[0]
        assert run_id is not None
        assert [event.text for event in events] == [f"{question}:{token}" for token in tokens(9)]
        assert {event.attempt for event in events} == {1}
        questions.append(question)
    return sorted(questions)


def parrot(handler: QueueStreamHandler[Any], where: str, gate: Gate) -> tuple[Parrot, Any]:
    """Return a model and a config; one of them has the handler."""
    callbacks: Any = [handler]
    config: RunnableConfig = {"max_concurrency": 3}
    if where == "config":
        return Parrot(tokens=tokens(9), gate=gate), {**config, "callbacks": callbacks}
    return Parrot(tokens=tokens(9), gate=gate, callbacks=callbacks), config


@pytest.mark.parametrize("where", ["config", "constructor"])
@pytest.mark.parametrize("maxsize", [1, 256])
def test_a_batch(maxsize: int, where: str) -> None:
    """Fact 9.  Hazard: a token is told of the run that had the token before it."""
    gate = Gate()
    handler = QueueStreamHandler(maxsize, select="event")
    model, config = parrot(handler, where, gate)
    thread = in_another_thread(lambda: model.batch(QUESTIONS, config))
    eventually(lambda: gate.waiting == 3)  # all are open
    gate.open()
    assert kept_apart(list(handler)) == QUESTIONS
    thread.join()


@pytest.mark.parametrize("where", ["config", "constructor"])
@pytest.mark.parametrize("maxsize", [1, 256])
def test_an_abatch(maxsize: int, where: str) -> None:
    """Fact 9.  Hazard: a token is told of the run that had the token before it."""

    async def scenario() -> list[TokenEvent]:
        gate = Gate()
        handler = QueueStreamHandler(maxsize, select="event")
        model, config = parrot(handler, where, gate)
        task = asyncio.ensure_future(model.abatch(QUESTIONS, config))
        await eventually_async(lambda: gate.waiting == 3)  # all are open
        gate.open()
        received = [event async for event in handler]
        await task
        return received

    assert kept_apart(asyncio.run(scenario())) == QUESTIONS


@pytest.mark.parametrize("select", ["text", "message"])
def test_order_holds_within_each_run_of_a_batch(select: Any) -> None:
    """Promise 1.  Texts and messages say whose they are by what the model puts into them."""
    gate = Gate()
    handler: QueueStreamHandler[Any] = QueueStreamHandler(2, select=select)
    model, config = parrot(handler, "config", gate)
    thread = in_another_thread(lambda: model.batch(QUESTIONS, config))
    eventually(lambda: gate.waiting == 3)
    gate.open()
    received = [item if isinstance(item, str) else item.content for item in handler]
    thread.join()
    for question in QUESTIONS:
        own = [text for text in received if text.startswith(question)]
        assert own == [f"{question}:{token}" for token in tokens(9)]


def test_interleaved_token_by_token() -> None:
    """The same without chance: each run makes a token in turn, and the first two fail."""
    handler = QueueStreamHandler(select="event")
    gates = [Gate() for _ in range(3)]
    models = [
        ScriptedChatModel(
            tokens=tokens(4),
            gate=gate,
            failure=ValueError(str(number)) if number < 2 else None,
            fail_at=3,
            tags=[str(number)],
        )
        for number, gate in enumerate(gates)
    ]
    errors: list[str] = []

    def run(model: ScriptedChatModel) -> None:
        try:
            model.invoke("?", {"callbacks": [handler]})
        except ValueError as error:
            errors.append(str(error))

    threads = [in_another_thread(lambda one=model: run(one)) for model in models]  # type: ignore[misc]
    eventually(lambda: all(gate.waiting for gate in gates))
    for turn in range(3):
        for model, gate in zip(models, gates, strict=True):
            gate.release()
            eventually(lambda gate=gate: gate.waiting)  # type: ignore[misc]
            assert model.record.produced == turn + 1
    for gate, thread in zip(gates, threads, strict=True):
        gate.open()
        thread.join()
    iteration = iter(handler)
    received = [next(iteration) for _ in range(10)]
    assert [(event.tags, event.text) for event in received] == [
        *((("012"[number],), f"t{turn} ") for turn in range(3) for number in range(3)),
        (("2",), "t3 "),
    ]
    assert len({event.run_id for event in received}) == 3
    with pytest.raises(ValueError, match="0"):
        next(iteration)
    assert errors == ["0", "1"]


# -- called directly -------------------------------------------------------------------------------


def chunk_of(text: str) -> ChatGenerationChunk:
    """Return what LangChain hands over with a token."""
    return ChatGenerationChunk(message=AIMessageChunk(content=text))


def test_direct_calls_with_a_text() -> None:
    """Hazard: without a chunk there is no message."""
    for select in SELECTS:
        handler: QueueStreamHandler[Any] = QueueStreamHandler(select=select)
        for token in ("a", "", "b"):
            handler.on_llm_new_token(token)
        handler.end()
        received = list(handler)
        if select == "text":
            assert received == ["a", "b"]
        elif select == "message":
            assert received == [AIMessageChunk(content=token) for token in ("a", "", "b")]
        else:
            assert [(event.kind, event.text) for event in received] == [
                ("text", "a"),
                ("text", "b"),
            ]
            event = received[0]
            assert event.chunk == AIMessageChunk(content="a")
            assert (event.run_id, event.parent_run_id, event.node) == (None, None, None)
            assert (event.tags, event.attempt, event.streamed) == ((), 1, True)
            assert isinstance(event.name, str)


@pytest.mark.parametrize(
    "token", ["wrong", "", ["wrong"], [{"type": "text", "text": "wrong"}], None], ids=str
)
def test_the_text_is_the_chunks_not_the_tokens(token: Any) -> None:
    """Fact 6.  Hazard: the token is a list of blocks, or says something else."""
    chunk = chunk_of("right")
    for select in SELECTS:
        handler: QueueStreamHandler[Any] = QueueStreamHandler(select=select)
        handler.on_llm_new_token(token, chunk=chunk)
        handler.on_llm_new_token(token, chunk=GenerationChunk(text="too"))
        handler.on_llm_new_token(token, chunk=chunk_of(""))
        handler.end()
        first, second, *more = list(handler)
        if select == "text":
            assert [first, second, *more] == ["right", "too"]
        elif select == "message":
            assert first is chunk.message
            assert [message.content for message in (second, *more)] == ["too", ""]
        else:
            assert first.chunk is chunk.message
            assert [event.text for event in (first, second, *more)] == ["right", "too"]


def test_direct_calls_with_a_list_of_blocks() -> None:
    """Fact 6.  Hazard: without a chunk, the list itself is delivered as a text."""
    handler = QueueStreamHandler()
    handler.on_llm_new_token(["a", {"type": "text", "text": "b"}, {"type": "thinking"}])
    handler.on_llm_new_token([])
    handler.end()
    assert list(handler) == ["ab"]


@pytest.mark.parametrize("select", SELECTS)
def test_direct_calls_in_a_task(select: Any) -> None:
    async def scenario() -> list[Any]:
        handler: QueueStreamHandler[Any] = QueueStreamHandler(1, select=select)

        async def produce() -> None:
            for token in tokens(9):
                await handler.on_llm_new_token("", chunk=chunk_of(token))
            handler.end()

        producing = asyncio.ensure_future(produce())
        received = [item async for item in handler]
        await producing
        return received

    received = asyncio.run(scenario())
    texts = [item.content if select == "message" else item for item in received]
    assert [text.text if select == "event" else text for text in texts] == tokens(9)


@pytest.mark.parametrize("select", SELECTS)
def test_end(select: Any) -> None:
    """Iteration after iteration, with the error given; what comes after it is the next one's."""
    handler: QueueStreamHandler[Any] = QueueStreamHandler(1, select=select)
    failure = ValueError("mine")
    handler.on_llm_new_token("a")
    handler.end(failure)
    iteration = iter(handler)
    next(iteration)
    with pytest.raises(ValueError, match="mine") as raised:
        next(iteration)
    assert raised.value is failure
    handler.end()
    assert list(handler) == []
    handler.on_llm_new_token("b")
    handler.end()
    assert len(list(handler)) == 1


@pytest.mark.parametrize("given", ["text", "message", "event"])
def test_a_handler_as_on_token_of_another(given: Any) -> None:
    """Handlers nest: what is passed on is text, and a message is made from it."""
    inner: QueueStreamHandler[Any] = QueueStreamHandler(select=given)
    inner.on_token("a")
    inner("b")
    inner.end()
    received = [getattr(item, "text", item) for item in inner]
    assert [str(text) for text in received] == ["a", "b"]
