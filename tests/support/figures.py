"""What the tests count while they run, added up over all processes, for the summary."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.schedule import explored

__all__ = ["pytest_configure"]


class _Figures:
    """The plugin of one run."""

    def __init__(self) -> None:
        self._of_others = 0

    def pytest_sessionfinish(self, session: Any) -> None:
        """In a process of ``-n``: hand on what was counted."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["explored"] = explored[0]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take it."""
        self._of_others += getattr(node, "workeroutput", {}).get("explored", 0)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Tell, so that a run in which nothing was explored is seen."""
        if count := explored[0] + self._of_others:
            terminalreporter.line(f"{count:,} schedules explored")


def pytest_configure(config: pytest.Config) -> None:
    """Add the plugin."""
    config.pluginmanager.register(_Figures(), "figures")
