"""Build the package as a release would, and use it as strangers do: ``tox -e package``.

The sdist is built, the wheel is built from the sdist, both are looked at by twine and
check-wheel-contents.  Then each extra gets an empty environment with that wheel, in which what
the extra is for is done.  Whatever goes wrong is a CalledProcessError or an AssertionError.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
RUNTIME = {"langchain-core", "anyio", "janus"}
PLAIN = (
    "script.py",
    "asyncio_program.py",
    "events.py",
    "any_callable.py",
    "router.py",
    "generator_or_queue.py",
    "console.py",
    "ui_buffer.py",
    "token_statistics.py",
    "several_handlers.py",
    "custom_handler.py",
)
"""The examples that need nothing but the package."""

_ASK = {"messages": [{"role": "user", "content": "Hello"}]}

# -- building --------------------------------------------------------------------------------


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a program; answers what it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    if done.returncode:
        print(done.stdout)
        raise subprocess.CalledProcessError(done.returncode, done.args)
    return done.stdout


def built(folder: Path) -> Path:
    """Build both, check both; answers the wheel."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    run("check-wheel-contents", wheel)
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/src/")[2] for name in archive.getnames() if "/src/" in name}
    tracked = run("git", "ls-files", "src").split() if (ROOT / ".git").exists() else []
    assert {name.removeprefix("src/") for name in tracked} <= in_wheel, "files are missing"
    assert in_wheel <= in_sdist
    return wheel


# -- using -----------------------------------------------------------------------------------


class Environment:
    """An empty environment with the wheel, and perhaps an extra."""

    def __init__(self, folder: Path, wheel: Path, extra: str = "") -> None:
        self.folder = folder / (extra.replace(",", "-") or "bare")
        venv.create(self.folder, with_pip=True)
        self._bin = self.folder / ("Scripts" if os.name == "nt" else "bin")
        what = f"{wheel}[{extra}]" if extra else str(wheel)
        self.python("-m", "pip", "install", "--quiet", "--disable-pip-version-check", what)

    def python(self, *arguments: str | Path) -> str:
        """Run its interpreter, away from the sources."""
        return run(self._bin / "python", *arguments, cwd=self.folder)

    def command(self, *arguments: str) -> str:
        """Run ``queuestream``."""
        return run(self._bin / "queuestream", *arguments, cwd=self.folder)

    @contextmanager
    def started(self, *arguments: str | Path) -> Iterator[Iterator[str]]:
        """Start its interpreter for a block; answers the lines that it prints."""
        with subprocess.Popen(
            [str(self._bin / "python"), "-u", *map(str, arguments)],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"},
        ) as server:
            try:
                assert server.stdout is not None
                yield iter(server.stdout.readline, "")
            finally:
                server.terminate()

    def example(self, name: str) -> str:
        """Run an example."""
        return self.python(ROOT / "examples" / name)


def bare(home: Environment) -> None:
    """Three dependencies and theirs; the command; the examples that need no more."""
    listed = json.loads(home.python("-m", "pip", "list", "--format=json"))
    names = {found["name"].lower().replace("_", "-") for found in listed} - {"pip", "setuptools"}
    allowed = json.loads(home.python("-c", _CLOSURE, *sorted(RUNTIME)))
    assert names == {"queuestream", *allowed}, names ^ {"queuestream", *allowed}
    assert "usage: queuestream" in home.command("--help")
    version = home.python(
        "-c", "from importlib.metadata import version as v; print(v('queuestream'))"
    )
    assert home.command("--version").split() == ["queuestream", version.strip()]
    assert "tokens" in home.command("demo", "--pace=0.001")
    assert "A river" in home.command("run", "queuestream.demo:model", "Hello", "--iterate=for")
    with ThreadPoolExecutor(len(PLAIN)) as pool:  # they pause, most of the time
        assert all(pool.map(home.example, PLAIN))
    for extra, code in (
        ("web", "import queuestream.web.serve"),
        ("web", "from queuestream.web import sse_response"),
        ("redis", "from queuestream.relay import RedisRelay"),
        ("gradio", "from queuestream.ui import gradio_chat; gradio_chat(None)"),
        ("cli", "from queuestream.ui import console_stream; console_stream(None, None)"),
    ):
        said = home.python("-c", f"{_SAY_IMPORT_ERROR}{code!r})")
        assert f'pip install "queuestream[{extra}]"' in said, said


