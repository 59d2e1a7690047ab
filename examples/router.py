"""Send each question to the chain that suits it, and hear that chain's tokens.

`execute(query, callbacks=[handler])` returns the answer, the route that was taken, and a score
for each route. Having a `callbacks` parameter that it passes on makes it a target for `stream()`.
"""

import re
from enum import Enum
from math import exp

from langchain_core.callbacks import Callbacks
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable

from queuestream import StreamHandler, stream
from queuestream.demo import DemoChatModel


class Route(Enum):
    """Where a question can go; the first one takes those that fit no other."""

    GENERAL = "general"
    REPORTS = "reports"
    CODE = "code"


WORDS: dict[Route, set[str]] = {
    Route.GENERAL: set(),
    Route.REPORTS: {"report", "reports", "quarter", "q1", "q2", "q3", "q4", "revenue", "costs"},
    Route.CODE: {"code", "python", "function", "class", "bug", "error", "exception", "test"},
}


def chain_of(task: str, passage: str) -> Runnable[dict[str, str], str]:
    """Make the chain of one route."""
    prompt = ChatPromptTemplate.from_messages([("system", task), ("human", "{query}")])
    return prompt | DemoChatModel(passage=passage, pace=0.005) | StrOutputParser()


CHAINS = {
    Route.GENERAL: chain_of("Chat.", "Good question. Let us think about it together."),
    Route.REPORTS: chain_of("Quote the reports.", "Revenue rose by four percent, costs by two."),
    Route.CODE: chain_of("Explain the code.", "The loop never ends, for nobody tells it to."),
}


def score(query: str) -> dict[str, float]:
    """Say how well each route suits, from 0 to 1, and 1 in all: a softmax of shared words."""
    words = set(re.findall(r"\w+", query.lower()))
    weights = {route.value: exp(len(words & WORDS[route])) for route in Route}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def execute(query: str, callbacks: Callbacks = None) -> tuple[str, Route, dict[str, float]]:
    """Answer by the route that suits best: the answer, the route, the scores by its `value`."""
    scores = score(query)
    route = max(Route, key=lambda each: scores[each.value])  # of equals, the first
    return CHAINS[route].invoke({"query": query}, {"callbacks": callbacks}), route, scores


def print_token(token: str) -> None:
    """Show one token at once."""
    print(token, end="", flush=True)


def main() -> None:
    """Hear the tokens both ways: pushed to a handler, pulled from a stream."""
    handler = StreamHandler(on_token=print_token)
    _, route, scores = execute("What's in the Q3 report?", callbacks=[handler])
    print(f"\nRoute used: {route.value}\nConfidence: {scores[route.value]:.2%}\n")

    with stream(execute, "Why does this Python function hang?") as tokens:
        for token in tokens:
            print_token(token)
    _, route, scores = tokens.result
    print(f"\nRoute used: {route.value}\nConfidence: {scores[route.value]:.2%}")


if __name__ == "__main__":
    main()
