"""Attempts: what is told of a run that failed after some of its text was delivered.

The first half looks through `stream()` and `QueueStreamHandler` at retries and fallbacks,
as LangChain makes them; graphs are in ``test_attempts_graphs.py``.  The second half is
`Attempts` itself.

Events are compared in a short form: ``"1:a "`` is text of attempt 1, ``"restart 2"`` the
event that begins attempt 2.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableParallel
from langchain_core.tools import StructuredTool

from queuestream import QueueStreamHandler, stream
from queuestream._attempts import Attempts
from queuestream._meter import Counter
from queuestream.errors import StreamClosedError
from tests.support.callbacks import RunLog
from tests.support.consumers import in_another_thread, pairings
from tests.support.gates import Gate, eventually
from tests.support.models import ScriptedChatModel, WholeAnswerChatModel, tokens, usage
from tests.support.streams import (
    DEFAULT_CASES,
    STREAM_CASES,
    HandlerRun,
    is_blocked,
    queue_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from langchain_core.runnables import Runnable

    from queuestream import TokenEvent
    from tests.support.consumers import Consumer, RunIn
    from tests.support.streams import Case

FOR_AND_ASYNCIO = pairings("for", "asyncio")
SELECT = ["text", "message", "event"]
HANDLER_CASES = [
    case
    for case in DEFAULT_CASES
    if not case.values[0].is_stream and case.values[0].consumer.name in ("for", "asyncio")
]
JANUS_CASES = [
    case
    for case in STREAM_CASES
    if case.values[0].queue == "janus" and case.values[0].consumer.name in ("for", "asyncio")
]
SELECTED = [
    pytest.param(*pairing.values, select, id=f"{pairing.id}-{select}")
    for pairing in FOR_AND_ASYNCIO
    for select in SELECT
    if select == "event" or pairing.id in ("thread-for", "task-asyncio")
]
"""What makes a difference: where the run happens for what is told, both sorts for the rest."""

Answer = Sequence["str | AIMessageChunk | Exception"]


class Flaky(ScriptedChatModel):
    """A model that gives another answer at each call; an exception in it is raised."""

    answers: Sequence[Any] = ()

    def _stream_script(self, messages: list[BaseMessage]) -> Iterator[ChatGenerationChunk]:
        self.record.note_call(messages)
        try:
            for part in self.answers[self.record.calls - 1]:
                if self.gate is not None:
                    self.gate.wait()
                yield self._chunk(part)
        finally:
            self.record.note_finalized()

    async def _astream_script(
        self, messages: list[BaseMessage]
    ) -> AsyncIterator[ChatGenerationChunk]:
        self.record.note_call(messages)
        try:
            for part in self.answers[self.record.calls - 1]:
                if self.gate is not None:
                    await self.gate.wait_async()
                yield self._chunk(part)
        finally:
            self.record.note_finalized()

    def _chunk(self, part: str | AIMessageChunk | Exception) -> ChatGenerationChunk:
        if isinstance(part, Exception):
            raise part
        self.record.note_token()
        message = AIMessageChunk(content=part) if isinstance(part, str) else part.model_copy()
        return ChatGenerationChunk(message=message)


class Fussy:
    """A parser that refuses the first answers; the function of a `RunnableLambda`."""

    def __init__(self, refusals: int) -> None:
        self._refusals = refusals

    def __call__(self, message: BaseMessage | str) -> str:
        """Return the text of a message, or refuse it."""
        if self._refusals:
            self._refusals -= 1
            raise NO
        return message if isinstance(message, str) else str(message.content)


class NoError(Exception):
    """What fails an attempt."""


NO = NoError("no")


def flaky(*answers: Answer, gate: Gate | None = None) -> Flaky:
    """Return a model that gives these answers, one after the other."""
    return Flaky(answers=answers, gate=gate)


def retried(target: Runnable[Any, Any], attempts: int = 5) -> Runnable[Any, Any]:
    """Return a target with retries that do not wait."""
    return target.with_retry(stop_after_attempt=attempts, wait_exponential_jitter=False)


def parser(refusals: int) -> Runnable[Any, Any]:
    """Return a `Fussy` as a runnable."""
    return RunnableLambda(Fussy(refusals), name="parser")


def told(events: Sequence[TokenEvent]) -> list[str]:
    """Return text and restarts in the short form; see the module's docstring."""
    assert {event.kind for event in events} <= {"text", "restart"}
    return [
        f"restart {event.attempt}" if event.kind == "restart" else f"{event.attempt}:{event.text}"
        for event in events
    ]


