"""Each example is a program that runs."""

from __future__ import annotations

import re

import pytest

from queuestream.demo import PASSAGE
from tests.examples.programs import EXAMPLES, ROOT, run

SAYS = {
    "script.py": PASSAGE,
    "asyncio_program.py": "quick: 130 tokens\nslow: 130 tokens\n",
    "any_callable.py": "\nEnough after ",
    "console.py": f"{PASSAGE}(",
    "custom_handler.py": "A stream is water that knows where it is going.\nCompleted in ",
    "events.py": "20 tokens in 2 attempts; the answer: 'A stream is water that knows where",
    "generator_or_queue.py": "A function that calls the model",
    "router.py": "Route used: reports\nConfidence: 78.70%\n",
    "several_handlers.py": "\nmetrics: 10 tokens, 47 characters\n",
    "token_statistics.py": "A stream is water that knows where it is going.\n[",
    "ui_buffer.py": f"{PASSAGE}[Response complete]\n",
}


def test_each_example_has_its_test_and_its_line_in_the_readme() -> None:
    """Those that need a framework are run in the environments that have it."""
    programs = {path.name for path in EXAMPLES.glob("*.py")}
    elsewhere = {
        name
        for folder in ("ui", "web", "relay")
        for path in (ROOT / "tests" / folder).glob("test_*.py")
        for name in re.findall(r'"(\w+\.py)"', path.read_text(encoding="utf-8"))
    }
    assert programs == {*SAYS, *(programs & elsewhere)}
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert programs == set(re.findall(r"^\| `(\w+\.py)`", readme, re.MULTILINE))


@pytest.mark.parametrize("name", SAYS)
def test_an_example_says_what_it_should(name: str) -> None:
    assert SAYS[name] in run(EXAMPLES / name)
