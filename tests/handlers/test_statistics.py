"""`StatisticsStreamHandler`: how many tokens, how fast, by a clock that the test sets."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatResult, Generation, LLMResult

from queuestream.handlers import (
    RunStatistics,
    StatisticsStreamHandler,
    StreamHandler,
    create_safe_handler,
    statistics,
)
from tests.http.shapes import answer_of, client_of
from tests.support.gates import Gate, eventually, eventually_async
from tests.support.handlers import (
    INVOKE_AND_AINVOKE,
    PLAIN_AND_COROUTINE,
    WAYS,
    EchoChatModel,
    Received,
    Way,
    answer,
    gate_of,
    step,
    step_async,
)
from tests.support.models import (
    ScriptedChatModel,
    ScriptedLLM,
    WholeAnswerChatModel,
    tokens,
    usage,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import ChatGenerationChunk

    from tests.support.server import ReplayServer


class Clock:
    """A clock that goes on by itself at each look, or when the test says so."""

    def __init__(self, by_itself: float = 0.0) -> None:
        self.now = 1000.0
        self.by_itself = by_itself

    def __call__(self) -> float:
        now = self.now
        self.now += self.by_itself
        return now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of the module."""
    clock = Clock()
    monkeypatch.setattr(statistics, "monotonic", clock)
    return clock


class Ticking(ScriptedChatModel):
    """Lets a clock go on before each token, by so many seconds; and before its end."""

    clock: Any = None
    gaps: tuple[float, ...] = ()

    def _tick(self, number: int) -> None:
        self.clock.now += self.gaps[number]

    def _stream_script(self, messages: list[BaseMessage]) -> Iterator[ChatGenerationChunk]:
        for number, chunk in enumerate(super()._stream_script(messages)):
            self._tick(number)
            yield chunk
        self._tick(-1)

    async def _astream_script(
        self, messages: list[BaseMessage]
    ) -> AsyncIterator[ChatGenerationChunk]:
        number = 0
        async for chunk in super()._astream_script(messages):
            self._tick(number)
            number += 1
            yield chunk
        self._tick(-1)


def _stands_still(model: EchoChatModel) -> bool:
    return bool(gate_of(model).waiting) or not model.record.open


# -- one run ---------------------------------------------------------------------------------------


@INVOKE_AND_AINVOKE
@PLAIN_AND_COROUTINE
def test_of_one_run(clock: Clock, way: Way, *, is_async: bool) -> None:
    """Hazard: the end is that of the last token, the start that of the first; an empty one counts.

    It starts at 1000; tokens after 2 s, then gaps of 1, 4, 1 and 2 s, an empty one between; the
    end 10 s after the last.
    """
    received = Received(is_async=is_async)
    made: list[StatisticsStreamHandler] = []

    def make() -> StatisticsStreamHandler:
        made.append(StatisticsStreamHandler(received.on_token))
        return made[0]

    model = Ticking(tokens=["a", "b", "", "c", "d", "e"], gaps=(2, 1, 1, 3, 1, 2, 10), clock=clock)
    way.run(model, make)
    handler = made[0]
    clock.now += 1000  # what comes after the end is not of the run
    assert received.texts == ["a", "b", "c", "d", "e"]
    assert handler.token_count == 5
    assert handler.start_time == 1000
    assert handler.time_to_first_token == 2
    assert handler.tokens_per_second == 5 / 20
    assert handler.median_gap == 1.5
    assert handler.p95_gap == pytest.approx(4 * 0.85 + 2 * 0.15)
    assert (handler.prompt_tokens, handler.completion_tokens) == (None, None)
    assert handler.summary() == (
        "5 tokens in 20.00 s (0.2 tokens/s), first after 2.00 s, "
        "gap median 1500.0 ms, p95 3700.0 ms"
    )
    assert [run.duration for run in handler.runs] == [20]


def test_live(clock: Clock) -> None:
    """Hazard: all is said at the end only, or divided by zero at the start."""
    model = EchoChatModel(gate=Gate())
    handler = StatisticsStreamHandler(lambda _: None)
    thread = threading.Thread(target=model.invoke, args=("a", {"callbacks": [handler]}))
    thread.start()

    eventually(lambda: gate_of(model).waiting)
    assert (handler.token_count, handler.time_to_first_token) == (0, None)
    assert handler.tokens_per_second == 0.0  # no time has gone by
    assert handler.summary() == "0 tokens in 0.00 s (0.0 tokens/s)"
    clock.now += 2
    step(model)
    eventually(lambda: handler.token_count == 1)
    assert handler.time_to_first_token == 2
    assert handler.tokens_per_second == 1 / 2
    assert (handler.median_gap, handler.p95_gap) == (None, None)
    assert "gap" not in handler.summary()
    clock.now += 2
    assert handler.tokens_per_second == 1 / 4
    step(model)
    eventually(lambda: handler.token_count == 2)
    assert handler.median_gap == handler.p95_gap == 2
    gate_of(model).open()
    thread.join(10)