def texts(events: Sequence[str]) -> list[str]:
    """Return what a consumer of texts gets where one of events gets these."""
    return [event.partition(":")[2] for event in events if ":" in event]


def contents(received: Sequence[Any]) -> list[str]:
    """Return the texts of messages; empty ones left out."""
    return [str(each.content) for each in received if each.content]


# -- retries and fallbacks, as LangChain makes them ------------------------------------------------


@dataclass(frozen=True)
class Story:
    """A target whose first attempts fail.

    Attributes:
        name: For test ids.
        build: Makes it.
        events: What its consumer is told, in the short form.
        text: Its text: that of the last attempt, and of what succeeded before.
        result: What it returns, if that is not its text.
    """

    name: str
    build: Callable[[], Any]
    events: Sequence[str]
    text: str
    result: str | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def attempts(self) -> int:
        """How many there are."""
        return 1 + sum(event.startswith("restart") for event in self.events)


def both(
    plain: Callable[[str, RunnableConfig], str], coroutine: Callable[[str, RunnableConfig], Any]
) -> Runnable[Any, Any]:
    """Return a function of the input, in both forms."""
    return RunnableLambda(plain, coroutine)


def _catching() -> Runnable[Any, Any]:
    first, second = flaky(["a ", NO]), flaky(["b "])

    def ask(question: str, config: RunnableConfig) -> str:
        try:
            return str(first.invoke(question, config).content)
        except NoError:
            return str(second.invoke(question, config).content)

    async def aask(question: str, config: RunnableConfig) -> str:
        try:
            return str((await first.ainvoke(question, config)).content)
        except NoError:
            return str((await second.ainvoke(question, config)).content)

    return both(ask, aask)


def _catching_callable() -> Callable[..., str]:
    first, second = flaky(["a ", NO]), flaky(["b "])

    def execute(question: str, callbacks: Any) -> str:
        try:
            return str(first.invoke(question, {"callbacks": callbacks}).content)
        except NoError:
            return str(second.invoke(question, {"callbacks": callbacks}).content)

    return execute


def _giving_up() -> Runnable[Any, Any]:
    model = flaky(["a ", NO])

    def ask(question: str, config: RunnableConfig) -> str:
        try:
            return str(model.invoke(question, config).content)
        except NoError:
            return "nothing"

    async def aask(question: str, config: RunnableConfig) -> str:
        try:
            return str((await model.ainvoke(question, config)).content)
        except NoError:
            return "nothing"

    return both(ask, aask) | RunnableLambda(str)


def _leaving_early() -> Runnable[Any, Any]:
    first, second = flaky(["a ", "b ", "c "]), flaky(["d "])

    def ask(question: str, config: RunnableConfig) -> str:
        answer = first.stream(question, config)
        next(answer)
        answer.close()  # type: ignore[attr-defined] # it is a generator
        return str(second.invoke(question, config).content)

    async def aask(question: str, config: RunnableConfig) -> str:
        answer = first.astream(question, config)
        await anext(answer)
        await answer.aclose()  # type: ignore[attr-defined] # it is a generator
        return str((await second.ainvoke(question, config)).content)

    return both(ask, aask)


def _tool_with_a_retry() -> Runnable[Any, Any]:
    model = retried(flaky(["a ", NO], ["b "]))

    def look(where: str, config: RunnableConfig) -> str:
        return str(model.invoke(where, config).content)

    async def alook(where: str, config: RunnableConfig) -> str:
        return str((await model.ainvoke(where, config)).content)

    return StructuredTool.from_function(look, alook, name="look", description="Look there.")


def _tool_that_is_retried() -> Runnable[Any, Any]:
    model, parse = flaky(["a "], ["b "]), parser(1)

    def look(where: str, config: RunnableConfig) -> str:
        return str((model | parse).invoke(where, config))

    async def alook(where: str, config: RunnableConfig) -> str:
        return str(await (model | parse).ainvoke(where, config))

    return retried(
        StructuredTool.from_function(look, alook, name="look", description="Look there.")
    )


