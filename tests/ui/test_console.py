"""`console_stream` on a terminal, which is a pseudo-terminal, and elsewhere."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from rich.console import Console

from queuestream.ui import console_stream
from tests.support.models import ScriptedChatModel
from tests.ui.conftest import ROOT

MARKDOWN = "# Title\n\nSome **bold** text and `code`.\n\n- one\n- two\n"


def shown(model: Any, *, width: int = 60, height: int = 20, **options: Any) -> tuple[str, str]:
    """What a terminal got, raw; and what stays on it."""
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=True, width=width, height=height, color_system=None,
        legacy_windows=False,
    )  # fmt: skip
    console_stream(model, "?", console=console, **options)
    raw = file.getvalue()
    return raw, raw.rpartition("\x1b[2K")[2]


def test_a_terminal_keeps_the_whole_answer_as_markdown_and_the_statistics() -> None:
    raw, kept = shown(ScriptedChatModel(tokens=[MARKDOWN[:10], MARKDOWN[10:]]))
    assert "Title" in kept
    assert "**" not in kept
    assert " • one" in kept
    assert "done: 2 tokens in" in kept
    assert "typing: " in raw


def test_an_answer_longer_than_the_screen_is_shown_by_its_end_and_kept_whole() -> None:
    """A live view that is higher than the screen would leave its rows in the scrollback."""
    lines = [f"line {number}\n\n" for number in range(50)]
    raw, kept = shown(ScriptedChatModel(tokens=lines), height=12)
    assert all(f"line {number}" in kept for number in range(50))
    heights = [erased.count("\x1b[1A") for erased in re.findall(r"(?:\x1b\[1A\x1b\[2K)+", raw)]
    assert heights
    assert max(heights) < 12


def test_text_that_is_no_markdown_stays_as_it_is() -> None:
    _, kept = shown(ScriptedChatModel(tokens=["**as", " is** [red]"]), markdown=False)
    assert "**as is** [red]" in kept


def test_statistics_can_be_left_out() -> None:
    _, kept = shown(ScriptedChatModel(tokens=["a"]), statistics=False)
    assert kept.split() == ["a"]


def flaky() -> Any:
    model = ScriptedChatModel(
        tokens=["first ", "second"], failure=ConnectionError("dead"), fail_at=1, fail_calls=1
    )
    return model.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)


def test_a_restart_clears_a_terminal() -> None:
    _, kept = shown(flaky())
    assert kept.count("first second") == 1
    assert "2 attempts" in kept


def test_a_restart_is_marked_elsewhere() -> None:
    file = io.StringIO()
    console_stream(flaky(), "?", console=Console(file=file), overflow="block")
    assert file.getvalue() == "first \n[restarted]\nfirst second\n"


def test_an_error_of_the_run_comes_through_and_the_text_stays() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60)
    model = ScriptedChatModel(tokens=["said", "-"], failure=ConnectionError("dead"), fail_at=1)
    with pytest.raises(ConnectionError, match="dead"):
        console_stream(model, "?", console=console)
    _, _, kept = file.getvalue().rpartition("\x1b[?25h")
    assert "said" in kept
    assert "failed: " in kept


def test_the_result_is_the_targets() -> None:
    answer = console_stream(
        ScriptedChatModel(tokens=["a", "b"]), "?", console=Console(file=io.StringIO())
    )
    assert answer.content == "ab"


def test_plain_text_is_written_token_by_token() -> None:
    """Each is flushed before the model makes the next: a pipe's reader does not wait."""

    class File(io.StringIO):
        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    file, seen = File(), []

    def ask(question: str, callbacks: Any = None) -> None:
        model = ScriptedChatModel(tokens=["a", "b", "c"])
        for _ in model.stream(question, {"callbacks": callbacks}):
            seen.append(file.flushed)  # noqa: PERF401 - looked at meanwhile

    console_stream(ask, "?", console=Console(file=file), maxsize=1, overflow="block")
    assert file.flushed == "abc\n"
    assert seen[-1]


# A parent that ignores SIGINT (a shell's background job) hands that down; a terminal does not.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {root!r})
from queuestream.ui import console_stream
from tests.support.models import silent_model
try:
    console_stream(silent_model({tokens}), "?")
except KeyboardInterrupt:
    sys.exit(130)
"""


def program(*tokens: str) -> list[str]:
    said = ", ".join(map(repr, tokens))
    return [sys.executable, "-c", PROGRAM.format(root=str(ROOT), tokens=said)]


@pytest.mark.parametrize("tokens", [(), ("**some** text",)])
def test_ctrl_c_stops_a_silent_model_and_leaves_a_clean_terminal(tokens: tuple[str, ...]) -> None:
    """A real terminal: the cursor is back, the text stays, no traceback."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        program(*tokens), stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
    )  # fmt: skip
    os.close(theirs)
    wanted = b"some" if tokens else b"typing"
    out = b""
    deadline = time.monotonic() + 20
    try:
        while wanted not in out and time.monotonic() < deadline:
            if select.select([ours], [], [], 1)[0]:
                out += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
            if not more:
                break
            out += more
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    _, shown_again, kept = out.decode().rpartition("\x1b[?25h")
    assert shown_again
    assert "Traceback" not in kept
    assert "stopped: " in kept
    assert ("some" in kept) == bool(tokens)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="leave select= out"):
        console_stream(ScriptedChatModel(tokens=["a"]), "?", select="text")


def test_without_rich_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(ImportError, match=r'pip install "queuestream\[cli\]"'):
        console_stream(ScriptedChatModel(tokens=["a"]), "?")
