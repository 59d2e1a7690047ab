"""Set LangChain's `.stream()`, a generator, beside `stream()`, which has a queue.

A generator runs when it is asked for the next token, in the caller's own thread, and yields what
the *last* step yields. That is enough for a model, or for a chain with one at its end, and a
consumer that keeps up: no thread, and nothing is made before it is asked for.

A queue stands between a run in a thread or task of its own and whoever takes the tokens. It is
worth that where the model is called inside a function, a tool or a graph node, where more steps
than the last are to be heard, and where the run should go on while the consumer is busy.
"""

import time
from collections.abc import Iterable
from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from queuestream import stream
from queuestream.demo import DemoChatModel

PACE = 0.004
model = DemoChatModel(passage="A stream is water that knows where it is going.", pace=PACE)

ask = ChatPromptTemplate.from_template("What is {thing}?") | model | StrOutputParser()
improve = ChatPromptTemplate.from_template("Improve this: {draft}") | model | StrOutputParser()


def answer(question: dict[str, str], config: RunnableConfig) -> str:
    """Call the model inside a function."""
    return ask.invoke(question, config)


def receive(how: str, tokens: Iterable[str], seconds: float = 0.0) -> None:
    """Take the tokens, each of which keeps the consumer busy for so many seconds."""
    started = time.perf_counter()
    times: list[float] = []
    for token in tokens:
        if token:  # .stream() marks the end with an empty one
            times.append(time.perf_counter() - started)
            time.sleep(seconds)
    total = time.perf_counter() - started
    print(f"  {how:>9}: {len(times)}, the first after {times[0]:.3f} s, done after {total:.3f} s")


def compare(what: str, target: Runnable[Any, str], seconds: float = 0.0) -> None:
    """Stream a target both ways."""
    print(what)
    receive(".stream()", target.stream({"thing": "a stream"}), seconds)
    with stream(target, {"thing": "a stream"}) as tokens:
        receive("stream()", tokens, seconds)


compare("A chain with the model at its end (a generator is enough):", ask)
compare("A function that calls the model (.stream() has one lump):", RunnableLambda(answer))
compare("Two steps (.stream() has the last one's):", {"draft": ask} | improve)
compare("A consumer as slow as the model (with a queue, both work at once):", ask, PACE)
