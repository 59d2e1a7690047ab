"""Ctrl-C, and a reader of the output that goes away (promises 4 and 8)."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.commands import launch, read_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and pipes")

WITHIN = 10.0  # seconds; the models would be silent for ever


@pytest.mark.parametrize(
    "target, options",
    [
        ("silent", ["--iterate=for"]),
        ("silent", ["--iterate=for", "--run-in=background"]),
        ("silent", ["--iterate=async-for"]),
        ("silent", ["--iterate=async-for", "--run-in=thread"]),
        ("silent", ["--iterate=async-for", "--run-in=background"]),
        ("silent_sync", ["--iterate=for"]),
        ("silent_sync", ["--iterate=for", "--run-in=background"]),
        ("silent_sync", ["--iterate=async-for"]),
        ("silent_sync", ["--iterate=async-for", "--run-in=thread"]),
        ("silent_sync", ["--iterate=async-for", "--run-in=background"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value),
)
def test_ctrl_c_stops_a_silent_model(folder: Path, target: str, options: list[str]) -> None:
    """The model says two words and then nothing; where it is only synchronous, it sits in a
    thread that no stop can reach.  What came is on the screen and the process ends.
    """
    with launch("run", *options, f"targets:{target}", "x", cwd=folder) as process:
        assert process.stdout is not None
        so_far = read_until(process.stdout, "one two ")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=WITHIN)
    assert so_far.endswith("one two ")
    assert rest.decode().startswith("\n-- stopped: 2 tokens in ")
    assert errors == b""
    assert process.returncode == 130


@pytest.mark.parametrize("loop", ["for", "async-for"])
def test_ctrl_c_stops_a_model_that_never_ends(folder: Path, loop: str) -> None:
    with launch("run", f"--iterate={loop}", "targets:endless", "x", cwd=folder) as process:
        assert process.stdout is not None
        so_far = read_until(process.stdout, "line\nline\n")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=WITHIN)
    assert "\n-- stopped: " in so_far + rest.decode()
    assert errors == b""
    assert process.returncode == 130


def test_ctrl_c_in_the_first_loop_does_not_start_the_second(folder: Path) -> None:
    with launch("run", "targets:silent", "x", cwd=folder) as process:
        assert process.stdout is not None
        read_until(process.stdout, "one two ")
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=WITHIN)
    assert b"# async for" not in rest
    assert process.returncode == 130


@pytest.mark.parametrize("loop", ["for", "async-for", "both"])
def test_a_closed_pipe_stops_the_run_quietly(folder: Path, loop: str) -> None:
    """As with ``| head -1``: the model would go on for ever."""
    with launch("run", f"--iterate={loop}", "targets:endless", "x", cwd=folder) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        read_until(process.stdout, "line\n")
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=WITHIN) == 0
    assert errors == b""
