"""End to end: ``ChatOpenAI`` against a provider on loopback that streams as fast as it can.

Each number is the wall time of a whole call, from the request to the last token, divided by
its tokens: OpenAI's client, httpx and LangChain are in it on both sides.  Bare ``.stream()``
and ``.astream()`` stand beside this package.  Each call opens a connection.
"""

from __future__ import annotations

from typing import Any

from benchmarks.burst import take_all
from benchmarks.harness import Case, Series, Sizes, absence_of, import_quietly, measure
from benchmarks.loopback import provider, texts_of_answer
from benchmarks.ways import WAYS

__all__ = ["run"]

NAMES = (
    "model.stream",
    "queuestream: thread -> for",
    "model.astream",
    "queuestream: task -> async for",
)
MAXSIZE = 256


def run(sizes: Sizes, rounds: int) -> list[Series]:
    """Measure each way with the real client."""
    count = sizes.http_tokens
    ways = [way for name in NAMES for way in WAYS if way.name == name]
    if missing := absence_of("langchain_openai"):
        return [Series(way.name, "us a token", missing=missing) for way in ways]
    with provider(count) as url:
        model: Any = import_quietly("langchain_openai").ChatOpenAI(
            model="m", base_url=url, api_key="none", max_retries=0
        )
        expected = texts_of_answer(count)
        cases = [Case(way.name, take_all(way, model, MAXSIZE), expected, way.place) for way in ways]
        return measure(cases, rounds=rounds, units=count, unit="us a token")
