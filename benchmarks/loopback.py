"""A model provider on loopback that streams as fast as its client reads.

It runs in a process of its own, so that it does not share the GIL with what is measured, and
sends an answer that was made beforehand, whatever it is asked.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


__all__ = ["provider", "texts_of_answer"]


def texts_of_answer(count: int) -> list[str]:
    """Return the tokens of an answer."""
    return [f"t{number} " for number in range(count)]


@contextlib.contextmanager
def provider(count: int) -> Iterator[str]:
    """Run a provider whose answers have so many tokens; gives the base URL for OpenAI's client."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.loopback", str(count)],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        encoding="ascii",
    )
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()


# -- in the other process --------------------------------------------------------------------------


def _answer(count: int) -> bytes:
    """An HTTP response with an event for each token, in the format of Chat Completions."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": text} for text in texts_of_answer(count)]
    events = [_event(delta, None) for delta in deltas] + [_event({}, "stop"), "[DONE]"]
    body = b"".join(_http_chunk(f"data: {event}\n\n".encode()) for event in events)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    head += b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    return head + body + _http_chunk(b"")


def _event(delta: dict[str, Any], finish_reason: str | None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    return json.dumps({**chunk, "choices": [choice]})


def _http_chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _serve(client: socket.socket, answer: bytes) -> None:
    with client, contextlib.suppress(OSError):  # a client may leave
        request = b""
        while b"\r\n\r\n" not in request:
            request += client.recv(65_536)
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [line.partition(b":") for line in head.lower().split(b"\r\n")]
        length = next(int(value) for name, _, value in lines if name == b"content-length")
        while len(body) < length:
            body += client.recv(65_536)
        client.sendall(answer)


def _main() -> None:
    answer = _answer(int(sys.argv[1]))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_serve, args=(client, answer), daemon=True).start()


if __name__ == "__main__":
    _main()
