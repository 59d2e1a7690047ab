"""Run the command line as a user does, as a process of its own, or quicker, in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Call", "Outcome", "launch", "queuestream", "read_until"]


class Outcome(NamedTuple):
    """What a command line came to, without a process of its own."""

    code: int
    out: str
    err: str


class Call(Protocol):
    """The fixture `call`: run `queuestream.cli.main` in this process."""

    def __call__(self, *arguments: str) -> Outcome: ...


# A parent that ignores SIGINT (a shell's background job) hands that down; a terminal does not.
_MAIN = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from queuestream.cli import main; sys.path.pop(0); sys.exit(main())"
)


def _environment(extra: dict[str, str]) -> dict[str, str]:
    unbuffered = {"PYTHONUNBUFFERED": "", "PYTHONIOENCODING": "utf-8"}
    return {**os.environ, "COLUMNS": "80", **unbuffered, **extra}


def queuestream(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``queuestream`` to its end."""
    return subprocess.run(
        [sys.executable, "-c", _MAIN, *arguments],
        cwd=cwd,
        env=_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=50,
        check=False,
    )


@contextmanager
def launch(*arguments: str, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``queuestream`` and see to it that it does not outlive the test."""
    with subprocess.Popen(
        [sys.executable, "-c", _MAIN, *arguments],
        cwd=cwd,
        env=_environment({}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(output: IO[bytes], text: str) -> str:
    """Block until the process has written `text`; return all that it wrote so far."""
    seen = b""
    while text.encode() not in seen:
        more = os.read(output.fileno(), 4096)
        assert more, f"the process ended without {text!r}, having written {seen!r}"
        seen += more
    return seen.decode()
