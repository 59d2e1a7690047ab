"""``overflow="merge"``: a slow consumer gets bigger pieces, and loses nothing."""

from __future__ import annotations

import contextlib
from collections import deque
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

import janus
import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import RunnableParallel

from queuestream import MixedQueue, QueueStreamHandler, TokenEvent, stream
from queuestream._buffer import Buffer
from queuestream.errors import RunStopped, StreamClosedError
from queuestream.events import About, Joinable, ModelRun, Restart
from tests.support.callbacks import RunLog
from tests.support.clients import anthropic_client, openai_client
from tests.support.consumers import in_another_thread
from tests.support.gates import Gate, eventually
from tests.support.models import ScriptedChatModel, tokens, usage
from tests.support.server import recorded, recordings
from tests.support.streams import DEFAULT_CASES, HandlerRun, is_blocked, queue_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from uuid import UUID

    from langchain_core.runnables import Runnable

    from queuestream.events import Select
    from tests.support.server import ReplayServer
    from tests.support.streams import Case

CASES = [
    case for case in DEFAULT_CASES if case.values[0].consumer.name in ("for", "asyncio", "trio")
]
STREAM_CASES = [case for case in CASES if case.values[0].is_stream]
SELECT: list[Select] = ["text", "message", "event"]


@contextlib.asynccontextmanager
async def merging(
    case: Case, target: Runnable[Any, Any], maxsize: int, select: Select = "text"
) -> AsyncIterator[Any]:
    """Start a run that merges; what it yields is iterated.  Leaving the block closes."""
    if case.is_stream:
        options: Any = {"select": select, "overflow": "merge", "run_in": case.producer}
        made: Any = stream(target, "?", maxsize=maxsize, **options)
        async with case.consumer.entered(made) as entered:
            yield entered
        return
    handler: Any = QueueStreamHandler(maxsize, select=select, overflow="merge")
    run = HandlerRun(case.producer, target, "?", [handler])
    try:
        yield iter(handler)
    finally:
        handler.close()
        await run.wait(case.consumer)


def waiting_in(running: Any) -> list[Any]:
    """Return the items that wait."""
    return list(queue_of(running).buffer.items)


def values_in(running: Any) -> list[Any]:
    """Return, of each item that waits, what was put and has joined it."""
    return [item.values for item in waiting_in(running)]


# -- lossless ------------------------------------------------------------------------------

MIXED = [
    AIMessageChunk(content="", id="run-1"),
    *(
        AIMessageChunk(content=[{"type": "thinking", "thinking": f"r{number} ", "index": 0}])
        for number in range(6)
    ),
    *(
        AIMessageChunk(content=[{"type": "text", "text": f"t{number} ", "index": 1}])
        for number in range(12)
    ),
    AIMessageChunk(
        content="", tool_call_chunks=[tool_call_chunk(name="look", args="", id="c1", index=2)]
    ),
    *(
        AIMessageChunk(content="", tool_call_chunks=[tool_call_chunk(args=f"{number},", index=2)])
        for number in range(8)
    ),
    AIMessageChunk(
        content="",
        usage_metadata=usage(3, 4),
    ),
]
"""Reasoning, text, a tool call in pieces, usage."""


