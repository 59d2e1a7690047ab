"""`generator_or_queue.py`: what it says of both is so."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from tests.examples.programs import EXAMPLES, run, tokens_of

TOKENS = len(tokens_of("A stream is water that knows where it is going."))
PACE = 0.004
ROUNDED = 0.001


class Measured(NamedTuple):
    """One line of what the program prints."""

    tokens: int
    first: float
    done: float


@pytest.fixture(scope="module")
def measured() -> list[tuple[Measured, Measured]]:
    """For each comparison, what `.stream()` and `stream()` did."""
    lines = re.findall(
        r"stream\(\): (\d+), the first after ([\d.]+) s, done after ([\d.]+) s\n",
        run(EXAMPLES / "generator_or_queue.py"),
    )
    each = [Measured(int(tokens), float(first), float(done)) for tokens, first, done in lines]
    return list(zip(each[::2], each[1::2], strict=True))


def test_a_generator_has_the_tokens_of_the_last_step_and_a_queue_has_all(
    measured: list[tuple[Measured, Measured]],
) -> None:
    counts = [(generator.tokens, queue.tokens) for generator, queue in measured]
    assert counts == [(TOKENS, TOKENS), (1, TOKENS), (TOKENS, 2 * TOKENS), (TOKENS, TOKENS)]


def test_a_generator_is_silent_until_the_last_step(
    measured: list[tuple[Measured, Measured]],
) -> None:
    lump, steps = (generator for generator, _ in measured[1:3])
    assert lump.first >= TOKENS * PACE - ROUNDED
    assert steps.first >= (TOKENS + 1) * PACE - ROUNDED


def test_a_generator_waits_for_its_consumer(measured: list[tuple[Measured, Measured]]) -> None:
    """Each at its own pace, one after the other: that is the sum of both."""
    generator, _ = measured[3]
    assert generator.done >= 2 * TOKENS * PACE - ROUNDED
