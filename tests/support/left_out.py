"""Folders of tests that need packages which most environments don't have, by intent.

Such a folder's conftest.py names the packages, and leaves its tests out where one is missing.
One test of it runs everywhere: it says why the others are left out, and fails in the
environment that is made for them.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["check_left_out", "left_out", "missing"]


def missing(names: Iterable[str]) -> list[str]:
    """Return those of the packages that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def left_out(conftest: str, missing: list[str], but: tuple[str, ...] = ()) -> list[str]:
    """Return the files that the conftest.py at this path is to leave out (`collect_ignore`)."""
    if not missing:
        return []
    tests = Path(conftest).parent.glob("test_*.py")
    return [test.name for test in tests if test.name not in ("test_left_out.py", *but)]


def check_left_out(folder: str, missing: list[str], environment: str = "web") -> None:
    """Skip, and say why, where packages are missing; fail in the tox environment that has them."""
    if missing and os.environ.get("TOX_ENV_NAME") != environment:
        names = ", ".join(missing)
        pytest.skip(f"{folder} is for `tox -e {environment}`; not installed here: {names}")
    assert missing == []
