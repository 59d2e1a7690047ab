"""Why the other tests of this folder are left out, where they are."""

from __future__ import annotations

import os

import pytest

from tests.relay.servers import MISSING


def test_relays_are_tested_in_an_environment_of_their_own() -> None:
    """In `tox -e relay` nothing may be missing."""
    if MISSING and os.environ.get("TOX_ENV_NAME") != "relay":
        pytest.skip(f"tests/relay is for `tox -e relay`; missing here: {', '.join(MISSING)}")
    assert MISSING == []
