"""Put three handlers on one run: console, file, metrics. One of them fails, the run goes on."""

import errno
import logging
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from langchain_core.callbacks import BaseCallbackHandler

from queuestream import StreamHandler
from queuestream.demo import DemoChatModel
from queuestream.handlers import create_safe_handler


def console_output(token: str) -> None:
    """Show one token at once."""
    print(token, end="", flush=True)


@dataclass
class FileLogger:
    """Writes what comes to a file, on a disk that is full for a moment."""

    file: TextIO

    def write(self, token: str) -> None:
        """Write one token."""
        if token.strip() == "knows":
            raise OSError(errno.ENOSPC, "No space left on device")
        self.file.write(token)


@dataclass
class Metrics:
    """Counts what comes."""

    tokens: int = 0
    characters: int = 0

    def track(self, token: str) -> None:
        """Count one token."""
        self.tokens += 1
        self.characters += len(token)


# What the safe handler catches is logged; the line break ends that of the console.
logging.basicConfig(stream=sys.stdout, format="\n%(levelname)s %(name)s: %(message)s")

model = DemoChatModel(passage="A stream is water that knows where it is going.", pace=0.01)
metrics = Metrics()
errors: list[Exception] = []

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "response_log.txt")
    with path.open("w", encoding="utf-8") as file:
        handlers: list[BaseCallbackHandler] = [
            StreamHandler(on_token=console_output),
            create_safe_handler(FileLogger(file).write, on_error=errors.append),
            StreamHandler(on_token=metrics.track),
        ]
        model.invoke("What is a stream?", {"callbacks": handlers})
    logged = path.read_text(encoding="utf-8")

print(f"\nmetrics: {metrics.tokens} tokens, {metrics.characters} characters")
print(f"file: {logged!r}, {len(errors)} error")
