"""Many readers of one server: nothing is lost, and the figures are those of the docs' page."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import serve_load
from queuestream.demo import PASSAGE, DemoChatModel
from tests.support.models import ScriptedChatModel

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tests.serve.conftest import Served


def test_a_hundred_readers_lose_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_load.main(["--clients", "100"]) == 0
    said = capsys.readouterr().out
    assert "errors                          0" in said
    assert "tokens                     13,000" in said


def test_what_is_lost_is_noticed(serve: Callable[..., Served]) -> None:
    """The canary: a model that says something else, and one that breaks off."""
    other = serve(DemoChatModel(passage="something else", pace=0))
    broken = serve(ScriptedChatModel(tokens=[PASSAGE], failure=ValueError("x"), fail_at=1))
    for served in (other, broken):
        readings, _ = asyncio.run(serve_load._all(served.port, 2))
        assert all(reading.is_lost or reading.error for reading in readings)


def test_the_page_shows_every_figure() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text("utf-8")
    for field in fields(serve_load.Figures):
        assert f"| {field.name.replace('_', ' ')} |" in page
