"""A folder with a module of targets, as a user's own would be."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from queuestream.cli import main
from tests.cli.commands import Call, Outcome

if TYPE_CHECKING:
    from pathlib import Path

TARGETS = '''
import asyncio
import itertools
import threading

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda


def chunk(text):
    return ChatGenerationChunk(message=AIMessageChunk(content=text))


class Model(BaseChatModel):
    """Says what it is told to: "one two ", then nothing for an hour, for example."""

    tokens: list = ["one ", "two "]
    then: str = "end"

    @property
    def _llm_type(self):
        return "test"

    def _said(self):
        return itertools.cycle(self.tokens) if self.then == "repeat" else self.tokens

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        raise NotImplementedError

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        for token in self._said():
            yield chunk(token)
        if self.then == "silence":
            threading.Event().wait()
        if self.then == "error":
            raise ValueError("the model is out of words")

class AsyncModel(Model):
    async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
        for token in self._said():
            yield chunk(token)
            await asyncio.sleep(0)
        if self.then == "silence":
            await asyncio.Event().wait()
        if self.then == "error":
            raise ValueError("the model is out of words")


good = AsyncModel()
silent = AsyncModel(then="silence")
silent_sync = Model(then="silence")
failing = AsyncModel(then="error")
endless = AsyncModel(tokens=["line\\n"], then="repeat")
unprintable = AsyncModel(tokens=["snow \\u2603 \\ud800"])
chain = ChatPromptTemplate.from_template("{topic}") | good | StrOutputParser()
mute = RunnableLambda(lambda given: {"given": given})


def call(query, callbacks=None):
    return good.invoke(query, {"callbacks": callbacks})


async def acall(query, callbacks=None):
    return await good.ainvoke(query, {"callbacks": callbacks})


def deaf(query):
    return query


class Place:
    class Inner:
        model = good
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A current directory that has ``targets.py``."""
    (tmp_path / "targets.py").write_text(TARGETS, encoding="utf-8")
    (tmp_path / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    (tmp_path / "leaves.py").write_text("raise SystemExit('gone')\n", encoding="utf-8")
    (tmp_path / "lacking.py").write_text("import a_package_that_is_not\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run the command in this process, with `folder` as the current directory."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("targets", "broken", "leaves", "lacking"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def run(*arguments: str) -> Outcome:
        try:
            code = main(arguments)
        except SystemExit as leaving:  # argparse's way
            code = int(leaving.code or 0)
        printed = capfd.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run
