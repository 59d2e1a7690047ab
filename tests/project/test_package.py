"""The package as a whole: its doctests, and what importing it brings along."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

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
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_importing_the_package_imports_no_extra() -> None:
    program = f"import queuestream, sys; print([x for x in {EXTRAS!r} if x in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], encoding="utf-8") == "[]\n"
