"""The states of a stream as its consumer sees them, and what leads from one to another.

`TokenStream` is in one of them at a time, and its ``repr`` tells in which.  The table is what
the tests hold it to, and what the diagram in the docs is drawn from.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["TRANSITIONS", "State", "Transition"]

State = Literal["new", "running", "finished", "closed"]


class Transition(NamedTuple):
    """One step.

    Attributes:
        before: The state that it leads from.
        event: What happens.
        after: The state that it leads to.
    """

    before: State
    event: str
    after: State


TRANSITIONS: tuple[Transition, ...] = (
    Transition("new", "entered, or iterated", "running"),
    Transition("running", "a token is received", "running"),
    Transition("running", "the end is received", "finished"),
    Transition("new", "closed, or dropped", "closed"),
    Transition("running", "closed, or dropped", "closed"),
)
"""All of them: nothing leads out of ``finished`` and ``closed``."""