STORIES = [
    Story(
        "retry",
        lambda: retried(flaky(["a ", NO], ["b ", "c ", NO], ["d ", "e "])),
        ["1:a ", "restart 2", "2:b ", "2:c ", "restart 3", "3:d ", "3:e "],
        "d e ",
    ),
    Story(
        "fallbacks",
        lambda: flaky(["a ", NO]).with_fallbacks([flaky(["b ", NO]), flaky(["c "])]),
        ["1:a ", "restart 2", "2:b ", "restart 3", "3:c "],
        "c ",
    ),
    Story(
        "a parser that refuses",
        lambda: retried(flaky(["a "], ["b "]) | parser(1)),
        ["1:a ", "restart 2", "2:b "],
        "b ",
    ),
    Story(
        "a parser that refuses a whole answer",
        lambda: retried(WholeAnswerChatModel(tokens=["a ", "b "]) | parser(1)),
        ["1:a b ", "restart 2", "2:a b "],
        "a b ",
    ),
    Story(
        "an attempt without text between",
        lambda: retried(flaky(["a ", NO], [NO], ["c "])),
        ["1:a ", "restart 2", "2:c "],
        "c ",
    ),
    Story(
        "only attempts without text fail",
        lambda: retried(flaky([NO], ["", NO], ["c "])),
        ["1:c "],
        "c ",
    ),
    Story(
        "a retry around fallbacks",
        lambda: retried(
            flaky(["a ", NO], ["c ", NO]).with_fallbacks([flaky(["b "], ["d "])]) | parser(1)
        ),
        ["1:a ", "restart 2", "2:b ", "restart 3", "3:c ", "restart 4", "4:d "],
        "d ",
    ),
    Story(
        "a retry as the first of fallbacks",
        lambda: (retried(flaky(["a ", NO], ["b ", NO]), 2) | StrOutputParser()).with_fallbacks(
            [flaky(["c "]) | StrOutputParser()]
        ),
        ["1:a ", "restart 2", "2:b ", "restart 3", "3:c "],
        "c ",
    ),
    Story(
        "a retry in a retried chain, after a step that succeeds",
        lambda: (
            flaky(["first "])
            | StrOutputParser()
            | retried(retried(flaky(["a ", NO], ["b "], ["c "])) | parser(1))
            | flaky(["last "])
        ),
        ["1:first ", "1:a ", "restart 2", "2:b ", "restart 3", "3:c ", "3:last "],
        "first c last ",
        "last ",
    ),
    Story("a function that catches", _catching, ["1:a ", "restart 2", "2:b "], "b "),
    Story("a callable that catches", _catching_callable, ["1:a ", "restart 2", "2:b "], "b "),
    Story(
        "a function that catches and gives up",
        lambda: _giving_up() | flaky(["b "]),
        ["1:a ", "1:b "],  # the function has not failed
        "a b ",
        "b ",
    ),
    Story("a function that leaves a model early", _leaving_early, ["1:a ", "1:d "], "a d ", "d "),
    Story("a tool with a retry in it", _tool_with_a_retry, ["1:a ", "restart 2", "2:b "], "b "),
    Story("a tool that is retried", _tool_that_is_retried, ["1:a ", "restart 2", "2:b "], "b "),
]


