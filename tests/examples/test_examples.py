"""Each example is a program that runs."""

from __future__ import annotations

import ast
import asyncio
import re
from types import CodeType, SimpleNamespace
from typing import Any, cast

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from queuestream import stream
from queuestream.demo import PASSAGE, DemoChatModel
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


def code_blocks() -> list[Any]:
    return [
        pytest.param(block, id=f"{page}-{number}")
        for page in ("README.md", "docs/index.md", "docs/items.md", "docs/handlers.md")
        for number, block in enumerate(
            re.findall(
                r"^```python\n(.*?)^```$",
                (ROOT / page).read_text("utf-8"),
                re.MULTILINE | re.DOTALL,
            )
        )
    ]


@pytest.mark.parametrize("block", code_blocks())
def test_the_code_in_the_pages_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With what a reader of the page has in mind: a chain, a model, a websocket, a screen."""
    sent: list[str] = []

    def show(token: str) -> None:
        print(token, end="", flush=True)

    async def send_text(text: str) -> None:
        sent.append(text)

    model = DemoChatModel(pace=0)
    names = {
        "stream": stream,
        "model": model,
        "chain": ChatPromptTemplate.from_template("{topic}") | model | StrOutputParser(),
        "websocket": SimpleNamespace(send_text=send_text),
        "show": show,
    }
    code = cast("CodeType", compile(block, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))
    outcome = eval(code, names)
    if outcome is not None:
        asyncio.run(outcome)
    if re.search(r"print|send_text|\bshow\b", block):
        assert PASSAGE in capsys.readouterr().out + "".join(sent)
