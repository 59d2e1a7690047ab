"""`queuestream.ui`: what importing it brings along, and names that hide no package."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from queuestream import ui

SURFACES = {"gradio": "gradio_chat", "streamlit": "streamlit_stream", "console": "console_stream"}
PACKAGES = ["gradio", "streamlit", "rich"]


@pytest.mark.parametrize("module, name", SURFACES.items())
def test_a_surface_brings_neither_its_package_nor_the_other_surfaces(
    module: str, name: str
) -> None:
    program = (
        f"import sys; from queuestream.ui import {name}; "
        f"print([x for x in sys.modules if x in {PACKAGES!r} or x.startswith('queuestream.ui.')])"
    )
    said = subprocess.check_output([sys.executable, "-c", program], encoding="utf-8")
    assert sorted(eval(said)) == ["queuestream.ui._options", f"queuestream.ui.{module}"]


@pytest.mark.parametrize("module", ["gradio", "streamlit"])
def test_a_module_does_not_hide_its_namesake(module: str) -> None:
    program = (
        f"import queuestream.ui.{module} as ours, {module} as theirs; "
        f"assert ours.__name__ == 'queuestream.ui.{module}'; print(theirs.__name__)"
    )
    said = subprocess.check_output([sys.executable, "-c", program], encoding="utf-8")
    assert said == f"{module}\n"


def test_each_name_is_there_when_it_is_asked_for() -> None:
    for name in ui.__all__:
        assert getattr(ui, name).__name__ == name
    module: Any = ui.gradio
    assert module.gradio_chat is ui.gradio_chat