def told(select: Select, items: list[Any]) -> list[tuple[str, str]]:
    """Return what items tell, where neighbours of one kind count as one."""
    if select == "message":
        items = [reduce(add, items)]
        return [("message", repr(items[0].model_dump(exclude={"id"})))]
    parts = [("text", item) if select == "text" else (item.kind, item.text) for item in items]
    joined: list[tuple[str, str]] = []
    for kind, text in parts:
        if joined and joined[-1][0] == kind:
            text = joined.pop()[1] + text  # noqa: PLW2901 - what came before it
        joined.append((kind, text))
    return joined


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_lost_doubled_or_reordered(case: Case, select: Select) -> None:
    """Promises 1, 2 and 9.  The consumer stalls, takes some items, and stalls again."""
    everything = list(stream(ScriptedChatModel(tokens=MIXED), "?", select=select))
    gate = Gate()
    model = ScriptedChatModel(tokens=MIXED, gate=gate)
    received: list[Any] = []

    async def scenario() -> Any:
        async with merging(case, model, 3, select) as running:
            for number in (5, 1, 9, 2, 4):
                gate.release(number)
                await case.consumer.eventually(lambda: gate.waiting or is_blocked(running))
                assert len(waiting_in(running)) <= 3
                received.extend(await case.consumer.take(running, min(2, len(waiting_in(running)))))
            gate.open()
            async for item in case.consumer.iterate(running):
                received.append(item)
                # A handler's end waits, too, and needs no free slot.
                assert len(waiting_in(running)) <= 3 + (not case.is_stream)
            assert queue_of(running).buffer.peak <= 3 + (not case.is_stream)
            return running.statistics if case.is_stream else None

    statistics = case.consumer.run(scenario)
    assert told(select, received) == told(select, everything)
    assert len(received) < len(everything)
    if statistics is not None:
        assert statistics.tokens == len(everything)  # before merging
        assert statistics.merged == len(everything) - len(received)
        assert statistics.peak_buffered <= 3


@pytest.mark.parametrize("case", CASES)
def test_a_run_with_text_alone_never_waits(case: Case) -> None:
    """Hazard: it waits for a slot, though there is something to join."""
    model = ScriptedChatModel(tokens=tokens(60))

    async def scenario() -> list[str]:
        async with merging(case, model, 2) as running:
            await case.consumer.wait(lambda: model.record.wait_until_produced(60))
            await case.consumer.wait(model.record.wait_until_finalized)
            return await case.consumer.collect(running)

    assert case.consumer.run(scenario) == [tokens(1)[0], "".join(tokens(59, start=1))]


@pytest.mark.parametrize("case", CASES)
def test_runs_side_by_side_join_what_is_their_own(case: Case) -> None:
    """Promise 1, of each run.  Hazard: a token joins another run's, or passes its own."""
    gates = {name: Gate() for name in "ab"}
    models = {
        name: ScriptedChatModel(tokens=[f"{name}{number} " for number in range(9)], gate=gate)
        for name, gate in gates.items()
    }
    target: Runnable[Any, Any] = RunnableParallel(dict(models))

    async def scenario() -> list[str]:
        async with merging(case, target, 2) as running:
            for name, number in (("a", 1), ("b", 3), ("a", 2), ("b", 1), ("a", 1)):
                gates[name].release(number)
                await case.consumer.eventually(lambda: all(gate.waiting for gate in gates.values()))
            assert values_in(running) == [
                ["a0 ", "a1 ", "a2 ", "a3 "],  # though b's came later
                ["b0 ", "b1 ", "b2 ", "b3 "],
            ]
            for gate in gates.values():
                gate.open()
            return await case.consumer.collect(running)

    items = case.consumer.run(scenario)
    for name in "ab":
        own = "".join(item for item in items if item.startswith(name))
        assert own == "".join(f"{name}{number} " for number in range(9))


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("case", STREAM_CASES)
def test_unbounded_never_merges(case: Case, select: Select) -> None:
    model = ScriptedChatModel(tokens=tokens(30))

    async def scenario() -> Any:
        async with merging(case, model, 0, select) as running:
            await case.consumer.wait(lambda: model.record.wait_until_produced(30))
            await case.consumer.wait(model.record.wait_until_finalized)
            items = await case.consumer.collect(running)
            return items, running.statistics

    items, statistics = case.consumer.run(scenario)
    assert len(items) == statistics.tokens
    assert statistics.merged == 0


@pytest.mark.parametrize("case", STREAM_CASES)
def test_a_consumer_that_keeps_up_gets_single_tokens(case: Case) -> None:
    """Hazard: it joins where there is a free slot."""
    gate = Gate()
    model = ScriptedChatModel(tokens=tokens(5), gate=gate)

    async def scenario() -> Any:
        async with merging(case, model, 1) as running:
            for token in tokens(5):
                gate.release()
                assert await case.consumer.next(running) == token
            return running.statistics.merged

    assert case.consumer.run(scenario) == 0


# -- what joins what -----------------------------------------------------------------------

A, B = uuid4(), uuid4()


