"""`console.py`: tokens on the screen as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from queuestream.demo import PASSAGE
from tests.examples.programs import EXAMPLES, play, run, tokens_of

if TYPE_CHECKING:
    import pytest


def test_a_token_is_printed_before_the_next_one_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An `invoke` that does not stream makes all of them first."""
    play("console.py", monkeypatch, pause="|")
    as_it_comes = "".join(f"|{token}" for token in tokens_of(PASSAGE))
    assert capsys.readouterr().out.startswith(as_it_comes)


def test_the_answer_is_shown_once() -> None:
    assert run(EXAMPLES / "console.py") == f"{PASSAGE}({len(PASSAGE.split())} words)\n"
