"""``--thin N``: of each matrix of parameters, about one set in N; of the tests, all.

The suite has thousands of combinations of producer, consumer, loop and queue.  All are run
on the newest Python; on the others ``tox.ini`` asks for a part of them.
What is kept depends on the names of the tests and on ``--thin-seed`` alone, so that a run
can be repeated, and its summary says how many were left out:

- every test function, and every test without parameters;
- of each function's parameters, enough that every word of their ids occurs once
  (``for``, ``trio``, ``background``, ``janus``, ...), and then so many more, drawn by lot,
  that it is one in N.

Environments with different seeds draw different lots.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Thinning", "pytest_addoption", "pytest_configure", "thinned"]


def thinned(matrix: Mapping[str, str], share: int, seed: int) -> set[str]:
    """Choose from the matrix of one test function.

    Args:
        matrix: The parameters' ids by the names of the tests.
        share: One in so many is kept, and more where words would be missing.
        seed: Of the lot.

    Returns:
        The names that are kept.

    """
    names = sorted(matrix)
    random.Random(f"{seed} {names[0]}").shuffle(names)
    words = {name: set(matrix[name].split("-")) for name in names}
    missing = set().union(*words.values())
    kept: list[str] = []
    while missing:
        best = max(names, key=lambda name: len(words[name] & missing))
        kept.append(best)
        missing -= words[best]
    others = [name for name in names if name not in kept]
    most = -(-len(names) // share)
    return {*kept, *others[: max(0, most - len(kept))]}


class Thinning:
    """The plugin of one run."""

    def __init__(self, share: int, seed: int) -> None:
        self._share = share
        self._seed = seed
        self.line = ""
        """What was left out, for the summary."""

    @pytest.hookimpl(trylast=True)  # of what ``-m`` and ``-k`` have left
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Leave tests out."""
        matrices: dict[str, dict[str, str]] = {}
        for item in items:
            if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
                matrix = matrices.setdefault(item.nodeid.partition("[")[0], {})
                matrix[item.nodeid] = item.callspec.id
        kept = {
            name
            for matrix in matrices.values()
            for name in thinned(matrix, self._share, self._seed)
        }
        left_out = {name for matrix in matrices.values() for name in matrix} - kept
        before = len(items)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
        items[:] = [item for item in items if item.nodeid not in left_out]
        self.line = (
            f"{len(items):,} of {before:,} tests run: every function of them, and one in "
            f"{self._share} of the combinations of parameters, drawn with seed {self._seed}"
        )

    def pytest_sessionfinish(self, session: Any) -> None:
        """In a process of ``-n``: hand on what the summary says."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["thinning"] = self.line

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take it; all processes choose the same."""
        self.line = getattr(node, "workeroutput", {}).get("thinning", self.line)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what was left out, so that nobody takes a part for all."""
        terminalreporter.section("a part of each matrix (--thin)")
        terminalreporter.line(self.line)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("queuestream")
    group.addoption("--thin", type=int, default=1, metavar="N", help="one set in N; 1 is all")
    group.addoption("--thin-seed", type=int, default=0, metavar="SEED", help="of the lot")


def pytest_configure(config: pytest.Config) -> None:
    """Thin, if it is asked for."""
    share: Any = config.getoption("--thin")
    seed: Any = config.getoption("--thin-seed")
    if share > 1:
        config.pluginmanager.register(Thinning(share, seed), "thinning")
