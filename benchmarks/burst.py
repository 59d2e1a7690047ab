"""How much longer a burst of tokens takes through a loop than through a plain ``invoke``.

Prints JSON: ratios of median times to that of ``model.invoke`` with an idle handler.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from typing import TYPE_CHECKING

from queuestream import StreamHandler, stream
from queuestream.demo import DemoChatModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_core.runnables import RunnableConfig


def ignore(_token: str) -> None:
    """Do nothing: the cheapest handler that still makes the model stream."""


def measure(tokens: int, repeats: int) -> dict[str, float]:
    """Return the ratios, measured in turns so that a slow moment hits all alike."""
    model = DemoChatModel(passage="token " * tokens, pace=0)
    config: RunnableConfig = {"callbacks": [StreamHandler(ignore)]}

    def invoke() -> None:
        model.invoke("Go", config)

    def ainvoke() -> None:
        asyncio.run(model.ainvoke("Go", config))

    def thread_for() -> None:
        with stream(model, "Go", run_in="thread") as items:
            for _ in items:
                pass

    def task_async_for() -> None:
        async def consume() -> None:
            async with stream(model, "Go", run_in="task") as items:
                async for _ in items:
                    pass

        asyncio.run(consume())

    cases: list[Callable[[], None]] = [invoke, ainvoke, thread_for, task_async_for]
    times: dict[str, list[float]] = {case.__name__: [] for case in cases}
    for turn in range(repeats + 1):
        for case in cases:
            start = time.perf_counter()
            case()
            if turn:  # the first turn warms up
                times[case.__name__].append(time.perf_counter() - start)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    base = medians.pop("invoke")
    return {name: round(median / base, 3) for name, median in medians.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=5000, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="default: %(default)s")
    arguments = parser.parse_args()
    ratios = measure(arguments.tokens, arguments.repeats)
    print(json.dumps({"tokens": arguments.tokens, "ratio_to_invoke": ratios}, indent=2))


if __name__ == "__main__":
    main()
