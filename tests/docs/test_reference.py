"""The reference has every public name, and no other."""

from __future__ import annotations

import re
from importlib import import_module

import pytest

from tests.docs.pages import ROOT

ELSEWHERE = {
    "queuestream.web.serve.MAX_BODY": "a default that create_app tells",
    "queuestream.web.serve.MAX_STREAMS": "the same",
    "queuestream.demo.PASSAGE": "what the demo model says",
    "queuestream.demo.model": "a demo model, for the command line",
    # one page has it under the name of the package
    "queuestream.handlers.QueueStreamHandler": "queuestream.QueueStreamHandler",
    "queuestream.handlers.StreamHandler": "queuestream.StreamHandler",
}
MODULES = [
    "queuestream",
    "queuestream.cli",
    "queuestream.demo",
    "queuestream.errors",
    "queuestream.handlers",
    "queuestream.relay",
    "queuestream.ui",
    "queuestream.web",
    "queuestream.web.serve",
]


def documented() -> set[str]:
    """What mkdocstrings is asked for, in all pages."""
    return {
        name
        for page in ROOT.glob("docs/**/*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    }


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference(module: str) -> None:
    try:
        names = {f"{module}.{name}" for name in import_module(module).__all__}
    except ImportError as error:
        pytest.skip(f"not installed here: {error}")
    shown = documented()
    if module not in shown:  # else all of it
        assert names - shown - set(ELSEWHERE) == set()


def test_what_is_excused_is_there() -> None:
    assert {name for name in ELSEWHERE if name in documented()} == set()
