"""What ``--thin`` keeps: a part that leaves out no test function and no word of an id."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.thinning import Thinning, thinned

MATRIX = {
    f"test_it[{producer}-{consumer}-{size}]": f"{producer}-{consumer}-{size}"
    for producer, consumer, size in itertools.product(
        ("thread", "task", "background"), ("for", "asyncio", "uvloop", "trio"), ("1", "3", "256")
    )
}


@pytest.mark.parametrize("share", [2, 4, 1_000])
def test_every_word_is_kept(share: int) -> None:
    """A lot that leaves out trio, say: what breaks only there is not noticed."""
    kept = thinned(MATRIX, share, seed=0)
    words = {word for name in kept for word in MATRIX[name].split("-")}
    assert words == {word for ids in MATRIX.values() for word in ids.split("-")}


@pytest.mark.parametrize("share, count", [(2, 18), (4, 9), (5, 8), (1, 36)])
def test_so_many_are_kept(share: int, count: int) -> None:
    assert len(thinned(MATRIX, share, seed=0)) == count


def test_the_lot_is_drawn_by_the_seed() -> None:
    assert thinned(MATRIX, 4, seed=1) == thinned(dict(reversed(MATRIX.items())), 4, seed=1)
    assert thinned(MATRIX, 4, seed=1) != thinned(MATRIX, 4, seed=2)


def test_cases_with_names_of_their_own_are_all_kept() -> None:
    names = {f"test_it[{name}]": name for name in ("put", "get", "shutdown")}
    assert thinned(names, 100, seed=0) == set(names)


def test_a_run_says_what_it_left_out(pytester: pytest.Pytester) -> None:
    """Somebody takes a part for the whole."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("a", "abcd")
        @pytest.mark.parametrize("b", "xy")
        def test_it(a, b):
            pass

        def test_alone():
            pass
        """
    )
    plugins = ("-p", "tests.support.thinning", "-p", "no:cacheprovider")
    assert pytester.runpytest(*plugins).parseoutcomes() == {"passed": 9}
    result = pytester.runpytest(*plugins, "--thin", "4", "--thin-seed", "7")
    assert result.parseoutcomes() == {"passed": 5, "deselected": 4}
    result.stdout.fnmatch_lines(["5 of 9 tests run: *one in 4 of *drawn with seed 7"])


def test_a_process_of_several_tells_the_one_that_reports() -> None:
    worker, reporting = Thinning(4, 7), Thinning(4, 7)
    worker.line = "5 of 9"
    config: Any = SimpleNamespace(workeroutput={})
    worker.pytest_sessionfinish(SimpleNamespace(config=config))
    reporting.pytest_testnodedown(SimpleNamespace(workeroutput=config.workeroutput))
    assert reporting.line == "5 of 9"
