"""Real apps in processes of their own, and a browser; without their packages nothing is run."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.left_out import left_out, missing

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
NEEDED = ["gradio", "gradio_client", "streamlit", "rich", "flask", "django", "chainlit"]
MISSING = missing([*NEEDED, "playwright"])
CHROMIUM = os.environ.get("QUEUESTREAM_CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # loopback and nothing else
]

STREAMLIT = [
    "-m",
    "streamlit",
    "run",
    "--server.address=127.0.0.1",
    "--server.headless=true",
    "--server.fileWatcherType=none",
    "--browser.gatherUsageStats=false",
]

# The packages are those of the dependency group `web-tests`, for the environment `web`.
# Elsewhere the tests are not collected, and test_left_out.py says why.
collect_ignore = left_out(__file__, MISSING)


class App:
    """A program that serves on loopback and tells on stdout what its model does."""

    def __init__(self, *command: str, port: int, cwd: Path = ROOT) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT)]),
            "PYTHONUNBUFFERED": "1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_OFFLINE": "1",
            "CHAINLIT_APP_ROOT": str(cwd),
        }
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.log: list[str] = []
        self._told: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.log.append(line)
            if line.startswith("MODEL "):
                self._told.put(line.removeprefix("MODEL ").rstrip())
        self._told.put(None)

    def wait_for(self, what: str, within: float = 20.0) -> None:
        """Wait until the model has told this; what it tells before that is passed over."""
        deadline = time.monotonic() + within
        while True:
            try:
                told = self._told.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"the model did not tell {what!r}: {''.join(self.log[-30:])}")
            if told is None:
                pytest.fail(f"the app ended: {''.join(self.log[-30:])}")
            if told == what:
                return

    def wait_until_it_serves(self, within: float = 30.0) -> None:
        """Wait until the port answers."""
        deadline = time.monotonic() + within
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:  # noqa: PERF203 - it is the loop's condition
                assert time.monotonic() < deadline, "".join(self.log[-30:])
                assert self._process.poll() is None, "".join(self.log[-30:])
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def gradio_app() -> Iterator[App]:
    """A Gradio chat with a model that obeys."""
    port = free_port()
    app = App(str(ROOT / "tests/ui/apps/gradio_app.py"), str(port), port=port)
    try:
        app.wait_for("ready")
        yield app
    finally:
        app.stop()


@pytest.fixture(scope="module")
def streamlit_app() -> Iterator[App]:
    """A Streamlit app with the same model."""
    port = free_port()
    app = App(
        *STREAMLIT, f"--server.port={port}", str(ROOT / "tests/ui/apps/streamlit_app.py"), port=port
    )
    try:
        app.wait_until_it_serves()
        yield app
    finally:
        app.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright.

    Its loop runs in this thread while a test waits: not for modules that use asyncio.
    """
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - not installed everywhere

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of its own for a test, which reaches loopback only."""
    context = browser.new_context(viewport={"width": 1000, "height": 700})
    page = context.new_page()
    page.set_default_timeout(15_000)
    yield page
    context.close()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where screenshots are kept to be looked at."""
    folder = Path(os.environ.get("QUEUESTREAM_SCREENSHOTS", ROOT / ".tox" / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