_SAY_IMPORT_ERROR = """
def say(code):
    try: exec(code)
    except ImportError as error: print(error)
say("""

_CLOSURE = """
import importlib.metadata as m, json, re, sys
from importlib.metadata import PackageNotFoundError
found, left = set(), sys.argv[1:]
while left:
    name = left.pop().lower().replace("_", "-")
    if name in found: continue
    try: needs = m.requires(name) or []
    except PackageNotFoundError: continue
    found.add(name)
    left += [re.match(r"[\\w.-]+", need)[0] for need in needs if "extra ==" not in need]
print(json.dumps(sorted(found)))
"""


def cli(home: Environment) -> None:
    """A live view in the terminal, and a provider's model by its name."""
    assert "tokens" in home.example("console_chat.py")
    done = subprocess.run(
        [str(home._bin / "queuestream"), "run", "--model", "openai:x", "Hello"],  # noqa: SLF001
        capture_output=True,
        encoding="utf-8",
        check=False,
        cwd=home.folder,
    )
    assert done.returncode == 2, done  # noqa: PLR2004 - a wrong argument
    assert "langchain-openai" in done.stderr


def web(home: Environment) -> None:
    """A server that answers."""
    with home.started("-m", "queuestream", "serve", "--port=0") as lines:
        url = next(line for line in lines if "chat page" in line).split()[-1].rstrip("/")
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{url}/v1/chat/completions",
            json.dumps(_ASK).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            assert json.load(answer)["choices"][0]["message"]["content"]
        with urllib.request.urlopen(url, timeout=30) as page:  # noqa: S310
            assert b"<!doctype html>" in page.read().lower()


def redis(home: Environment) -> None:
    """A relay that says that there is no server."""
    code = (
        "from queuestream.relay import RedisRelay; from queuestream.errors import *\n"
        "try: RedisRelay.from_url('redis://127.0.0.1:9', outage=0).status_sync('a')\n"
        "except RelayUnavailableError as error: print(error)"
    )
    assert "out of reach" in home.python("-c", code)


def gradio(home: Environment) -> None:
    """The example serves its page."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with home.started(ROOT / "examples" / "gradio_chat.py", str(port)) as lines:
        assert any(f":{port}" in line for line in lines)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=30) as page:
            assert b"gradio" in page.read()


def streamlit(home: Environment) -> None:
    """The example's page, by Streamlit's own tests."""
    code = (
        "import sys; from streamlit.testing.v1 import AppTest\n"
        "page = AppTest.from_file(sys.argv[1]).run(timeout=30)\n"
        "page.chat_input[0].set_value('Hello').run(timeout=30)\n"
        "assert not page.exception, page.exception\n"
        "print(page.session_state.messages[-1])"
    )
    said = home.python("-W", "ignore", "-c", code, ROOT / "examples" / "streamlit_chat.py")
    assert "A river" in said, said


USES: dict[str, Callable[[Environment], object]] = {
    "streamlit": streamlit,
    "gradio": gradio,
    "": bare,
    "cli,redis,web": lambda home: [use(home) for use in (cli, redis, web)],
}
"""What is done with each extra; those that take longest come first.

Some share an environment: none of them brings what another one needs.
"""


def main(extras: list[str]) -> None:
    """Do all of it, or what is done with some extras only."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = built(folder)
        print(f"built {wheel.name}")

        def use(extra: str) -> None:
            began = time.monotonic()
            USES[extra](Environment(folder, wheel, extra))
            print(
                f"{extra or 'no extra'}: good, after {time.monotonic() - began:.0f} s", flush=True
            )

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(use, extras or USES))
        project: Any = json.loads(
            run(sys.executable, "-c", _EXTRAS, ROOT / "pyproject.toml").strip() or "[]"
        )
        assert sorted(project) == sorted(",".join(filter(None, USES)).split(","))


_EXTRAS = """
import json, sys, tomllib
with open(sys.argv[1], "rb") as file:
    print(json.dumps(list(tomllib.load(file)["project"]["optional-dependencies"])))
"""

if __name__ == "__main__":
    main([word.replace("bare", "") for word in sys.argv[1:]])