def text(content: str, index: int | None = None) -> AIMessageChunk:
    if index is None:
        return AIMessageChunk(content=content)
    return AIMessageChunk(content=[{"type": "text", "text": content, "index": index}])


def thought(content: str, index: int) -> AIMessageChunk:
    return AIMessageChunk(content=[{"type": "thinking", "thinking": content, "index": index}])


def call(
    args: str, index: int | None = None, call_id: str | None = None, name: str | None = None
) -> AIMessageChunk:
    chunk = tool_call_chunk(name=name, args=args, id=call_id, index=index)
    return AIMessageChunk(content="", tool_call_chunks=[chunk])


def usage_chunk() -> AIMessageChunk:
    return AIMessageChunk(content="", usage_metadata=usage(1, 2))


class Feed:
    """A handler of as many slots as it is given chunks, each of which is an item.

    What comes then joins one of them, or waits.
    """

    def __init__(self, select: Select, *chunks: tuple[UUID, AIMessageChunk]) -> None:
        self.handler: Any = QueueStreamHandler(len(chunks), select=select, overflow="merge")
        self.buffer: Any = self.handler.tokens.buffer
        for run_id, chunk in chunks:
            self.put(run_id, chunk)
        assert self.joined() == [1] * len(chunks)

    def put(self, run_id: UUID, chunk: AIMessageChunk) -> None:
        """Put a chunk; wait if there is neither a slot nor one to join."""
        self.handler.on_llm_new_token(
            "", chunk=ChatGenerationChunk(message=chunk.model_copy(deep=True)), run_id=run_id
        )

    def joined(self) -> list[int]:
        """How many each item that waits is joined of."""
        return [len(getattr(item, "values", "1")) for item in self.buffer.items]

    def joins(self, run_id: UUID, chunk: AIMessageChunk) -> int | None:
        """Put a chunk; answer which item it has joined, or None if it waits."""
        before = self.joined()

        def put() -> None:
            with contextlib.suppress(RunStopped):
                self.put(run_id, chunk)

        thread = in_another_thread(put)
        eventually(lambda: len(self.buffer._putters) or not thread.is_alive())
        after = self.joined()
        if thread.is_alive():
            self.handler.close()
            thread.join()
            assert after == before
            return None
        (where,) = (number for number in range(len(after)) if after[number] != before[number])
        return where


EVENT = "event"
MESSAGE = "message"
TEXT = "text"