@pytest.mark.parametrize("run_in, consumer, select", SELECTED)
@pytest.mark.parametrize("story", STORIES, ids=str)
def test_what_is_told_of_attempts(
    story: Story, run_in: RunIn, consumer: Consumer, select: Any
) -> None:
    """Promise 1.  Hazard: a restart that is missed, doubled or out of its place."""

    async def scenario() -> None:
        answer: Any = stream(story.build(), "?", run_in=run_in, select=select)
        received = await consumer.collect(answer)
        if select == "event":
            assert told(received) == story.events
        elif select == "message":
            assert contents(received) == texts(story.events)
        else:
            assert received == texts(story.events)
        result = getattr(answer.result, "content", answer.result)
        assert answer.text == story.text
        assert result == (story.text if story.result is None else story.result)
        assert answer.statistics.attempts == story.attempts
        if select != "message":  # empty ones count there
            assert answer.statistics.tokens == len(texts(story.events)), "restarts are no tokens"

    consumer.run(scenario)


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_a_model_that_fails_at_any_token(run_in: RunIn, consumer: Consumer, position: int) -> None:
    """Hazard: a restart of what never delivered text, or none after the last token."""
    first, second = tokens(position), tokens(4)
    target = retried(flaky([*first, NO], second))

    async def scenario() -> list[TokenEvent]:
        return await consumer.collect(stream(target, "?", run_in=run_in, select="event"))

    events = consumer.run(scenario)
    attempt = 2 if position else 1
    restart = ["restart 2"] if position else []
    expected = [f"1:{text}" for text in first] + restart + [f"{attempt}:{text}" for text in second]
    assert told(events) == expected
    for event in events:
        if event.kind == "restart":
            new = events[-1]
            assert event.chunk is None
            assert event.streamed
            assert (event.run_id, event.parent_run_id) == (new.run_id, new.parent_run_id)
            assert (event.name, event.tags) == (new.name, new.tags) == ("Flaky", new.tags)


class Overhearing(BaseCallbackHandler):
    """Keeps the messages that LangChain reports."""

    run_inline = True

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def on_llm_new_token(self, *_: Any, chunk: Any = None, **__: Any) -> None:
        """Keep the message."""
        self.messages.append(chunk.message)


@pytest.mark.parametrize("select", ["message", "event"])
@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_messages_stay_as_the_provider_sent_them(
    run_in: RunIn, consumer: Consumer, select: Any
) -> None:
    """Hazard: copies, with ids that tell attempts apart."""

    def said(*texts: str) -> list[AIMessageChunk]:
        return [AIMessageChunk(content=text, id="msg_the_same") for text in texts]

    target = retried(flaky([*said("a ", "b "), NO], said("a ", "b ", "c ")))
    others = Overhearing()

    async def scenario() -> None:
        answer: Any = stream(target, "?", {"callbacks": [others]}, run_in=run_in, select=select)
        received = await consumer.collect(answer)
        if select == "event":
            received = [event.chunk for event in received if event.kind == "text"]
            others.messages = [message for message in others.messages if message.content]
        assert [id(message) for message in received] == [id(message) for message in others.messages]
        assert [message.id for message in received if message.content] == ["msg_the_same"] * 5

    consumer.run(scenario)


def test_what_is_not_heard_makes_no_restart() -> None:
    """Hazard: the text of excluded runs counts as delivered."""
    quiet = Flaky(answers=[["a ", NO], ["b "]], tags=["quiet"])
    target = retried(quiet) | StrOutputParser() | flaky(["c "])
    answer = stream(target, "?", select="event", exclude_tags=["quiet"])
    assert told(list(answer)) == ["1:c "]
    assert answer.text == "c "
    assert answer.statistics.attempts == 1


def test_usage_counts_failed_attempts() -> None:
    """Hazard: what a failed attempt cost is forgotten with its text."""
    cost = AIMessageChunk(content="", usage_metadata=usage(3, 2))
    answer = stream(retried(flaky(["a ", cost, NO], ["b ", cost])), "?")
    assert list(answer) == ["a ", "b "]
    assert answer.usage == {"input_tokens": 6, "output_tokens": 4, "total_tokens": 10}


def test_a_run_that_fails_in_the_end_keeps_the_text_of_its_last_attempt() -> None:
    """Hazard: the text of an attempt that nothing took the place of is dropped, too."""
    answer = stream(retried(flaky(["a ", NO], ["b ", NO]), attempts=2), "?")
    received: list[str] = []
    with pytest.raises(NoError):
        received.extend(answer)  # list() would drop them
    assert answer.text == "b "
    assert answer.statistics.attempts == 2


# -- parallel branches -----------------------------------------------------------------------------


