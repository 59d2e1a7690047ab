"""`token_statistics.py`: ready-made handlers at work."""

from __future__ import annotations

import re
import runpy
from typing import TYPE_CHECKING

from tests.examples.programs import EXAMPLES, tokens_of

if TYPE_CHECKING:
    import pytest

SENTENCE = "A stream is water that knows where it is going."


def test_the_statistics_are_those_of_each_run(capsys: pytest.CaptureFixture[str]) -> None:
    handler = runpy.run_path(str(EXAMPLES / "token_statistics.py"))["handler"]
    assert handler.token_count == len(tokens_of(SENTENCE))
    first, last = re.findall(rf"{SENTENCE}\n\[(.+)\]\n", capsys.readouterr().out)
    assert last == handler.summary() != first
