"""What is in a page's code blocks, and how each kind is proved.  Sybil finds the blocks.

=============  ===========================================================================
a block of     is proved by
=============  ===========================================================================
``python``     being run, in the namespace of its page; or, after a comment
               ``<!-- file: examples/... -->``, by being an excerpt of that file, which has
               a test of its own
``text``       being what the block before it printed
``console``    a look at each command: does it exist, are its arguments those it takes
``toml``,      being read by a parser
``js``
=============  ===========================================================================

A page has in mind what its readers have: a model, a chain, a web socket, a screen.  `READERS`
gives it to them; all else a page imports or makes itself.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from sybil import Document, Region
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from queuestream import cli, stream
from queuestream.demo import PASSAGE, DemoChatModel

# pytest's, on Python 3.10
tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    from sybil import Example

__all__ = ["PAGES", "ROOT", "SERVERS", "Blocks", "Missing", "excerpt_of", "read", "skip_for"]

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "examples" / "README.md"]
    if path.name != "CHANGELOG.md"
)

SERVERS: dict[str, str] = {}
"""The addresses of pages, and where what they speak of is; filled by a fixture."""
_ADDRESSES = ("redis://localhost:6379", "http://127.0.0.1:8000")

FROM_FILE = re.compile(r"<!-- file: (\S+) -->\n\s*\Z")


class Missing(Exception):  # noqa: N818 - an answer, not an error
    """A block needs a package that is not installed here."""


class Blocks:
    """The parser: each fenced block of a page, with what proves it.

    Attributes:
        kinds: How each language is proved.
    """

    def __init__(self) -> None:
        self.kinds: dict[str, Callable[[Example], None]] = {
            "python": _python,
            "text": _printed,
            "console": _commands,
            "toml": _toml,
            "js": _js,
        }

    def __call__(self, document: Document) -> Iterable[Region]:
        """Find the blocks of a page."""
        lexer = FencedCodeBlockLexer(
            r"[^\n]*", mapping={"language": "language", "source": "source"}
        )
        for region in lexer(document):
            region.parsed = region.lexemes["source"]
            region.evaluator = self._prove
            yield region

    def _prove(self, example: Example) -> None:
        language = example.region.lexemes["language"]
        if language not in self.kinds:
            raise AssertionError(
                f"{example.path}:{example.line}: nothing proves a block of {language!r}; "
                f"known are {', '.join(self.kinds)}"
            )
        self.kinds[language](example)


def read(page: str) -> Document:
    """Read a page, ready to be proved."""
    document = Document.parse(str(ROOT / page), Blocks())
    document.namespace.update(_readers())
    return document


# -- Python --------------------------------------------------------------------------------


def _readers() -> dict[str, Any]:
    sent: list[str] = []

    def show(token: str) -> None:
        print(token, end="", flush=True)

    async def send_text(text: str) -> None:
        sent.append(text)

    model = DemoChatModel(pace=0)
    urls = [SERVERS[address] for address in _ADDRESSES[:1] if address in SERVERS]
    return {
        "__name__": "page",
        "__sent__": sent,
        "stream": stream,
        "model": model,
        "chain": ChatPromptTemplate.from_template("{topic}") | model | StrOutputParser(),
        "question": "What is a stream?",
        "last_event_id": None,
        "graph": model,
        "urls": urls,
        "websocket": SimpleNamespace(send_text=send_text),
        "show": show,
    }


def _python(example: Example) -> None:
    source = str(example.parsed)
    if named := FROM_FILE.search(example.document.text[: example.start]):
        program = (ROOT / named[1]).read_text(encoding="utf-8")
        assert excerpt_of(source, program), f"{example.path}:{example.line}: not from {named[1]}"
        example.namespace["__said__"] = None
        return
    if absent := sorted(name for name in _imports(source) if not importlib.util.find_spec(name)):
        raise Missing(f"line {example.line} needs {', '.join(absent)}")
    for address in _ADDRESSES:
        if address in source:
            if address not in SERVERS:
                raise Missing(f"line {example.line} needs a server at {address}")
            source = source.replace(address, SERVERS[address])
    code = compile(
        "\n" * example.line + source,  # so that a traceback shows the page's own lines
        example.path,
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    printed = io.StringIO()
    sent: list[str] = example.namespace["__sent__"]
    sent.clear()
    with contextlib.redirect_stdout(printed):
        try:
            _run(code, example.namespace)
        except ImportError as error:
            if "which is not installed" in str(error):  # by ourselves, of an extra
                raise Missing(f"line {example.line}: {error}") from error
            raise
    said = example.namespace["__said__"] = printed.getvalue()
    if not _is_followed_by_output(example) and re.search(r"print|send_text|\bshow\b", source):
        assert PASSAGE in said + "".join(sent), f"{example.path}:{example.line}: said {said!r}"


def _run(code: CodeType, namespace: dict[str, Any]) -> None:
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, namespace))  # top-level await
    else:
        exec(code, namespace)


def _imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def excerpt_of(block: str, program: str) -> bool:
    """Whether a block is part of a program: its lines, in order, gaps marked by ``...``."""
    lines = [line.rstrip() for line in program.splitlines()]
    position = 0
    for part in re.split(r"^\s*\.\.\.\n", block, flags=re.MULTILINE):
        wanted = [line.rstrip() for line in part.strip("\n").splitlines()]
        while lines[position : position + len(wanted)] != wanted:
            position += 1
            if position >= len(lines):
                return False
        position += len(wanted)
    return True


# -- what was printed ------------------------------------------------------------------------


def _is_followed_by_output(example: Example) -> bool:
    return re.match(r"\n*```text\n", example.document.text[example.region.end :]) is not None


def _printed(example: Example) -> None:
    said = example.namespace.get("__said__")
    if said is None:  # of a file's excerpt, or of a command: those have tests of their own
        return
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(str(example.parsed), said, flags), said


# -- commands ---------------------------------------------------------------------------------


def _commands(example: Example) -> None:
    example.namespace["__said__"] = None
    joined = str(example.parsed).replace("\\\n", " ")
    for line in joined.splitlines():
        for command in re.split(r"&&|\|\||;|\|", line):
            words = shlex.split(command, comments=True)
            while words and re.fullmatch(r"\w+=\S*", words[0]):  # NAME=value, of the environment
                words.pop(0)
            if words:
                _command([words[0].removeprefix(".venv/bin/"), *words[1:]])


def _command(words: list[str]) -> None:
    name, *rest = words
    if name == "python" and rest[:2] == ["-m", "queuestream"]:
        name, rest = "queuestream", rest[2:]
    if name == "queuestream":
        _queuestream(rest)
    elif name == "pip":
        _pip(rest)
    elif name == "tox":
        _tox(rest)
    elif name in {"python", "python3", "py"}:
        _python_command(rest)
    elif name in {"uvicorn", "streamlit", "chainlit"}:
        _server(name, rest)
    else:
        assert name in {"cd", "curl", "git", "pre-commit", "pytest", "redis-server"}, (
            f"nobody knows the command {name}"
        )
        for word in rest:
            assert not word.startswith(("tests/", "docs/", "examples/")) or (ROOT / word).exists()


def _queuestream(arguments: list[str]) -> None:
    parser: argparse.ArgumentParser = cli._parser()
    try:
        parser.parse_args(arguments)
    except SystemExit as left:
        if left.code:
            raise AssertionError(f"queuestream does not take {arguments}") from left


def _project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found


def _pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    project = _project()
    extras = set(project["project"]["optional-dependencies"])
    for word, after in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--group":
            assert after in project["dependency-groups"]
        if wanted := re.fullmatch(r"(?:queuestream|\.)\[(.+)\]", word):
            assert set(wanted[1].split(",")) <= extras, f"there is no extra {wanted[1]}"


def _tox(arguments: list[str]) -> None:
    sections = set(
        re.findall(r"^\[testenv:(.+)\]$", (ROOT / "tox.ini").read_text("utf-8"), re.MULTILINE)
    )
    if arguments[:1] == ["-e"] and arguments[1] != "ENV":
        for name in arguments[1].split(","):
            assert name in sections or re.fullmatch(r"py3\d+t?", name), f"there is no env {name}"


def _python_command(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        module = arguments[1].replace(".", "/")
        assert (
            importlib.util.find_spec(arguments[1].partition(".")[0])
            or (ROOT / module).is_dir()
            or (ROOT / f"{module}.py").is_file()
        )
    else:
        assert (ROOT / arguments[0]).is_file(), f"there is no program {arguments[0]}"


def _server(name: str, arguments: list[str]) -> None:
    if name == "uvicorn":
        module, _, attribute = arguments[0].partition(":")
        folder = arguments[arguments.index("--app-dir") + 1] if "--app-dir" in arguments else ""
        program = (ROOT / folder / f"{module}.py").read_text(encoding="utf-8")
        assert re.search(rf"^{attribute}\b.* = ", program, re.MULTILINE)
    else:
        assert arguments[0] == "run"
        assert (ROOT / arguments[1]).is_file()


# -- the rest ---------------------------------------------------------------------------------


def _toml(example: Example) -> None:
    tomllib.loads(str(example.parsed))


def _js(example: Example) -> None:
    node = shutil.which("node")
    if node is None:
        raise Missing(f"line {example.line} needs node")
    checked = subprocess.run(
        [node, "--check", "--input-type=module", "-"],
        input=str(example.parsed), capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr


def skip_for(missing: list[Missing]) -> None:
    """Say what could not be proved here, if anything."""
    if missing:
        pytest.skip(f"not run here: {'; '.join(map(str, missing))}")
