"""`ui_buffer.py`: what is on the screen while the answer comes, and what is left there."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from queuestream import StreamHandler
from queuestream.demo import PASSAGE, DemoChatModel
from tests.examples.programs import load, play, tokens_of

BROKEN = "[Response broken off: ConnectionError('the line went dead')]"


class Screen:
    """A terminal, as far as the program uses it."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows = [""]
        self.column = 0
        self.drawn: list[str] = []  # what the last row showed before each return to its start

    def feed(self, text: str) -> Screen:
        for part in re.findall(r"\x1b\[K|.", text, re.DOTALL):
            if part == "\r":
                self.drawn.append(self.rows[-1])
                self.column = 0
            elif part == "\x1b[K":
                self.rows[-1] = self.rows[-1][: self.column]
            elif part == "\n":
                self._break()
            else:
                if self.column == self.columns:
                    self._break()
                row = self.rows[-1]
                self.rows[-1] = row[: self.column] + part + row[self.column + 1 :]
                self.column += 1
        return self

    def _break(self) -> None:
        self.rows.append("")
        self.column = 0


@pytest.fixture
def ui_buffer() -> Any:
    return load("ui_buffer.py")


@pytest.mark.parametrize("columns", [80, 24])
def test_no_line_is_left_of_those_drawn_meanwhile(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line that breaks or wraps is not replaced by the next one: it stays above it."""
    monkeypatch.setenv("COLUMNS", str(columns))
    play("ui_buffer.py", monkeypatch)
    part = "".join(tokens_of(PASSAGE)[:20])
    left = f"{PASSAGE}[Response complete]\n{part}\n{BROKEN}\nNo answer this time.\n"
    screen = Screen(columns).feed(capsys.readouterr().out)
    assert screen.rows == Screen(columns).feed(left).rows
    assert max(map(len, screen.drawn)) == columns - 1


def test_the_line_ends_with_the_newest_text(
    ui_buffer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    ui, screen = ui_buffer.UIBuffer(), Screen(20)
    for token, shown in [
        ("one", "one"),
        (" two\n", "one two"),
        ("three", " two three"),
        (" four", "three four"),
    ]:
        ui.add_token(token)
        assert screen.feed(capsys.readouterr().out).rows == [f"Current: {shown}"]


def test_a_screen_too_narrow_shows_something(
    ui_buffer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "5")
    ui_buffer.UIBuffer().add_token("narrow")
    assert capsys.readouterr().out.endswith("Current: w")


def test_an_answer_is_finalized_once(ui_buffer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with ui_buffer.UIBuffer() as ui:
        ui.add_token("done")
        ui.finalize()
        assert ui.complete
    assert capsys.readouterr().out.count("[Response complete]") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConnectionError("down")])
def test_a_run_that_fails_before_its_first_token_is_finalized(
    error: BaseException, ui_buffer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)), ui_buffer.UIBuffer() as ui:
        raise error
    assert ui.complete
    assert Screen(80).feed(capsys.readouterr().out).rows == [
        "",
        f"[Response broken off: {error!r}]",
        "",
    ]


def test_a_buffer_serves_an_asynchronous_run(
    ui_buffer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async def ask() -> None:
        with ui_buffer.UIBuffer() as ui:
            model = DemoChatModel(pace=0)
            await model.ainvoke("A stream?", {"callbacks": [StreamHandler(ui.add_token)]})
        assert ui.buffer == tokens_of(PASSAGE)

    asyncio.run(ask())
    assert capsys.readouterr().out.endswith("always comes.\n[Response complete]\n")
