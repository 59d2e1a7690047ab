"""Streams at a provider's pace: what a token costs then, and how late it comes.

CPU: so many runs, each in a thread and with a token every 20 ms, iterated on one asyncio
loop.  A thousand have one every 200 ms: all together they say what a hundred do, and more
than that no pace can be kept at.  Each number is the CPU time of the process while the tokens
flow, divided by the tokens.  The sleep of the threads is none of it; their waking up is, and
LangChain's own work: the same runs with an idle handler and no consumer show how much that is.
Neither starts nor ends of runs are in it, which wait for the clock.

Latency: one run with a token every 20 ms.  A number is the time from the moment at which
LangChain hands a token to the callbacks until the consumer has it: the median, and the 99th
percentile, of a round.  (With 5 ms all is a fifth faster, since caches are warm.)
"""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import BaseCallbackHandler

from benchmarks.harness import Case, Series, Sizes, Stopwatch, alternate, measure
from benchmarks.sources import IdleHandler, PacedModel, Timetable, chunks_of, texts_of
from benchmarks.ways import CALL_SOON, JANUS, THREAD_ASYNC_FOR

if TYPE_CHECKING:
    from benchmarks.ways import Way

__all__ = ["run"]

PACE = 0.020
MOST_A_SECOND = 5_000
MAXSIZE = 256
IDLE = "no consumer"
OURS = THREAD_ASYNC_FOR


def run(sizes: Sizes, rounds: int) -> list[Series]:
    """Measure the CPU time for each number of streams, then the latency."""
    found: list[Series] = []
    for streams, tokens in sizes.paced:
        found += measure(
            cpu_cases(streams, tokens),
            rounds=rounds,
            units=streams * tokens,
            unit="us of CPU a token",
            clock=time.process_time,
        )
    return found + latencies(sizes.latency_tokens, rounds)


# -- CPU -----------------------------------------------------------------------------------------


def cpu_cases(streams: int, count: int) -> list[Case]:
    """Return all cases, for so many streams of so many tokens."""
    texts = [texts_of(count, mark) for mark in "abc"]  # neighbours differ
    said = [texts[number % len(texts)] for number in range(streams)]
    return [
        Case(f"{IDLE}, {streams} streams", partial(_produce_only, said), said),
        *(
            Case(
                f"{way.name}, {streams} streams",
                partial(_consume, way, said),
                said,
                "asyncio",
                floor=f"{IDLE}, {streams} streams",
            )
            for way in (OURS, JANUS, CALL_SOON)
        ),
    ]


def _models(said: list[list[str]]) -> tuple[Timetable, list[Any]]:
    pace = max(PACE, len(said) / MOST_A_SECOND)
    plan = Timetable(len(said), pace, len(said[0]))
    chunks = {texts[0]: chunks_of(texts) for texts in said}
    models: list[Any] = [
        PacedModel(chunks=chunks[texts[0]], timetable=plan, number=number)
        for number, texts in enumerate(said)
    ]
    return plan, models


class _Countdown:
    """Stops the watch at the last token of all streams."""

    def __init__(self, watch: Stopwatch, said: list[list[str]]) -> None:
        self._watch = watch
        self._left = sum(map(len, said))
        self._lock = threading.Lock()

    def note(self) -> None:
        """A token was received."""
        with self._lock:
            self._left -= 1
            if not self._left:
                self._watch.stop()


async def _consume(way: Way, said: list[list[str]], watch: Stopwatch) -> list[list[str]]:
    countdown = _Countdown(watch, said)
    plan, models = _models(said)

    async def consume(model: Any) -> list[str]:
        received: list[str] = []
        async with way.open(model, MAXSIZE) as tokens:
            async for token in tokens:
                received.append(token)
                countdown.note()
        return received

    tasks: list[asyncio.Task[list[str]]] = []
    for model in models:
        tasks.append(asyncio.create_task(consume(model)))
        while len(plan.arrived) < len(tasks):  # one after the other
            await asyncio.sleep(0.0005)
    await asyncio.sleep(plan.fix())
    watch.start()
    return await asyncio.gather(*tasks)


class _Counter(IdleHandler):
    """As good as idle, but that the last token of all stops the watch."""

    def __init__(self, countdown: _Countdown) -> None:
        self._countdown = countdown

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        if token:
            self._countdown.note()


def _produce_only(said: list[list[str]], watch: Stopwatch) -> list[list[str]]:
    handler = _Counter(_Countdown(watch, said))
    plan, models = _models(said)
    answers = [""] * len(said)

    def produce(number: int, model: Any) -> None:
        answers[number] = model.invoke("Go", {"callbacks": [handler]}).text

    threads: list[threading.Thread] = []
    for number, model in enumerate(models):
        threads.append(threading.Thread(target=produce, args=(number, model)))
        threads[-1].start()
        while len(plan.arrived) < len(threads):
            time.sleep(0.0005)
    time.sleep(plan.fix())
    watch.start()
    for thread in threads:
        thread.join()
    return [[f"{word} " for word in answer.split()] for answer in answers]


# -- latency ---------------------------------------------------------------------------------------


class _Stamps(BaseCallbackHandler):
    """Notes when each token comes; before the handler that passes it on."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        if token:
            self.times.append(time.perf_counter())


def latencies(count: int, rounds: int) -> list[Series]:
    """Measure how late each token of one stream comes, this way and by ``call_soon``."""
    ways = (OURS, CALL_SOON)
    taken = alternate({way.name: partial(_latencies_once, way, count) for way in ways}, rounds)
    found: list[Series] = []
    for way in ways:
        for percent in (50, 99):
            series = Series(f"p{percent} of latency, {way.name}", "us")
            series.values = [_percentile(values, percent) for values in taken[way.name]]
            if percent == 50:
                pooled = sorted(value for values in taken[way.name] for value in values)
                series.curve = [
                    (_percentile(pooled, tenths / 10), tenths / 10) for tenths in range(5, 1000, 5)
                ]
            found.append(series)
    return found


def _percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _latencies_once(way: Way, count: int) -> list[float]:
    texts = texts_of(count)
    stamps = _Stamps()
    watch = Stopwatch()

    async def consume() -> tuple[list[str], list[float]]:
        received: list[str] = []
        times: list[float] = []
        plan = Timetable(1, PACE, count)
        # Those of a config come before ours; those of a model's constructor would come after.
        model = PacedModel.of(texts, timetable=plan).with_config(callbacks=[stamps])
        plan.fix()
        with watch:
            async with way.open(model, MAXSIZE) as tokens:
                async for token in tokens:
                    times.append(time.perf_counter())
                    received.append(token)
        return received, times

    received, times = asyncio.run(consume())
    if received != texts:
        raise AssertionError(f"{way.name} did not receive every token once, in order")
    return [(got - put) * 1e6 for put, got in zip(stamps.times, times, strict=True)]
