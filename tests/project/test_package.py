"""The package as a whole: its doctests, and what importing it brings along."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys
from typing import Any

import pytest

import queuestream

MODULES = [
    "queuestream",
    *(
        module.name
        for module in pkgutil.walk_packages(queuestream.__path__, "queuestream.")
        if not module.name.endswith("__main__")
    ),
]

EXTRAS = ["langchain", "langgraph", "redis", "starlette", "gradio", "streamlit", "rich"]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name: str) -> None:
    if name.startswith("queuestream.relay."):
        pytest.importorskip("redis", reason="the relay's modules need the extra redis")
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_importing_the_package_imports_no_extra() -> None:
    program = f"import queuestream, sys; print([x for x in {EXTRAS!r} if x in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], encoding="utf-8") == "[]\n"


def test_importing_the_package_imports_nothing_of_langchain() -> None:
    """Hazard: half a second, for a program that may not stream anything."""
    program = (
        "import queuestream, queuestream.handlers, sys; "
        "print([x for x in sys.modules if x.startswith('langchain')])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], encoding="utf-8") == "[]\n"


@pytest.mark.parametrize("package", [queuestream, queuestream.handlers])
def test_each_public_name_is_there_when_it_is_asked_for(package: Any) -> None:
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
        assert name in dir(package)


@pytest.mark.parametrize("package", [queuestream, queuestream.handlers])
def test_a_name_that_there_is_not(package: Any) -> None:
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'strem'"):
        _ = package.strem


def test_modules_are_there_without_an_import_of_their_own() -> None:
    package: Any = queuestream
    assert package.errors.QueueStreamError.__name__ == "QueueStreamError"
