"""Why the other tests of this folder are left out, where they are."""

from __future__ import annotations

from tests.support.left_out import check_left_out
from tests.ui.conftest import MISSING


def test_the_screens_are_tested_in_an_environment_of_their_own() -> None:
    """In `tox -e web` nothing may be missing."""
    check_left_out("tests/ui", MISSING)