@pytest.mark.parametrize(
    "select, waiting, new, where",
    [
        # To its own run's, though another's came later.
        (TEXT, [(A, text("1")), (B, text("1"))], (A, text("2")), 0),
        (MESSAGE, [(A, text("1")), (B, text("1"))], (A, text("2")), 0),
        (EVENT, [(A, text("1")), (B, text("1"))], (A, text("2")), 0),
        # Of several of its run, to the last.
        (TEXT, [(A, text("1")), (A, text("2")), (B, text("1"))], (A, text("3")), 1),
        # A run of which nothing waits joins nothing.
        (TEXT, [(A, text("1"))], (B, text("1")), None),
        # Kinds.
        (EVENT, [(A, text("1"))], (A, call("1", 0)), None),
        (EVENT, [(A, text("1")), (A, call("1", 0))], (A, text("2")), None),
        (EVENT, [(A, thought("1", 0))], (A, text("2", 0)), None),
        (EVENT, [(A, thought("1", 0))], (A, thought("2", 0)), 0),
        (EVENT, [(A, text("1"))], (A, usage_chunk()), None),
        (EVENT, [(A, usage_chunk())], (A, usage_chunk()), 0),
        (MESSAGE, [(A, text("1"))], (A, call("1", 0)), None),
        (MESSAGE, [(A, text("1")), (A, call("1", 0))], (A, text("2")), None),
        (MESSAGE, [(A, thought("1", 0))], (A, text("2", 0)), None),
        (MESSAGE, [(A, text("1"))], (A, usage_chunk()), None),
        (MESSAGE, [(A, text("1"))], (A, text("")), None),
        # Some servers give every call the index 0; an id begins a call, or goes on with its own.
        (EVENT, [(A, call("1", 0, "x", "f"))], (A, call("2", 0, "y", "g")), None),
        (EVENT, [(A, call("1", 0, "x", "f"))], (A, call("2", 0, "x")), 0),
        (EVENT, [(A, call("1", 0, "x", "f"))], (A, call("2", 0)), 0),
        (MESSAGE, [(A, call("1", 0, "x", "f"))], (A, call("2", 0, "y", "g")), None),
        # Content blocks.
        (TEXT, [(A, text("1", 0))], (A, text("2", 0)), 0),
        (TEXT, [(A, text("1", 0))], (A, text("2", 1)), None),
        (TEXT, [(A, text("1", 0)), (A, text("2", 1))], (A, text("3", 0)), None),
        (MESSAGE, [(A, text("1", 0))], (A, text("2", 1)), None),
        (EVENT, [(A, text("1", 0))], (A, text("2", 1)), None),
        (EVENT, [(A, thought("1", 0))], (A, thought("2", 1)), None),
        # Tool calls.
        (EVENT, [(A, call("", 0, "c1", "look"))], (A, call("{}", 0)), 0),
        (EVENT, [(A, call("", 0, "c1", "look"))], (A, call("{}", 1)), None),
        (EVENT, [(A, call("{}", None, "c1", "look"))], (A, call("{}", None, "c2", "look")), None),
        (EVENT, [(A, call("{}", None, None, "look"))], (A, call("{}", None, None, "look")), None),
        (MESSAGE, [(A, call("", 0, "c1", "look"))], (A, call("{}", 0)), 0),
        (MESSAGE, [(A, call("", 0, "c1", "look"))], (A, call("{}", 1)), None),
        (MESSAGE, [(A, call("{}", None, None, "look"))], (A, call("{}", None, None, "look")), None),
    ],
)
def test_what_joins_what(
    select: Select,
    waiting: list[tuple[UUID, AIMessageChunk]],
    new: tuple[UUID, AIMessageChunk],
    where: int | None,
) -> None:
    """To the last that waits of the same run, if kind and content block match; else it waits."""
    assert Feed(select, *waiting).joins(*new) == where


@pytest.mark.parametrize("case", CASES)
def test_what_joins_nothing_waits_as_block_does(case: Case) -> None:
    """Hazard: a tool call passes ``maxsize``, or a text that comes after it passes it."""
    script = [text("a"), call("1", 0), text("b"), call("2", 0), text("c")]
    model = ScriptedChatModel(tokens=script)

    async def scenario() -> list[TokenEvent]:
        async with merging(case, model, 1, "event") as running:
            received: list[TokenEvent] = []
            while len(received) < 4:
                await case.consumer.eventually(lambda: is_blocked(running))
                assert model.record.produced == len(received) + 2
                assert len(waiting_in(running)) == 1
                received += await case.consumer.take(running, 1)
            return received + await case.consumer.collect(running)

    kinds = [(event.kind, event.text) for event in case.consumer.run(scenario)]
    assert kinds == [
        ("text", "a"),
        ("tool_call", "1"),
        ("text", "b"),
        ("tool_call", "2"),
        ("text", "c"),
    ]


def test_a_restart_of_another_run_is_no_obstacle() -> None:
    """Hazard: branches that go on beside a retry wait for no reason."""
    feed = Feed("text", (A, text("1")), (B, text("1")))
    feed.buffer.items[1] = Restart([], None)
    assert feed.joins(A, text("2")) == 0


def test_nothing_joins_across_a_handlers_sentinel() -> None:
    """Hazard: without a run id, the tokens of the next iteration land in this one."""
    handler: Any = QueueStreamHandler(2, overflow="merge")
    handler("a")
    handler.end()
    late = in_another_thread(partial(handler, "b"))
    eventually(lambda: len(handler.tokens.buffer._putters) or not late.is_alive())
    assert list(handler) == ["a"]
    late.join()
    handler.end()
    assert list(handler) == ["b"]


# -- what it becomes -----------------------------------------------------------------------


