"""The figures on the page that says how the promises are tested are those of the tests."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT
from tests.facts.test_moved_ground import MOVED
from tests.faults.test_runs import MOMENTS, MOMENTS_OF_THE_OUTERMOST
from tests.mixed_queue.test_interleavings import BOUNDARIES, HOLDERS
from tests.promises import test_promise_09_memory_is_bounded as memory
from tests.promises.leaving import ENDING
from tests.stopping.test_matrix import ALL_LOOPS, ALL_TARGETS
from tests.stress import test_schedules_of_streams as by_lot
from tests.support.consumers import PAIRINGS
from tests.support.stops import STOPS
from tests.support.streams import CASES, DEFAULT_CASES, STREAM_CASES
from tests.support.targets import TARGETS

PAGE = re.sub(r"\s+", " ", (ROOT / "docs" / "how-we-know.md").read_text(encoding="utf-8"))

FIGURES = {
    "There are {} combinations": [len(CASES)],
    "| {} combinations, with room": [len(CASES)],
    "at every token, on {} combinations": [len(CASES)],
    "promise 6 on the {} whose run": [len(STREAM_CASES)],
    "promise 9 on the {} of these": [len(PAIRINGS)],
    "promise 10 on the {} that": [len(DEFAULT_CASES)],
    "{} ways to stop, on {} kinds of targets": [len(STOPS), len(TARGETS)],
    "{} combinations, and {} of a chain": [len(ALL_TARGETS), len(ALL_LOOPS)],
    "{} operations at {} places": [len(HOLDERS), len(BOUNDARIES)],
    "raises, at {} moments": [len(MOMENTS + MOMENTS_OF_THE_OUTERMOST)],
    "{} programs, a process each": [len(ENDING)],
    "before and after {} streams": [memory.STREAMS * len(PAIRINGS)],
    "at each of their {} positions": [memory.LENGTH + 1],
    "{} in each run of the tests, {} seeds on each of {} pairings": [
        len(by_lot.SEEDS) * len(by_lot.PLACES),
        len(by_lot.SEEDS),
        len(by_lot.PLACES),
    ],
    "in {} ways": [len(MOVED)],
}
"""What the page says, and how many there are."""


@pytest.mark.parametrize("text", FIGURES)
def test_a_figure_of_the_page_is_that_of_the_tests(text: str) -> None:
    said = re.findall(re.escape(text).replace(r"\{\}", r"([\d,]+)"), PAGE)
    assert len(said) == 1, f"the page says {text!r} {len(said)} times"
    figures = said[0] if isinstance(said[0], tuple) else (said[0],)
    assert [int(figure.replace(",", "")) for figure in figures] == FIGURES[text]


def test_each_fact_has_a_test() -> None:
    files = [*(ROOT / "tests" / "facts").glob("*.py"), ROOT / "tests" / "relay" / "test_facts.py"]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    tested = {int(number) for number in re.findall(r"def test_fact_(\d+)_", source)}
    (said,) = re.findall(r"(\d+) facts\.", PAGE)
    assert tested == set(range(1, int(said) + 1))


def test_ci_soaks_the_part_that_the_page_says() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (tokens,) = re.findall(r"^export QUEUESTREAM_SOAK=.*?(\d+)", script, re.MULTILINE)
    assert "CI runs them, too, but soaks a twentieth of the tokens" in PAGE
    assert int(tokens) * 20 == memory.TEN_MILLION
    assert f"{memory.TEN_MILLION // 20:,} of a stream in each place" in PAGE
