"""The examples that need a framework: they start, and the tokens come one by one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from gradio_client import Client
from streamlit.testing.v1 import AppTest

from queuestream.demo import PASSAGE
from tests.examples.programs import EXAMPLES, run, tokens_of
from tests.ui.conftest import App, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def serving(name: str) -> Iterator[App]:
    port = free_port()
    app = App(str(EXAMPLES / name), str(port), port=port)
    try:
        app.wait_until_it_serves()
        yield app
    finally:
        app.stop()


@pytest.fixture(scope="module", params=["flask_app.py", "django_wsgi.py", "django_asgi.py"])
def app(request: pytest.FixtureRequest) -> Iterator[App]:
    with serving(request.param) as app:
        yield app


def test_events_come_one_by_one(app: App) -> None:
    """A server or middleware that gathers the body would send all of it at the end."""
    with httpx.stream("GET", app.url, params={"q": "?"}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        parts = list(response.iter_text())
    body = "".join(parts)
    said = re.findall(r'^data: (".*")$', body, re.MULTILINE)
    assert [json.loads(text) for text in said] == tokens_of(PASSAGE)
    assert body.endswith("event: end\ndata: {}\n\n")
    assert len(parts) > len(said) / 2


def test_a_client_that_leaves_leaves_a_server_that_answers(app: App) -> None:
    with httpx.stream("GET", app.url) as response:
        next(response.iter_text())
    assert "event: end" in httpx.get(app.url).text
    assert not [line for line in app.log if "Traceback" in line]


OBEDIENT = """
import runpy, sys
import queuestream.demo
from tests.ui.apps.model import ObedientModel
queuestream.demo.DemoChatModel = lambda **options: ObedientModel()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("question", ["silent", "mute"])
def test_a_client_that_leaves_django_under_asgi_stops_a_silent_model(question: str) -> None:
    port = free_port()
    app = App("-c", OBEDIENT, str(EXAMPLES / "django_asgi.py"), str(port), port=port)
    try:
        app.wait_until_it_serves()
        with httpx.stream("GET", app.url, params={"q": question}):
            app.wait_for("made 2" if question == "silent" else "asked mute")
        app.wait_for(f"left {question}")
    finally:
        app.stop()


def test_the_gradio_chat_answers() -> None:
    with serving("gradio_chat.py") as app:
        client = Client(app.url, verbose=False, analytics_enabled=False)
        job = client.submit("What is a stream?", api_name="/chat")
        assert job.result(timeout=20) == PASSAGE
        assert len(job.outputs()) > 5


def test_the_streamlit_chat_answers() -> None:
    app = AppTest.from_file(str(EXAMPLES / "streamlit_chat.py"), default_timeout=30).run()
    app.chat_input[0].set_value("What is a stream?").run()
    assert not app.exception
    assert [message.markdown[0].value.strip() for message in app.chat_message] == [
        "What is a stream?",
        PASSAGE.strip(),
    ]


def test_the_console_chat_writes_plain_text_to_a_pipe() -> None:
    said = run(EXAMPLES / "console_chat.py")
    assert said == f"# Streams\n\n{PASSAGE}({len(PASSAGE.split()) + 2} words)\n"


def test_the_notebook_runs(tmp_path: Path) -> None:
    """IPython runs its cells, also the one with `async with` at the top."""
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--quick", str(EXAMPLES / "jupyter.ipynb")],
        capture_output=True, encoding="utf-8", check=False, cwd=tmp_path,
        env={"IPYTHONDIR": str(tmp_path), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert PASSAGE in done.stdout
    assert done.stdout.rstrip().endswith(f"{len(tokens_of(PASSAGE))} tokens")
