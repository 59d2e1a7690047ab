"""The test-suites that others wrote for queues like ours, with the queue replaced.

A suite is a list of `Case`: the peer's own tests, read from the peer's own files, in
which one import gives a module with another ``Queue`` in it.  Nothing else changes, so
that the same list over the peer's own queue shows that it is the queue that is tested.

The files are no part of this repository: CPython's lie in the standard library, janus's
in its source distribution, which pip downloads once and pytest's cache keeps.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import importlib.metadata
import importlib.util
import inspect
import queue
import subprocess
import sys
import tarfile
import tempfile
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import janus
import pytest

__all__ = [
    "Case",
    "QueueClass",
    "SuiteMissingError",
    "asyncio_cases",
    "face",
    "janus_cases",
    "queue_cases",
]

QueueClass = Callable[..., Any]


class SuiteMissingError(Exception):
    """The suite cannot be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class Case:
    """One test of a peer: its group (a test class, or the file) and its name therein."""

    group: str
    test: str
    run: Callable[[], None]

    @property
    def name(self) -> str:
        return f"{self.group}.{self.test}"


def face(make: Callable[[int], Any]) -> QueueClass:
    """A class ``Queue(maxsize=0)`` that is, but for its name, what ``make(maxsize)`` gives.

    The peers' tests ask for the class's name and set attributes, so both go through.
    """

    class Queue:
        def __new__(cls, maxsize: int = 0) -> Any:
            self = super().__new__(cls)
            object.__setattr__(self, "_face", make(maxsize))
            return self

        def __init__(self, maxsize: int = 0) -> None:
            """Made by ``__new__``: a subclass may set attributes before it calls this."""

        def __getattr__(self, name: str) -> Any:
            return getattr(self._face, name)

        def __setattr__(self, name: str, value: object) -> None:
            setattr(self._face, name, value)

    return Queue


# -- janus ---------------------------------------------------------------------------------


def janus_cases(queue_class: QueueClass, cache: Path) -> list[Case]:
    """Everything that janus tests, without its benchmarks.

    Raises:
        SuiteMissingError: If pip cannot download the source distribution.
    """
    tests = _janus_tests(cache)
    if isinstance(tests, SuiteMissingError):
        raise tests
    stand_in = _copy_of(janus, Queue=queue_class)
    cases: list[Case] = []
    for file in ("test_async", "test_mixed", "test_sync"):
        module = _load(tests / f"{file}.py", {"janus": stand_in})
        # Two helpers look at janus's private attributes for what its public ones tell.
        for helper in (close, qfull):
            if hasattr(module, helper.__name__):
                setattr(module, helper.__name__, helper)
        for name, test in vars(module).items():
            if name.startswith("test_"):
                cases.append(Case(file, name, partial(_call, test)))
            elif name.startswith("Test"):
                cases += (
                    Case(f"{file}.{name}", method, partial(_call_method, test, method))
                    for method in dir(test)
                    if method.startswith("test_")
                )
    return cases


async def close(queue: Any) -> None:
    """Stands in for janus's helper, without its look at the mutex."""
    await queue.aclose()
    assert queue.closed
    assert queue.sync_q.closed
    assert queue.async_q.closed


def qfull(queue: Any) -> bool:
    """Stands in for janus's helper, by the public ``maxsize``."""
    return bool(0 < queue.maxsize == queue.qsize())


def _call(test: Callable[[], Any]) -> None:
    # What pytest-asyncio would do, which we don't need for that.
    outcome = test()
    if inspect.iscoroutine(outcome):
        asyncio.run(outcome)


def _call_method(test_class: Callable[[], object], method: str) -> None:
    _call(getattr(test_class(), method))


@functools.cache  # a failure as well: where there is no network, it takes its time
def _janus_tests(cache: Path) -> Path | SuiteMissingError:
    version = importlib.metadata.version("janus")
    tests = cache / f"janus-{version}"
    if not tests.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            try:
                unpacked = _download_janus(version, Path(scratch))
            except SuiteMissingError as why:
                return why
            try:
                unpacked.rename(tests)
            except OSError:
                if not tests.exists():  # else another process was faster
                    raise
    return tests