def test_an_event_keeps_what_is_its_runs() -> None:
    """Texts and chunks are joined; ids, name, tags are those of the first, and of all."""
    feed = Feed("event", (A, text("1")))
    first: TokenEvent = feed.buffer.items[0].values[0]
    for number in ("2", "3"):
        assert feed.joins(A, text(number)) == 0
    event = next(iter(feed.handler))
    assert isinstance(event, TokenEvent)
    assert (event.kind, event.text) == ("text", "123")
    assert event.chunk == reduce(add, [text("1"), text("2"), text("3")])
    for name in TokenEvent.__slots__:
        if name not in ("text", "chunk"):
            assert getattr(event, name) == getattr(first, name)
    assert (first.text, first.chunk) == ("1", text("1"))  # untouched


def test_the_pieces_of_a_tool_call_become_its_arguments() -> None:
    feed = Feed("event", (A, call('{"q"', 0, "c1", "look")))
    for piece in (": ", "1}"):
        assert feed.joins(A, call(piece, 0)) == 0
    event = next(iter(feed.handler))
    assert event.text == '{"q": 1}'
    assert event.chunk.tool_calls == [
        {"name": "look", "args": {"q": 1}, "id": "c1", "type": "tool_call"}
    ]


@pytest.fixture(
    params=[
        name
        for name in recordings()
        # Those at which today's clients raise.
        if not name.startswith(("anthropic-clear", "openai-error", "openai-reasoning"))
    ]
)
def chunks(request: pytest.FixtureRequest, server: ReplayServer) -> list[AIMessageChunk]:
    """Return what a provider has sent, as its client gives it."""
    name: str = request.param
    scenario = server.scenario(recorded(name))
    if "anthropic" in name:
        return list(anthropic_client(scenario, streaming=True).stream("?"))
    in_new_format = "responses" in name or (name.startswith("openai-") and name != "openai-text")
    client = openai_client(scenario, streaming=True, use_responses_api=in_new_format)
    return list(client.stream("?"))


@pytest.mark.filterwarnings("ignore:Received unexpected tool content block")
def test_messages_become_langchains_own_sum(chunks: list[AIMessageChunk]) -> None:
    """Hazard: lists, tool calls, usage or ids are joined in another way than by ``+``."""
    handler: Any = QueueStreamHandler(1, select="message", overflow="merge")
    run = handler._nameless[1]
    whole = Joinable(run, "any", chunks[0])
    for count in range(2, len(chunks) + 1):
        assert Joinable.join(deque([whole]), Joinable(run, "any", chunks[count - 1]))
    assert whole.value() == reduce(add, chunks)


@pytest.mark.filterwarnings("ignore:Received unexpected tool content block")
def test_merged_messages_add_up_to_the_answer(chunks: list[AIMessageChunk]) -> None:
    """Promise 1, with what real providers sent: by pieces of any size, the sum is the same."""
    some = [*chunks[:25], *chunks[25:][-25:]]
    copies = [chunk.model_copy(update={"chunk_position": None}) for chunk in some]
    with stream(ScriptedChatModel(tokens=copies), "?", select="message", maxsize=0) as answer:
        single = list(answer)
    model = ScriptedChatModel(tokens=copies)
    with stream(model, "?", select="message", overflow="merge", maxsize=1) as merged:
        eventually(lambda: is_blocked(merged) or model.record.produced == len(copies))
        joined = list(merged)
    by_id = {"id", "response_metadata"}  # each run has an id of its own
    assert reduce(add, joined).model_dump(exclude=by_id) == reduce(add, single).model_dump(
        exclude=by_id
    )
    assert merged.statistics.merged == len(single) - len(joined)
    assert merged.usage == answer.usage
    assert merged.text == answer.text


# -- what it costs -------------------------------------------------------------------------


class CountingKey:
    """A kind and content block that counts how often it is compared."""

    compared = 0
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        CountingKey.compared += 1
        return isinstance(other, CountingKey)


class CountingDeque(deque[Any]):
    """Items that count how often one is looked at."""

    looked_at = 0

    def __reversed__(self) -> Iterator[Any]:
        for item in super().__reversed__():
            CountingDeque.looked_at += 1
            yield item