@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_a_branch_that_restarts_leaves_the_other_alone(run_in: RunIn, consumer: Consumer) -> None:
    """Promise 1.  Hazard: the other branch's text is void, too, or called of the new attempt."""
    go_on, fail = Gate(1), Gate()
    steady = flaky(tokens(4), gate=go_on)
    target = RunnableParallel(steady=steady, flaky=retried(flaky(["a ", NO], ["b "], gate=fail)))

    async def scenario() -> None:
        async with consumer.entered(stream(target, "?", run_in=run_in, select="event")) as answer:
            assert told(await consumer.take(answer, 1)) == ["1:t0 "]
            fail.open()
            assert told(await consumer.take(answer, 3)) == ["1:a ", "restart 2", "2:b "]
            go_on.open()
            assert told(await consumer.collect(answer)) == ["1:t1 ", "1:t2 ", "1:t3 "]
            assert answer.text == "t0 b t1 t2 t3 "
            assert answer.statistics.attempts == 2

    consumer.run(scenario)


@pytest.mark.parametrize("late", [False, True], ids=["", "late"])
@pytest.mark.parametrize("run_in, consumer", [p for p in FOR_AND_ASYNCIO if p.id[:6] != "thread"])
def test_what_a_branch_of_a_failed_attempt_still_says_is_void(
    run_in: RunIn, consumer: Consumer, late: bool
) -> None:
    """Hazard: nobody cancels it, so that it goes on when the new attempt has begun.

    A `RunnableParallel` under ``ainvoke`` leaves its other branches running when one fails.
    """
    gate, fail = Gate(0 if late else 1), Gate(2 if late else 0)
    steady = flaky(["s1 ", "s2 ", "s3 "], ["S1 "], gate=gate)
    failing = flaky(["a ", NO], ["b "], gate=fail)

    async def scenario() -> None:
        async with consumer.entered(
            stream(
                retried(RunnableParallel(steady=steady, failing=failing)),
                "?",
                run_in=run_in,
                select="event",
            )
        ) as answer:
            before = ["1:a "] if late else ["1:s1 "]
            assert told(await consumer.take(answer, 1)) == before
            fail.release(0 if late else 2)
            assert told(await consumer.take(answer, 1 if late else 2))[-1] == "restart 2"
            assert answer.text == ""
            gate.open()
            old = ["1:s1 ", "1:s2 ", "1:s3 "][0 if late else 1 :]
            events = await consumer.take(answer, len(old) + 1)
            assert sorted(told(events)) == [*old, "2:S1 "]
            assert answer.text == "S1 "
            fail.open()
            assert told(await consumer.collect(answer)) == ["2:b "]
            assert answer.text == "S1 b "

    consumer.run(scenario)


@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_branches_that_all_restart(run_in: RunIn, consumer: Consumer) -> None:
    """Hazard: two restarts get one number, or one takes what another is to replace."""
    names = "uvwxyz"
    target = RunnableParallel(
        {name: retried(flaky([f"{name}1 ", NO], [f"{name}2 "])) for name in names}
    )

    async def scenario() -> None:
        answer = stream(target, "?", run_in=run_in, select="event", maxsize=2)
        events = await consumer.collect(answer)
        restarts = [event for event in events if event.kind == "restart"]
        assert sorted(event.attempt for event in restarts) == [2, 3, 4, 5, 6, 7]
        assert answer.statistics.attempts == 7
        for name in names:
            first, second = (event for event in events if event.text in (f"{name}1 ", f"{name}2 "))
            (restart,) = (event for event in restarts if event.run_id == second.run_id)
            order = [events.index(event) for event in (first, restart, second)]
            assert order == sorted(order)
            assert second.attempt >= restart.attempt > first.attempt or first.attempt > 1
        assert sorted(answer.text.split()) == [f"{name}2" for name in names]

    consumer.run(scenario)


# -- a restart waits like any item -----------------------------------------------------------------


@pytest.mark.parametrize("run_in, consumer, select", SELECTED)
def test_a_restart_waits_for_a_free_slot(run_in: RunIn, consumer: Consumer, select: Any) -> None:
    """Promise 2.  Hazard: it goes past the bound, or the new attempt begins meanwhile."""
    model = flaky(["a ", NO], ["b ", "c "])

    async def scenario() -> None:
        answer: Any = stream(retried(model), "?", run_in=run_in, select=select, maxsize=1)
        async with consumer.entered(answer) as running:
            await consumer.eventually(lambda: is_blocked(running))
            assert model.record.calls == 1
            received = []
            async for item in consumer.iterate(running):
                assert queue_of(running).has_items() <= 1
                received.append(item)
            assert running.statistics.peak_buffered == 1
            assert running.statistics.blocked > 0
            assert running.text == "b c "
        if select == "event":
            assert told(received) == ["1:a ", "restart 2", "2:b ", "2:c "]

    consumer.run(scenario)


