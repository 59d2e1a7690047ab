"""Run the examples: as programs of their own, or in this process, to look at what they do."""

from __future__ import annotations

import runpy
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from queuestream.demo import DemoChatModel

if TYPE_CHECKING:
    import pytest

__all__ = ["EXAMPLES", "ROOT", "load", "play", "run", "tokens_of"]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@cache
def run(*command: str | Path) -> str:
    """Run a program to its end, once for all tests; answers what it printed."""
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def load(name: str) -> Any:
    """Import an example, without the part that is for a program only."""
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / name), run_name=name))


def play(name: str, monkeypatch: pytest.MonkeyPatch, *, pause: str = "") -> None:
    """Run an example in this process, with ``pause`` printed wherever it would sleep."""
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", lambda _seconds: print(pause, end=""))
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def tokens_of(passage: str) -> list[str]:
    """The tokens in which the demo model says something."""
    chunks = DemoChatModel(passage=passage, pace=0).stream("Say it.")
    return [str(chunk.text) for chunk in chunks if chunk.text]
