"""Places to wait in, and a view of who waits."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.mixed_queue.places import PLACES, Lines, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """Return a view of the lines of waiters, which sees the moment in which somebody lines up."""
    return Lines(monkeypatch)


@pytest.fixture
def open_place() -> Iterator[Callable[[str], Place]]:
    """Return a function that makes a place, by name; it is left when the test ends."""
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(Place(name))


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, open_place: Callable[[str], Place]) -> Place:
    """Run a test at each place: a plain thread, and each of the loops in a thread of its own."""
    return open_place(request.param)


@pytest.fixture(params=PLACES)
def other_place(request: pytest.FixtureRequest, open_place: Callable[[str], Place]) -> Place:
    """Return a place for the other end."""
    return open_place(request.param)
