"""A burst: the model gives all its tokens at once, and a loop takes them.

Each number is the wall time of a whole run, from the call to the last token, divided by its
tokens.  Two cases have no consumer and are the floors: ``invoke`` and ``ainvoke`` with a
handler that does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.harness import Case, Series, Sizes, Stopwatch, measure
from benchmarks.sources import AsyncIdleHandler, IdleHandler, ReadyModel, texts_of
from benchmarks.ways import WAYS, Way

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AINVOKE", "INVOKE", "cases", "run"]

INVOKE = "invoke, idle handler"
AINVOKE = "ainvoke, idle handler"


def run(sizes: Sizes, rounds: int) -> list[Series]:
    """Measure each way, and the floors."""
    count = sizes.burst_tokens
    rounds *= sizes.rounds_of_short_parts
    return measure(cases(count), rounds=rounds, units=count, unit="us a token")


def cases(count: int) -> list[Case]:
    """Return all cases, for so many tokens."""
    texts = texts_of(count)
    whole = "".join(texts)
    model = ReadyModel.of(texts)
    streaming = ReadyModel.of(texts, streaming=True)

    def invoke(watch: Stopwatch) -> str:
        with watch:
            answer = model.invoke("Go", {"callbacks": [IdleHandler()]})
        return str(answer.text)

    async def ainvoke(watch: Stopwatch) -> str:
        with watch:
            answer = await model.ainvoke("Go", {"callbacks": [AsyncIdleHandler()]})
        return str(answer.text)

    floors = [Case(INVOKE, invoke, whole), Case(AINVOKE, ainvoke, whole, "asyncio")]
    return floors + [
        Case(
            way.named(maxsize),
            take_all(way, streaming if way.sets_streaming else model, maxsize),
            texts,
            way.place,
            way.needs,
            INVOKE if way.calls == "invoke" else AINVOKE,
        )
        for way in WAYS
        for maxsize in way.sizes
    ]


def take_all(way: Way, model: Any, maxsize: int) -> Callable[[Stopwatch], Any]:
    """Return a function that iterates a model's tokens in one way."""

    def take(watch: Stopwatch) -> list[str]:
        received: list[str] = []
        with watch, way.open(model, maxsize) as tokens:
            for token in tokens:
                received.append(token)
        return received

    async def take_in_task(watch: Stopwatch) -> list[str]:
        received: list[str] = []
        with watch:
            async with way.open(model, maxsize) as tokens:
                async for token in tokens:
                    received.append(token)
        return received

    return take if way.place == "thread" else take_in_task
