"""`several_handlers.py` and `token_statistics.py`: ready-made handlers at work."""

from __future__ import annotations

import re
import runpy
from typing import TYPE_CHECKING

from tests.examples.programs import EXAMPLES, run, tokens_of

if TYPE_CHECKING:
    import pytest

SENTENCE = "A stream is water that knows where it is going."


def test_a_handler_that_fails_leaves_the_others_and_the_run_alone() -> None:
    """The failure is in the middle: what comes after it is on the console, and in the file."""
    out = run(EXAMPLES / "several_handlers.py")
    found = re.fullmatch(r"(.*)\n[A-Z]+ queuestream: (.*\n)( where .*)", out, re.DOTALL)
    assert found is not None
    before, log, after = found.groups()
    assert before == "A stream is water that knows"
    assert log.count("Traceback (most recent call last):") == 1
    assert log.endswith("No space left on device\n")
    assert after == (
        " where it is going.\n"
        "metrics: 10 tokens, 47 characters\n"
        "file: 'A stream is water that where it is going.', 1 error\n"
    )


def test_the_statistics_are_those_of_each_run(capsys: pytest.CaptureFixture[str]) -> None:
    handler = runpy.run_path(str(EXAMPLES / "token_statistics.py"))["handler"]
    assert handler.token_count == len(tokens_of(SENTENCE))
    first, last = re.findall(rf"{SENTENCE}\n\[(.+)\]\n", capsys.readouterr().out)
    assert last == handler.summary() != first