def test_before_the_first_run() -> None:
    handler = StatisticsStreamHandler(lambda _: None)
    assert handler.token_count == 0
    assert handler.start_time is None
    assert handler.time_to_first_token is None
    assert handler.tokens_per_second == 0.0
    assert (handler.median_gap, handler.p95_gap) == (None, None)
    assert (handler.prompt_tokens, handler.completion_tokens) == (None, None)
    assert handler.summary() == "no tokens yet"
    assert handler.runs == ()


@INVOKE_AND_AINVOKE
@pytest.mark.parametrize("fail_at", [0, 3])
def test_a_run_that_fails(clock: Clock, way: Way, fail_at: int) -> None:
    """Hazard: it goes on for ever, and gets slower and slower."""
    made: list[StatisticsStreamHandler] = []

    def make() -> StatisticsStreamHandler:
        made.append(StatisticsStreamHandler(lambda _: None))
        return made[0]

    model = Ticking(
        tokens=tokens(5), gaps=(1,) * 6, clock=clock, failure=ValueError("no"), fail_at=fail_at
    )
    with pytest.raises(ValueError, match="no"):
        way.run(model, make)
    clock.now += 1000
    assert made[0].token_count == fail_at
    assert made[0].tokens_per_second == (1 if fail_at else 0)
    assert made[0].runs[0].duration == fail_at


