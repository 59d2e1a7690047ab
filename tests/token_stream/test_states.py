"""The table of states is what streams do, and what the docs draw."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from queuestream import stream
from queuestream._states import TRANSITIONS
from tests.support.models import ScriptedChatModel, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream import TokenStream

ROOT = Path(__file__).parents[2]


def drop(answer: TokenStream[str]) -> None:
    """What the collector does."""
    answer.__del__()


HOW: dict[str, Callable[[TokenStream[str]], object]] = {
    "entered, or iterated": type(stream(lambda callbacks: None, None)).__enter__,
    "a token is received": next,
    "the end is received": list,
    "closed, or dropped": drop,
}


def state_of(answer: TokenStream[str]) -> str:
    return repr(answer).rstrip(">").rpartition(", ")[2]


def brought_to(state: str) -> TokenStream[str]:
    """A stream in a state, by way of ``running``."""
    answer = stream(ScriptedChatModel(tokens=tokens(3)), "?")
    for before, after in (("new", "running"), ("running", state)):
        if state_of(answer) == before != state:
            (event,) = (step.event for step in TRANSITIONS if step[::2] == (before, after))
            HOW[event](answer)
    assert state_of(answer) == state
    return answer


@pytest.mark.parametrize("step", TRANSITIONS, ids=lambda step: f"{step.before}, {step.event}")
def test_each_step_is_taken(step: Any) -> None:
    answer = brought_to(step.before)
    HOW[step.event](answer)
    assert state_of(answer) == step.after
    answer.close()


@pytest.mark.parametrize("state", ["finished", "closed"])
@pytest.mark.parametrize("event", HOW)
def test_nothing_leads_out_of_an_end(state: str, event: str) -> None:
    assert state not in {step.before for step in TRANSITIONS}
    answer = brought_to(state)
    try:
        HOW[event](answer)
    except (StopIteration, RuntimeError):  # StreamClosedError is one
        pass
    assert state_of(answer) == state


@pytest.mark.parametrize("name", ["states.svg", "token.svg"])
def test_the_drawings_are_up_to_date(name: str) -> None:
    """`python tools/diagrams.py` draws them."""
    spec = importlib.util.spec_from_file_location("diagrams", ROOT / "tools" / "diagrams.py")
    assert spec is not None
    assert spec.loader is not None
    diagrams = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(diagrams)
    drawn = (ROOT / "docs" / "explanation" / name).read_text(encoding="utf-8")
    assert diagrams.DRAWINGS[name]() == drawn
