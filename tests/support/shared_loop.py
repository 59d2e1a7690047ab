"""The loop that background runs share, made anew for a test."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from queuestream import _background

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

__all__ = ["a_background_loop_of_its_own"]


@contextmanager
def a_background_loop_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the first background run of the block make a loop, and end that."""
    with monkeypatch.context() as patched:
        patched.setattr(_background, "_current", None)
        try:
            yield
        finally:
            if (made := _background._current) is not None:
                made.loop.call_soon_threadsafe(made.loop.stop)
