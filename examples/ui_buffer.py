"""Keep a line up to date while the answer comes; leave the whole of it, however it ends."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

from langchain_core.outputs import ChatGenerationChunk

from queuestream import StreamHandler
from queuestream.demo import DemoChatModel

START_ANEW = "\r\x1b[K"  # to the start of the line, and erase what it showed


class UIBuffer(AbstractContextManager["UIBuffer"]):
    """One line on a terminal that shows the newest text; `finalize` leaves all of it.

    As a context manager it is finalized when the block ends, in whatever way. A character is
    taken to be one column wide.
    """

    def __init__(self) -> None:
        self.buffer: list[str] = []
        self.complete = False

    def add_token(self, token: str) -> None:
        """Take one more token and show it."""
        self.buffer.append(token)
        self.render()

    def render(self) -> None:
        """Draw the line over what it showed before."""
        # "\r" leads back to the start of one line only, so the text must not break or wrap.
        room = max(1, shutil.get_terminal_size().columns - len("Current: ") - 1)
        newest = "".join(self.buffer[-room:])  # a token has one character or more
        text = " ".join(newest.split())[-room:]
        print(f"{START_ANEW}Current: {text}", end="", flush=True)

    def finalize(self, error: BaseException | None = None) -> None:
        """Replace the line with the whole text and how it ended; idempotent."""
        if not self.complete:
            self.complete = True
            status = "complete" if error is None else f"broken off: {error!r}"
            print(f"{START_ANEW}{''.join(self.buffer).rstrip()}\n[Response {status}]")

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self.finalize(error)


class BreakingModel(DemoChatModel):
    """A model whose connection breaks in the middle of the answer."""

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        yield from islice(super()._stream(*args, **kwargs), 20)
        raise ConnectionError("the line went dead")


def show_answer(model: DemoChatModel) -> None:
    """Ask the model, with a line that is up to date meanwhile."""
    with UIBuffer() as ui:
        model.invoke("What is a stream?", {"callbacks": [StreamHandler(on_token=ui.add_token)]})


if __name__ == "__main__":
    show_answer(DemoChatModel(pace=0.002))
    try:
        show_answer(BreakingModel(pace=0.002))
    except ConnectionError:
        print("No answer this time.")
