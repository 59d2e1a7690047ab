"""Why the other tests of this folder are left out, where they are."""

from __future__ import annotations

import os

import pytest

from tests.ui.conftest import MISSING


def test_the_screens_are_tested_in_an_environment_of_their_own() -> None:
    """In `tox -e web` nothing may be missing."""
    if MISSING and os.environ.get("TOX_ENV_NAME") != "web":
        pytest.skip(f"tests/ui is for `tox -e web`; not installed here: {', '.join(MISSING)}")
    assert MISSING == []