@pytest.mark.parametrize("kind", ["model", "chain"])
@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_a_close_while_a_restart_waits(run_in: RunIn, consumer: Consumer, kind: str) -> None:
    """Promise 4.  Hazard: the run hangs, goes on, or other handlers never hear of its end."""
    model = flaky(["a ", NO], ["b "])
    target = retried(model if kind == "model" else model | StrOutputParser())
    log = RunLog()

    async def scenario() -> None:
        answer = stream(target, "?", {"callbacks": [log]}, run_in=run_in, maxsize=1)
        async with consumer.entered(answer) as running:
            await consumer.eventually(lambda: is_blocked(running))
            await consumer.close(running)
            with pytest.raises(StreamClosedError):
                await consumer.next(running)
        await consumer.wait(log.wait_until_outermost_ended)
        # LangChain shuffles handlers where configs are merged: the start of the run that
        # was to be announced may not have come to the other one.
        await consumer.eventually(lambda: log.started.keys() <= log.ended.keys())

    consumer.run(scenario)
    assert model.record.calls == 1


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("run_in", ["task", "background"])
def test_a_restart_in_code_that_holds_up_a_loop_never_waits(
    run_in: RunIn, select: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 5.  Hazard: the consumer is on the loop that the waiting would hold up."""
    model = retried(flaky(["a ", NO], ["b ", NO], ["c "]))

    async def node(question: str, config: RunnableConfig) -> str:
        return str(model.invoke(question, config).content)

    async def scenario() -> None:
        target = RunnableLambda(node)
        answer: Any = stream(target, "?", run_in=run_in, select=select, maxsize=1)
        received = [item async for item in answer]
        if select == "event":
            assert told(received) == ["1:a ", "restart 2", "2:b ", "restart 3", "3:c "]
        assert answer.text == answer.result == "c "
        assert answer.statistics.attempts == 3

    with caplog.at_level(logging.WARNING, "queuestream"):
        asyncio.run(scenario())
    if run_in == "task":
        assert [record.message.count("past maxsize") for record in caplog.records] == [1]


@pytest.mark.parametrize("run_in, consumer, select", SELECTED)
def test_nothing_is_merged_across_a_restart(run_in: RunIn, consumer: Consumer, select: Any) -> None:
    """Hazard: the new attempt's text joins the old one's, which waits in a full queue."""
    model = flaky(["a ", NO], ["b ", "c ", "d "])

    async def scenario() -> None:
        answer: Any = stream(
            retried(model), "?", run_in=run_in, select=select, maxsize=2, overflow="merge"
        )
        async with consumer.entered(answer) as running:
            await consumer.eventually(lambda: is_blocked(running) and model.record.calls == 2)
            first = await consumer.next(running)
            # A message at the end, which says that it is the last, joins no text.
            await consumer.eventually(lambda: running.statistics.merged == 2)
            received = [first, *await consumer.collect(running)]
            assert running.text == "b c d "
        if select == "event":
            assert told(received) == ["1:a ", "restart 2", "2:b c d "]
        else:
            assert (received if select == "text" else contents(received)) == ["a ", "b c d "]

    consumer.run(scenario)


# -- other ways to read ----------------------------------------------------------------------------


@pytest.mark.parametrize("consumer", [p.values[1] for p in FOR_AND_ASYNCIO[:2]], ids=str)
def test_a_restart_ends_a_piece(consumer: Consumer) -> None:
    """Hazard: one piece has text of two attempts, so that no screen can clear between."""
    gate = Gate(3)
    model = flaky(["a ", "b ", NO], ["c ", "d "], gate=gate)

    async def scenario() -> list[str]:
        async with consumer.entered(stream(retried(model), "?", run_in="thread")) as answer:
            pieces: Any = answer.pieces(max_delay=60)
            received = [await consumer.next(pieces)]  # the model is silent from here on
            assert answer.text == received[0]
            gate.open()
            received += await consumer.collect(pieces)
            assert answer.text == "c d "
            return received

    assert consumer.run(scenario) == ["a b ", "c d "]


def test_a_restart_ends_a_piece_of_what_waits() -> None:
    """The same where both attempts wait already, and where nothing was before the restart."""
    with stream(retried(flaky(["a ", "b ", NO], ["c ", NO], ["d "])), "?") as answer:
        eventually(lambda: queue_of(answer).ended)
        assert next(answer) == "a "
        assert next(answer) == "b "
        assert list(answer.pieces()) == ["c ", "d "]
        assert answer.text == "d "


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("case", JANUS_CASES)
def test_restarts_through_a_janus_queue(case: Case, select: Any) -> None:
    """Hazard: restarts need a queue of ours."""
    story = STORIES[0]

    async def scenario() -> None:
        answer: Any = case.stream(story.build(), maxsize=1, select=select)
        received = await case.consumer.collect(answer)
        if select == "event":
            assert told(received) == story.events
        assert answer.text == story.text
        assert answer.statistics.attempts == story.attempts

    case.consumer.run(scenario)


@pytest.mark.parametrize("select", SELECT)
@pytest.mark.parametrize("case", HANDLER_CASES)
def test_each_run_of_a_handler_begins_with_attempt_1(case: Case, select: Any) -> None:
    """Hazard: a handler counts on over its runs, or takes one for the restart of another."""
    model = flaky(["a ", NO], ["b "], ["c ", NO], ["d "])
    broken = flaky(["e ", NO])

    async def scenario() -> None:
        handler: Any = QueueStreamHandler(select=select)
        for target, expected in (
            (retried(model), ["1:a ", "restart 2", "2:b "]),
            (broken, ["1:e "]),
            (retried(model), ["1:c ", "restart 2", "2:d "]),
        ):
            run = HandlerRun(case.producer, target, "?", [handler])
            received: list[Any] = []
            iteration: Any = iter(handler)
            try:
                while True:
                    received.append(await case.consumer.next(iteration))
            except StopAsyncIteration:
                assert target is not broken
            except NoError:
                assert target is broken
            await run.wait(case.consumer)
            if select == "event":
                assert told(received) == expected
            elif select == "message":
                assert contents(received) == texts(expected)
            else:
                assert received == texts(expected)

    case.consumer.run(scenario)


# -- Attempts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 3])
def test_restarts_of_many_threads_are_counted_exactly(depth: int) -> None:
    """Hazard: two threads take one failed run, or one number."""
    restarts: list[object] = []
    attempts = Attempts(restarts)
    parents: list[UUID | None] = [None, uuid4(), uuid4()]
    for parent in parents[1:]:
        attempts.run_started(parent, None)  # type: ignore[arg-type] # these are ids
    start = threading.Barrier(4)
    failed: list[Counter] = []
    replaced: list[Counter] = []
    numbers: list[int] = []

    def work() -> None:
        start.wait()
        for index in range(300):
            outermost = run_id = uuid4()
            above = parents[index % 3]
            path = [run_id]
            begun = [(run_id, attempts.run_started(run_id, above))]
            for _ in range(depth):
                path.append(uuid4())
                begun.append((path[-1], attempts.run_started(path[-1], path[-2])))
            for each, void in begun:
                if void:
                    assert each is outermost
                    replaced.extend(void)
                    numbers.append(attempts.number_of(each))
            counter = Counter()
            attempts.text_delivered(path[-1], counter)
            failed.append(counter)
            for each in reversed(path):
                attempts.run_ended(each, NO)

    threads = [in_another_thread(work) for _ in range(4)]
    for thread in threads:
        thread.join(30)
    for parent in parents:  # what failed last is replaced here
        while void := attempts.run_started(uuid4(), parent):
            replaced.extend(void)
    assert len(replaced) == len(failed) == 1200
    assert {id(counter) for counter in replaced} == {id(counter) for counter in failed}
    assert len(restarts) == 1200
    assert len(set(restarts)) == 1200
    assert len(set(numbers)) == len(numbers)


def test_a_restart_takes_the_place_of_the_oldest_failure() -> None:
    """Hazard: where several branches of one parent fail, the text of the wrong one is dropped."""
    attempts = Attempts([])
    parent = uuid4()
    attempts.run_started(parent, None)
    counters = [Counter() for _ in range(3)]
    runs = [uuid4() for _ in counters]
    for run_id in runs:
        attempts.run_started(run_id, parent)
    for run_id, counter in zip(runs, counters, strict=True):
        attempts.text_delivered(run_id, counter)
        attempts.run_ended(run_id, NO)
    restarts = [uuid4() for _ in counters]
    assert [attempts.run_started(restart, parent) for restart in restarts] == [
        [counter] for counter in counters
    ]
    assert [attempts.number_of(restart) for restart in restarts] == [2, 3, 4]
    assert attempts.run_started(uuid4(), parent) == []


@pytest.mark.parametrize("run_in, consumer", FOR_AND_ASYNCIO)
def test_nothing_is_kept_of_runs_that_have_ended(run_in: RunIn, consumer: Consumer) -> None:
    """Promise 9.  Hazard: each run, or each failure that was handled, leaves something behind."""
    branches = {
        name: retried(retried(flaky(["a ", NO], ["b "], ["c "])) | parser(1)) for name in "xyz"
    }
    target = RunnableParallel(branches) | RunnableLambda(str) | _giving_up() | flaky(["d "])

    async def scenario() -> None:
        answer = stream(target, "?", run_in=run_in)
        call = answer._call
        assert call is not None
        attempts = call.feed._attempts
        await consumer.collect(answer)
        assert answer.statistics.attempts == 1 + 3 * 2
        assert attempts._open == {}
        assert attempts._failed == {}

    consumer.run(scenario)


def test_a_branch_that_goes_on_under_a_failed_run_is_of_the_old_attempt() -> None:
    """Hazard: nobody cancels it, and its text counts as the new attempt's, or fails it once more.

    A `RunnableParallel` under ``ainvoke`` leaves its other branches running when one fails.
    """
    attempts = Attempts([])
    retry, parallel, branch = ids = uuid4(), uuid4(), uuid4()
    for run_id, parent in zip(ids, (None, retry, parallel), strict=True):
        assert attempts.run_started(run_id, parent) == []
    early, late = Counter(), Counter()
    attempts.text_delivered(parallel, early)
    attempts.run_ended(parallel, NO)
    again = uuid4()
    void = attempts.run_started(again, retry)
    assert void == [early]
    attempts.text_delivered(branch, late)
    assert void == [early, late]
    attempts.run_ended(branch, NO)
    assert attempts.run_started(uuid4(), again) == []
    assert attempts._failed.get(parallel) is None, "no run can take its place any more"
    attempts.run_ended(again, None)
    attempts.run_ended(retry, None)
    assert attempts._failed == {}
    assert attempts.number_of(again) == 2


def test_what_starts_before_a_restart_is_announced_is_of_the_old_attempt() -> None:
    """Hazard: a parallel branch's events carry the new attempt before the restart is told."""
    attempts = Attempts([])
    parent, failed, restart = uuid4(), uuid4(), uuid4()
    attempts.run_started(parent, None)
    attempts.run_started(failed, parent)
    attempts.text_delivered(failed, Counter())
    attempts.run_ended(failed, NO)
    assert attempts.run_started(restart, parent)
    assert (attempts.number_of(restart), attempts.number) == (2, 1)
    attempts.announced(restart)
    assert attempts.number == 2
    attempts.announced(uuid4())  # of a session that is over
    assert attempts.number == 2


def test_a_stream_in_the_run_that_is_left_early_has_not_failed() -> None:
    """Hazard: what the inner stream delivered is dropped when the next model starts."""
    inner, after = ScriptedChatModel(tokens=tokens(9)), ScriptedChatModel(tokens=["after "])

    def look(question: str) -> str:
        with stream(inner, question, maxsize=1) as inner_tokens:
            first = next(inner_tokens)
        return first + str(after.invoke(question).content)

    with stream(RunnableLambda(look), "?", select="event") as received:
        kinds = [event.kind for event in received]
    assert "restart" not in kinds
    assert received.statistics.attempts == 1
    assert received.text.startswith("t0 ")
    assert received.text.endswith("after ")