@pytest.mark.parametrize("before", [0, 2])
@PLAIN_AND_COROUTINE
def test_a_run_that_is_cancelled(clock: Clock, before: int, *, is_async: bool) -> None:
    """Hazard: as above; LangChain reports no end."""
    received = Received(is_async=is_async)
    model = EchoChatModel(gate=Gate(before))
    handlers: list[StatisticsStreamHandler] = []

    async def main() -> None:
        handlers.append(StatisticsStreamHandler(received.on_token))
        config: Any = {"callbacks": handlers}
        run = asyncio.create_task(model.ainvoke("a", config))
        await eventually_async(lambda: gate_of(model).waiting)
        clock.now += 4
        run.cancel()
        await asyncio.wait([run])
        await eventually_async(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    asyncio.run(main())
    clock.now += 1000
    assert handlers[0].token_count == before
    assert handlers[0].runs[0].duration == 4


def test_a_run_that_goes_on_in_other_tasks(clock: Clock) -> None:
    """Hazard: the end of the task that began it is taken for its end; it is counted as two."""
    handler = StatisticsStreamHandler(lambda _: None)

    async def main() -> None:
        chunks = EchoChatModel(name="scribe").astream("a", {"callbacks": [handler]})
        for _ in answer("a"):
            clock.now += 1
            await asyncio.create_task(anext(chunks))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        clock.now += 1
        assert handler.runs[0].duration == len(answer("a"))  # it goes on
        async for _ in chunks:
            pass

    asyncio.run(main())
    clock.now += 1000
    assert [(run.name, run.token_count, run.duration) for run in handler.runs] == [
        ("scribe", len(answer("a")), len(answer("a"))),
    ]
    assert handler.median_gap == 1


# -- several runs ----------------------------------------------------------------------------------


def test_each_run_anew(clock: Clock) -> None:
    """Hazard: the document's first run never ends, and counts are of all."""
    handler = StatisticsStreamHandler(lambda _: None)
    for prompt, count in (("first", 3), ("second", 5)):
        clock.now += 100
        model = Ticking(tokens=tokens(count), gaps=(1,) * 6, clock=clock, name=prompt)
        model.invoke(prompt, {"callbacks": [handler]})
        assert handler.token_count == count
        assert handler.time_to_first_token == 1
        assert handler.tokens_per_second == count / (count + 1)
    assert [(run.name, run.token_count) for run in handler.runs] == [("first", 3), ("second", 5)]
    assert all(isinstance(run, RunStatistics) for run in handler.runs)


def test_runs_at_the_same_time(clock: Clock) -> None:
    """Hazard: a gap is that between tokens of two runs.  The attributes are the later one's."""
    models = {prompt: EchoChatModel(gate=Gate(), name=prompt) for prompt in "ab"}
    handler = StatisticsStreamHandler(lambda _: None)

    async def main() -> None:
        runs: list[asyncio.Task[Any]] = []
        for prompt, model in models.items():
            config: Any = {"callbacks": [handler]}
            runs.append(asyncio.create_task(model.ainvoke(prompt, config)))
            await eventually_async(partial(getattr, gate_of(model), "waiting"))
            clock.now += 1
        for _ in answer("a"):
            for model in models.values():
                clock.now += 1
                await step_async(model)
                await eventually_async(partial(_stands_still, model))
        await asyncio.gather(*runs)

    asyncio.run(main())
    assert [run.name for run in handler.runs] == ["a", "b"]
    assert [run.median_gap for run in handler.runs] == [2, 2]
    assert [run.time_to_first_token for run in handler.runs] == [3, 3]
    assert handler.start_time == 1001


def test_a_hundred_runs_are_remembered() -> None:
    """Promise 9."""
    handler = StatisticsStreamHandler(lambda _: None)
    for number in range(103):
        ScriptedChatModel(tokens=["a"], name=str(number)).invoke("?", {"callbacks": [handler]})
    assert [run.name for run in handler.runs] == [str(number) for number in range(3, 103)]


def test_ten_thousand_gaps_are_remembered(clock: Clock) -> None:
    """Promise 9.  Hazard: the first ones are."""
    clock.by_itself = 1.0
    handler = StatisticsStreamHandler(lambda _: None)
    for _ in range(5_000):
        handler("a")
    clock.by_itself = 3.0
    handler("a")
    assert handler.median_gap == 1
    for _ in range(10_000):
        handler("a")
    assert handler.token_count == 15_001
    assert handler.median_gap == 3
    assert len(handler.runs[0]._gaps) == 10_000


@pytest.mark.parametrize(
    "gaps, median, p95",
    [
        ([2], 2, 2),
        ([1, 3], 2, 2.9),
        ([3, 1, 2], 2, 2.9),
        ([5, 1, 1, 1], 1, 4.4),
        (list(range(101)), 50, 95),
        ([*[1] * 95, *[9] * 6], 1, 9),
    ],
)
def test_quantiles(clock: Clock, gaps: list[float], median: float, p95: float) -> None:
    """Hazard: an index beyond the end, or one beside the right one."""
    handler = StatisticsStreamHandler(lambda _: None)
    handler("a")
    for gap in gaps:
        clock.now += gap
        handler("a")
    assert handler.median_gap == pytest.approx(median)
    assert handler.p95_gap == pytest.approx(p95)


# -- usage -----------------------------------------------------------------------------------------

USAGE = AIMessageChunk(content="", usage_metadata=usage(12, 5))


@INVOKE_AND_AINVOKE
@pytest.mark.parametrize(
    "model, expected",
    [
        (ScriptedChatModel(tokens=["a", "b", USAGE]), (12, 5)),
        (WholeAnswerChatModel(tokens=["a", USAGE]), (12, 5)),
        (ScriptedChatModel(tokens=["a", USAGE], disable_streaming=True), (12, 5)),
        (
            # As of Anthropic: the prompt's at the start, the answer's bit by bit.
            ScriptedChatModel(
                tokens=[
                    AIMessageChunk(content="a", usage_metadata=usage(12, 1)),
                    AIMessageChunk(content="b", usage_metadata=usage(0, 4)),
                ]
            ),
            (12, 5),
        ),
        (ScriptedChatModel(tokens=["a", "b"]), (None, None)),
        (ScriptedLLM(tokens=["a"]), (None, None)),
    ],
    ids=["last chunk", "whole", "disable_streaming", "in parts", "none", "old style"],
)
def test_usage(way: Way, model: Any, expected: tuple[int | None, int | None]) -> None:
    """Hazard: it is in the last chunk, which has no text, or in none at all."""
    made: list[StatisticsStreamHandler] = []

    def make() -> StatisticsStreamHandler:
        made.append(StatisticsStreamHandler(lambda _: None))
        return made[0]

    way.run(model, make)
    assert (made[0].prompt_tokens, made[0].completion_tokens) == expected
    summary = made[0].summary()
    if expected == (12, 5):
        assert summary.endswith(", 12 prompt tokens, 5 completion tokens")
    else:
        assert "prompt" not in summary
        assert "completion" not in summary


@pytest.mark.parametrize(
    "llm_output, expected",
    [
        ({"token_usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}, (7, 3)),
        ({"token_usage": {"prompt_tokens": 7}}, (7, None)),
        ({"token_usage": {}}, (None, None)),
        ({"token_usage": None}, (None, None)),
        ({}, (None, None)),
        (None, (None, None)),
    ],
)
def test_usage_in_the_old_style(llm_output: Any, expected: tuple[int | None, int | None]) -> None:
    """Hazard: it lies beside the messages, or is not what it should be."""
    handler = StatisticsStreamHandler(lambda _: None)
    handler.on_llm_new_token("a")
    handler.on_llm_end(LLMResult(generations=[[Generation(text="a")]], llm_output=llm_output))
    assert (handler.prompt_tokens, handler.completion_tokens) == expected


class OldOutput(WholeAnswerChatModel):
    """A chat model that reports its usage as ``llm_output`` only."""

    def _whole_answer(self) -> ChatResult:
        result = super()._whole_answer()
        result.llm_output = {"token_usage": {"prompt_tokens": 7, "completion_tokens": 3}}
        return result

    def _combine_llm_outputs(self, llm_outputs: list[Any]) -> Any:
        return llm_outputs[0]


@INVOKE_AND_AINVOKE
def test_usage_in_the_old_style_of_a_model(way: Way) -> None:
    made: list[StatisticsStreamHandler] = []

    def make() -> StatisticsStreamHandler:
        made.append(StatisticsStreamHandler(lambda _: None))
        return made[0]

    way.run(OldOutput(tokens=["a"]), make)
    assert (made[0].prompt_tokens, made[0].completion_tokens) == (7, 3)


@INVOKE_AND_AINVOKE
@pytest.mark.parametrize(
    "name, expected",
    [
        ("chat text", (3, 5)),
        ("chat whole", (3, 5)),
        ("chat without usage", (None, None)),
        ("responses text", (3, 5)),
        ("anthropic text", (3, 5)),
        ("anthropic whole", (3, 5)),
    ],
)
def test_usage_of_real_clients(
    server: ReplayServer, way: Way, name: str, expected: tuple[int | None, int | None]
) -> None:
    """Hazard: the shapes above are not those that integrations give."""
    made: list[StatisticsStreamHandler] = []

    def make() -> StatisticsStreamHandler:
        made.append(StatisticsStreamHandler(lambda _: None))
        return made[0]

    options = {"disable_streaming": True} if name.endswith("whole") else {}
    way.run(client_of(name, server.scenario(answer_of(name)), **options), make)
    assert (made[0].prompt_tokens, made[0].completion_tokens) == expected
    assert made[0].token_count >= 1


# -- fan-out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@PLAIN_AND_COROUTINE
@pytest.mark.parametrize("is_safe", [False, True])
def test_three_handlers_one_of_which_fails(
    way: Way, tmp_path: Path, *, is_async: bool, is_safe: bool
) -> None:
    """The issue's fan-out: console, file, metrics.  Hazard: one's error is the others'."""
    console, written = Received(is_async=is_async), tmp_path / "response_log.txt"
    full = "a3 "

    def write(token: str) -> None:
        if token == full:
            raise OSError("no space left")
        with written.open("a") as file:
            file.write(token)

    async def write_async(token: str) -> None:
        write(token)

    on_file = write_async if is_async else write
    metrics: list[StatisticsStreamHandler] = []

    def make() -> list[StreamHandler]:
        metrics.append(StatisticsStreamHandler(lambda _: None))
        return [
            StreamHandler(console.on_token),
            create_safe_handler(on_file) if is_safe else StreamHandler(on_file),
            metrics[0],
        ]

    way.run(EchoChatModel(), make)
    for prompt in way.prompts:
        assert console.of(prompt) == answer(prompt)
    assert sum(run.token_count for run in metrics[0].runs) == len(way.prompts) * len(answer("a"))
    expected = [token for prompt in way.prompts for token in answer(prompt) if token != full]
    assert sorted(written.read_text().split()) == sorted(token.strip() for token in expected)


def test_on_token_must_be_callable() -> None:
    with pytest.raises(TypeError, match="on_token must be a function"):
        StatisticsStreamHandler(None)  # type: ignore[arg-type]