def test_no_quadratic_cost() -> None:
    """Promise 9.  Hazard: each token copies or looks through all that waits.

    Two runs, 40,000 tokens, two slots: each token is appended to a list, and the texts are
    made one when they are taken.
    """
    CountingKey.compared = CountingDeque.looked_at = 0
    buffer = Buffer[Any](2, 1, Joinable.join)
    buffer.items = CountingDeque()
    runs = [ModelRun(About(None, None), 1, is_heard=True) for _ in "ab"]
    pieces = [f"{number} " for number in range(1_000)]
    values: list[object] = []
    for _ in range(20):
        for piece in pieces:
            for run in runs:
                buffer.try_put(Joinable(run, CountingKey(), piece), None, RuntimeError)
        values = values or [item.values for item in buffer.items]
    assert CountingKey.compared == 40_000 - 2
    assert CountingDeque.looked_at <= 2 * 40_000
    for run in runs:
        item = buffer.try_get(None, RuntimeError)
        assert isinstance(item, Joinable)
        assert item.run is run
        assert len(item.values) == 20_000
        assert item.values[19_000] is pieces[0]  # the text itself, in no other
        assert item.values is values.pop(0)  # and no copy of a list
        assert item.value() == "".join(pieces) * 20


class Watched(AIMessageChunk):
    """A message that notes when it is touched, and whether a lock is held then."""

    buffer: ClassVar[Any] = None
    touched: ClassVar[int] = 0

    def __getattribute__(self, name: str) -> Any:
        if Watched.buffer is not None and not name.startswith("__class"):
            Watched.touched += 1
            assert not Watched.buffer._lock.locked(), f"{name} under the lock"
        return super().__getattribute__(name)


@pytest.mark.parametrize("select", ["message", "event"])
def test_no_message_is_touched_under_the_lock(
    select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hazard: the run, and whoever else waits, stands still while LangChain adds messages."""
    handler: Any = QueueStreamHandler(1, select=select, overflow="merge")
    messages = [Watched(content=piece) for piece in tokens(9)]
    monkeypatch.setattr(Watched, "buffer", handler.tokens.buffer)
    run_id = uuid4()
    for message in messages:
        handler.on_llm_new_token("", chunk=ChatGenerationChunk(message=message), run_id=run_id)
    assert handler.tokens.meter.merged == 8
    handler.end()
    assert len(list(handler)) == 1
    assert Watched.touched


# -- ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_close_while_a_merging_run_waits(case: Case) -> None:
    """Promise 4.  Hazard: whoever waits for a slot to join nothing is not released."""
    log = RunLog()
    model = ScriptedChatModel(tokens=[text("a"), text("b"), call("1", 0), text("c")])
    target = model.with_config(callbacks=[log])

    async def scenario() -> None:
        async with merging(case, target, 1, "event") as running:
            await case.consumer.eventually(lambda: is_blocked(running))
            assert [len(values) for values in values_in(running)] == [2]
            queue_of(running).close()
            with pytest.raises(StreamClosedError):
                await case.consumer.next(running)
            await case.consumer.wait(model.record.wait_until_finalized)

    case.consumer.run(scenario)
    log.wait_until_outermost_ended()
    assert model.record.produced == 3


@pytest.mark.parametrize("case", CASES)
def test_an_error_comes_after_what_was_joined(case: Case) -> None:
    """Promise 3."""
    problem = ValueError("out of luck")
    model = ScriptedChatModel(tokens=tokens(9), failure=problem, fail_at=7)
    received: list[str] = []

    async def scenario() -> None:
        async with merging(case, model, 2) as running:
            await case.consumer.wait(lambda: model.record.wait_until_produced(7))
            await case.consumer.wait(model.record.wait_until_finalized)
            with pytest.raises(ValueError, match="out of luck") as raised:
                while True:
                    received.append(await case.consumer.next(running))
            assert raised.value is problem

    case.consumer.run(scenario)
    assert "".join(received) == "".join(tokens(7))
    assert len(received) == 2


# -- refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [MixedQueue, janus.Queue])
def test_not_with_a_queue_of_yours(make: Any) -> None:
    """Hazard: it shows when the queue is full."""
    message = r"overflow=\"merge\" and queue= exclude each other"
    with pytest.raises(ValueError, match=message):
        stream(ScriptedChatModel(), "?", overflow="merge", queue=make())
    with pytest.raises(ValueError, match=message):
        QueueStreamHandler(overflow="merge", queue=make())
