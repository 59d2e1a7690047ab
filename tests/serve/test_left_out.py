"""Why the other tests of this folder are left out, where they are."""

from __future__ import annotations

from tests.serve.conftest import MISSING
from tests.support.left_out import check_left_out


def test_the_server_is_tested_in_an_environment_of_its_own() -> None:
    """In `tox -e web` nothing may be missing."""
    check_left_out("tests/serve", MISSING)