def _download_janus(version: str, folder: Path) -> Path:
    what = ["--no-deps", "--no-binary=janus", f"--dest={folder}", f"janus=={version}"]
    how = ["--disable-pip-version-check", "--retries=1", "--timeout=10"]
    command = [sys.executable, "-m", "pip", "download", *how, *what]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode:
        last_line = (pip.stderr.strip() or "nothing").splitlines()[-1]
        raise SuiteMissingError(f"no source distribution of janus to be had; pip says: {last_line}")
    (archive,) = folder.glob("*.tar.gz")
    tests = folder / "tests"
    tests.mkdir()
    with tarfile.open(archive) as sdist:
        for member in sdist:
            path = Path(member.name)
            content = sdist.extractfile(member)
            if path.parent.name == "tests" and content is not None:
                (tests / path.name).write_bytes(content.read())
    return tests


# -- CPython -------------------------------------------------------------------------------


def queue_cases(queue_class: QueueClass) -> list[Case]:
    """CPython's tests of ``queue.Queue``, and those of ``queue.SimpleQueue``, over one class.

    Raises:
        SuiteMissingError: If the interpreter comes without its ``test`` package.
    """
    module = _load(_file_of("test.test_queue"))
    stand_in = _copy_of(
        queue,
        Queue=queue_class,
        _PySimpleQueue=queue_class,
        ShutDown=janus.SyncQueueShutDown,
    )
    # The module imports several fresh copies of `queue`, and its classes name theirs.
    for test_class in _test_cases(module):
        test_class.queue = stand_in  # type: ignore[attr-defined]
    return _unittest_cases(module)


def asyncio_cases(queue_class: QueueClass, **changes: object) -> list[Case]:
    """CPython's tests of ``asyncio.Queue``, with further changes to their ``asyncio``.

    Raises:
        SuiteMissingError: If the interpreter comes without its ``test`` package.
    """
    stand_in = _copy_of(asyncio, Queue=queue_class, **changes)
    return _unittest_cases(_load(_file_of("test.test_asyncio.test_queues"), {"asyncio": stand_in}))


def _file_of(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # its package is absent
        spec = None
    if spec is None or spec.origin is None:
        raise SuiteMissingError(f"this interpreter's standard library comes without {name}")
    return Path(spec.origin)


def _test_cases(module: ModuleType) -> Iterator[type[unittest.TestCase]]:
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, unittest.TestCase):
            yield value


def _unittest_cases(module: ModuleType) -> list[Case]:
    return [
        Case(test_class.__name__, method, partial(_run_unittest, test_class, method))
        for test_class in _test_cases(module)
        for method in unittest.defaultTestLoader.getTestCaseNames(test_class)
    ]


class _FirstProblem(unittest.TestResult):
    """Keeps the first exception itself; unittest keeps its text."""

    def __init__(self) -> None:
        super().__init__()
        self.problem: BaseException | None = None

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802 - unittest's name
        self.problem = self.problem or err[1]

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802 - unittest's name
        self.problem = self.problem or err[1]


def _run_unittest(test_class: type[unittest.TestCase], method: str) -> None:
    # Not TestCase.debug(), which leaves the loop open when the test fails.
    result = _FirstProblem()
    unittest.TestSuite([test_class(method)]).run(result)
    if result.problem is not None:
        raise result.problem
    for _, reason in result.skipped:
        pytest.skip(reason)


# -- replaced imports ----------------------------------------------------------------------


def _copy_of(module: ModuleType, **changes: object) -> ModuleType:
    copy = ModuleType(module.__name__)
    vars(copy).update(vars(module), **changes)
    return copy


def _load(file: Path, instead: dict[str, ModuleType] | None = None) -> ModuleType:
    """Execute a file as a module of its own, whose imports (and nobody else's) are replaced."""
    replaced = instead or {}

    def import_(name: str, *args: Any, **kwargs: Any) -> ModuleType:
        return replaced[name] if name in replaced else __import__(name, *args, **kwargs)

    spec = importlib.util.spec_from_file_location(f"peer_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    vars(module)["__builtins__"] = {**vars(builtins), "__import__": import_}
    spec.loader.exec_module(module)
    return module
