"""`router.py`: `execute` as the reference document calls it, and as a target of `stream`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from queuestream import StreamHandler, stream
from tests.examples.programs import EXAMPLES, load, run, tokens_of

ANSWERS = {
    "general": "Good question. Let us think about it together.",
    "reports": "Revenue rose by four percent, costs by two.",
    "code": "The loop never ends, for nobody tells it to.",
}
QUESTIONS = [
    ("What's in the Q3 report?", "reports"),
    ("REVENUE, in q1!", "reports"),
    ("Why does this Python function hang?", "code"),
    ("Is there a bug in the code of the report?", "code"),
    ("How are you?", "general"),
    ("Qu'est-ce que c'est? 川", "general"),
    ("{report}", "reports"),
    ("", "general"),
]


@pytest.fixture(scope="module")
def router() -> Any:
    return load("router.py")


@pytest.mark.parametrize("query, name", QUESTIONS)
def test_a_question_takes_the_route_that_suits_best(router: Any, query: str, name: str) -> None:
    result, route, scores = router.execute(query)
    assert (result, route) == (ANSWERS[name], router.Route(name))
    assert scores[route.value] == max(scores.values())


def test_every_route_is_reached(router: Any) -> None:
    assert {name for _, name in QUESTIONS} == {route.value for route in router.Route}


@pytest.mark.parametrize("query", [query for query, _ in QUESTIONS])
def test_scores_are_shares(router: Any, query: str) -> None:
    scores = router.score(query)
    assert set(scores) == {route.value for route in router.Route}
    assert all(0 < score < 1 for score in scores.values())
    assert sum(scores.values()) == pytest.approx(1)


def test_a_question_that_fits_no_route_has_equal_scores(router: Any) -> None:
    """It is answered all the same; its confidence says that nothing spoke for the route."""
    _, route, scores = router.execute("Tell me of the sea.")
    assert route is router.Route.GENERAL
    assert list(scores.values()) == pytest.approx([1 / 3] * 3)


def test_every_word_that_a_question_shares_adds_to_the_confidence(router: Any) -> None:
    some, more = (router.score(query)["code"] for query in ("a bug", "a bug in Python"))
    assert 1 / 3 < some < more


def test_execute_passes_all_callbacks_on(router: Any) -> None:
    heard: tuple[list[str], ...] = ([], [], [])
    handlers = [StreamHandler(on_token=each.append) for each in heard]
    result, _, _ = router.execute("What's in the Q3 report?", callbacks=handlers)
    assert list(heard) == [tokens_of(result)] * 3


@pytest.mark.parametrize("query, name", QUESTIONS[:1] + QUESTIONS[2:5])
def test_a_stream_of_execute_has_the_triple_as_result(router: Any, query: str, name: str) -> None:
    with stream(router.execute, query) as tokens:
        assert list(tokens) == tokens_of(ANSWERS[name])
    assert tokens.result == router.execute(query)
    assert tokens.result[1] is router.Route(name)


def test_a_stream_of_execute_serves_a_loop(router: Any) -> None:
    async def ask() -> tuple[list[str], Any]:
        async with stream(router.execute, "A bug?") as tokens:
            return [token async for token in tokens], tokens.result

    heard, (result, route, _) = asyncio.run(ask())
    assert (heard, route.value) == (tokens_of(result), "code")


def test_the_router_is_a_program() -> None:
    assert run(EXAMPLES / "router.py") == (
        f"{ANSWERS['reports']}\nRoute used: reports\nConfidence: 78.70%\n\n"
        f"{ANSWERS['code']}\nRoute used: code\nConfidence: 78.70%\n"
    )
