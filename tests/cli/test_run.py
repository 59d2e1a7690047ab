"""``queuestream run``: what can be streamed, and what a wrong argument gets."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.cli.commands import queuestream

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.commands import Call


@pytest.mark.parametrize(
    "target, given",
    [
        ("targets:good", "Hello"),
        ("targets:good", '[["human", "Hello"]]'),
        ("targets:chain", '{"topic": "rivers"}'),
        ("targets:call", "Hello"),
        ("targets:acall", "Hello"),
        ("targets:Place.Inner.model", "Hello"),
    ],
)
def test_it_streams_any_target_through_both_loops(call: Call, target: str, given: str) -> None:
    done = call("run", target, given)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("\none two \n-- 2 tokens in ") == 2


@pytest.mark.parametrize(
    "text, given",
    [
        ("plain", "'plain'"),
        ('{"a": [1]}', "{'a': [1]}"),
        ("[1, 2]", "[1, 2]"),
        ("12", "'12'"),
        ('"quoted"', "'\"quoted\"'"),
        ("{not json}", "'{not json}'"),
        ("", "''"),
    ],
)
def test_the_input_is_text_unless_it_is_a_json_object_or_array(
    call: Call, text: str, given: str
) -> None:
    done = call("run", "--iterate", "for", "targets:mute", text)
    assert (done.code, done.err) == (0, "")
    assert f"result: {{'given': {given}}}" in done.out


def test_options_may_stand_anywhere(call: Call) -> None:
    for words in (
        ["--iterate=for", "targets:good", "x"],
        ["targets:good", "x", "--iterate=for"],
    ):
        assert call("run", *words).code == 0


def test_text_that_the_terminal_cannot_show_is_no_error(folder: Path) -> None:
    done = queuestream("run", "targets:unprintable", "x", cwd=folder, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "snow ? ?" in done.stdout


def test_the_target_is_found_from_the_current_directory(folder: Path) -> None:
    done = queuestream("run", "--iterate=for", "targets:good", "x", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("loop", ["for", "async-for"])
def test_an_error_of_the_run_follows_the_tokens_before_it(call: Call, loop: str) -> None:
    done = call("run", "--iterate", loop, "targets:failing", "x")
    assert done.code == 1
    assert "one two \n-- failed: 2 tokens" in done.out
    assert done.err == "queuestream: the run raised ValueError: the model is out of words\n"


def test_after_an_error_the_second_loop_is_not_started(call: Call) -> None:
    done = call("run", "targets:failing", "x")
    assert done.code == 1
    assert "# async for" not in done.out


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["nocolon", "x"], "expected module:attribute"),
        ([":attribute", "x"], "expected module:attribute"),
        (["module:", "x"], "expected module:attribute"),
        (["no_such_module:x", "x"], "no module 'no_such_module'"),
        (["targets.deeper:x", "x"], "no module 'targets.deeper'"),
        (["targets:nothing", "x"], "no attribute 'nothing'"),
        (["targets:Place.nothing", "x"], "no attribute 'nothing'"),
        (["broken:x", "x"], "'broken' cannot be imported: ZeroDivisionError"),
        (["leaves:x", "x"], "'leaves' cannot be imported: SystemExit"),
        (["lacking:x", "x"], "No module named 'a_package_that_is_not'"),
        (["targets:good"], "INPUT"),
        (["targets:good", "two", "words"], "quote"),
        (["targets:TARGET"], "INPUT"),
        (["targets:__name__", "x"], "str"),
        (["targets:deaf", "x"], "callbacks"),
        (["--model", "openai:gpt-5", "two", "words"], "quote"),
        (["--model", "nobody:nothing", "x"], "nobody"),
        (["--run-in=task", "targets:good", "x"], "task"),
        (["--run-in=nowhere", "targets:good", "x"], "--run-in"),
    ],
)
def test_a_wrong_argument_is_named(call: Call, words: list[str], complaint: str) -> None:
    done = call("run", *words)
    assert done.code == 2
    assert complaint in done.err
    assert "Traceback" not in done.err


def test_help_tells_what_input_is(call: Call) -> None:
    done = call("run", "--help")
    assert done.code == 0
    assert "JSON if it parses as a JSON object or array" in " ".join(done.out.split())


class TestModelByName:
    def test_the_package_of_the_provider_is_named_when_missing(self) -> None:
        done = queuestream("run", "--model", "groq:llama", "x")
        assert done.returncode == 2
        assert "pip install" in done.stderr
        assert "langchain-groq" in done.stderr.replace("_", "-")
        assert "Traceback" not in done.stderr

    def test_langchain_is_named_when_missing(self, tmp_path: Path) -> None:
        """`langchain` is an extra; a module that fails like an absent one stands for that."""
        (tmp_path / "langchain.py").write_text(
            "raise ModuleNotFoundError(\"No module named 'langchain'\", name='langchain')\n"
        )
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        done = queuestream("run", "--model", "openai:x", "x", PYTHONPATH=path)
        assert done.returncode == 2
        assert "pip install langchain" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_missing_key_is_told_in_a_line(self) -> None:
        done = queuestream("run", "--model", "openai:gpt-5", "x", OPENAI_API_KEY="")
        assert done.returncode in {1, 2}
        assert "OPENAI_API_KEY" in done.stderr or "api_key" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_provider_streams_over_http(self) -> None:
        with HTTPServer(("127.0.0.1", 0), _Provider) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                done = queuestream(
                    "run",
                    "--model",
                    "openai:any-name",
                    "Hello",
                    OPENAI_API_KEY="none",
                    OPENAI_BASE_URL=f"http://127.0.0.1:{server.server_port}/v1",
                    NO_PROXY="*",
                )
            finally:
                server.shutdown()
                thread.join()
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count("\none two \n-- 2 tokens in ") == 2


class _Provider(BaseHTTPRequestHandler):
    """Answers each request as OpenAI's chat completions do, in two tokens."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for text in ("one ", "two "):
            choice = {"index": 0, "delta": {"role": "assistant", "content": text}}
            self._send(json.dumps({"id": "1", "model": "any-name", "choices": [choice]}))
        self._send("[DONE]")

    def _send(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        pass
