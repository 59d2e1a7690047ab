"""The README's two commands, and CI's."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def readme_commands() -> tuple[str, str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    demo, tests, *_ = re.findall(r"^```console\n(.+)\n```$", readme, re.MULTILINE)
    return demo, tests


def test_ci_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    _, tests = readme_commands()
    assert script[-1] == tests
    assert tests.endswith("tox")


def test_the_first_command_runs_the_demo() -> None:
    demo, _ = readme_commands()
    assert demo.endswith("pip install . && .venv/bin/queuestream demo")


def test_cis_script_is_an_executable_program_of_bash() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
    checked = subprocess.run(["bash", "-n", script], capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, b"")


@pytest.mark.parametrize(
    "name",
    ["lint", "typing", "py310", "py314", "langchain-min", "stress", "docs", "demo", "package"],
)
def test_tox_without_arguments_runs(name: str) -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    assert name in tox["tox"]["env_list"].split(", ")
