"""What janus's tests expect of the pytest that runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Know the mark that janus's tests carry; ours don't."""
    config.addinivalue_line("markers", "asyncio: a coroutine test of janus's")
