"""Where the interpreter can do without its lock, the tests are to run without it."""

from __future__ import annotations

import os
import sys
import sysconfig

import pytest


def test_the_lock_is_off_where_it_can_be() -> None:
    """Hazard: an extension module turns it on again, and what was to be seen is not seen."""
    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert os.environ.get("TOX_ENV_NAME") != "py314t"
        pytest.skip("this interpreter always has a GIL")
    assert not getattr(sys, "_is_gil_enabled", lambda: True)()


def test_a_lock_that_is_on_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary: an interpreter that can do without it, and has it; and one that cannot."""
    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": 1}.get)
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    with pytest.raises(AssertionError):
        test_the_lock_is_off_where_it_can_be()
    monkeypatch.setattr(sysconfig, "get_config_var", {"Py_GIL_DISABLED": 0}.get)
    monkeypatch.setenv("TOX_ENV_NAME", "py314t")
    with pytest.raises(AssertionError):
        test_the_lock_is_off_where_it_can_be()
