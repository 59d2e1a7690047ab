"""A browser that reconnects, to another process."""

from __future__ import annotations

import json
import threading
import uuid
from typing import TYPE_CHECKING

import httpx
import pytest

from queuestream import stream
from queuestream.errors import RemoteRunError
from tests.relay.conftest import Program
from tests.support.gates import Gate
from tests.support.models import ScriptedChatModel, tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from queuestream.relay import RedisRelay
    from tests.relay.servers import RedisServer

PREFIX = f"sse-{uuid.uuid4().hex[:8]}"


class Browser:
    """An EventSource: it keeps the last id, and sends it when it reconnects."""

    def __init__(self) -> None:
        self.last_id: str | None = None
        self.received: list[str] = []
        self.has_ended = False

    def listen(self, url: str, count: int | None = None) -> None:
        """Take so many events with data, then lose the connection; all if None."""
        headers = {} if self.last_id is None else {"Last-Event-ID": self.last_id}
        fields: dict[str, str] = {}
        with httpx.stream("GET", url, headers=headers, timeout=60) as answer:
            for line in answer.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                    continue
                self.last_id = fields.get("id", self.last_id)
                if "event" not in fields and "data" in fields and text_of(fields["data"]):
                    self.received.append(text_of(fields["data"]))
                self.has_ended = fields.get("event") == "end" or fields.get("data") == "[DONE]"
                fields = {}
                if count is not None and len(self.received) >= count:
                    return


def text_of(data: str) -> str:
    if data == "[DONE]":
        return ""
    found = json.loads(data)
    if isinstance(found, str):
        return found
    choices = found.get("choices") or [{"delta": {}}]
    return str(choices[0]["delta"].get("content") or "")


@pytest.fixture(scope="module")
def web(redis_server: RedisServer) -> Iterator[str]:
    """Return where a process of its own serves the streams of these tests."""
    program = Program("serve", redis_server.url, PREFIX)
    yield f"http://127.0.0.1:{program.line()}"
    program.end()


@pytest.fixture
def served(web: str) -> str:
    """Return where one stream is served."""
    return f"{web}/{uuid.uuid4().hex}"


@pytest.fixture
def relay(make_relay: Callable[..., RedisRelay]) -> RedisRelay:
    """Make a relay for what is served."""
    return make_relay(prefix=PREFIX)


def publish(relay: RedisRelay, url: str, model: ScriptedChatModel) -> threading.Thread:
    name = url.rpartition("/")[2]
    thread = threading.Thread(target=lambda: relay.publish_sync(name, stream(model, "?")))
    thread.start()
    return thread


def test_a_reconnect_to_another_process(
    relay: RedisRelay, redis_server: RedisServer, served: str
) -> None:
    """In the middle of the answer, and once more after its end: each token once."""
    gate = Gate(4)
    writer = publish(relay, served, ScriptedChatModel(tokens=tokens(10), gate=gate))
    first = Program("serve", redis_server.url, PREFIX)
    try:
        browser = Browser()
        browser.listen(f"http://127.0.0.1:{first.line()}/{served.rpartition('/')[2]}", 4)
    finally:
        first.end()  # killed in the middle of the answer
    gate.open()
    browser.listen(served, 7)
    browser.listen(served)
    assert browser.received == tokens(10)
    assert browser.has_ended
    browser.listen(served)
    assert len(browser.received) == 10
    writer.join(5)


@pytest.mark.parametrize("wire", ["text", "openai", "vercel", "agui"])
def test_a_connection_is_lost_after_any_event(relay: RedisRelay, served: str, wire: str) -> None:
    """Hazard: what an answer begins with has an id of its own, and the browser keeps that."""
    writer = publish(relay, served, ScriptedChatModel(tokens=tokens(5)))
    writer.join(5)
    url = f"{served}?format={wire}"
    whole = httpx.get(url, timeout=10).text
    events = [event for event in whole.split("\n\n") if "data: " in event]
    ids = [event.partition("\n")[0].removeprefix("id: ") for event in events]
    written = [event.id for event in relay.subscribe_sync(served.rpartition("/")[2])]
    for last_id in ids:
        left = httpx.get(url, headers={"Last-Event-ID": last_id}, timeout=10).text
        known = written.index(last_id) + 1 if last_id in written else 0
        assert [token for token in tokens(5) if token.strip() in left] == tokens(5)[known:]
        begins = left.partition("\n")[0].removeprefix("id: ")
        if known < 5:
            assert begins == (last_id if wire != "text" and known else begins)


def test_a_connection_that_is_lost_after_each_token(relay: RedisRelay, served: str) -> None:
    publish(relay, served, ScriptedChatModel(tokens=tokens(5))).join(5)
    browser = Browser()
    for number in range(1, 6):
        browser.listen(f"{served}?format=openai", number)
        browser.listen(f"{served}?format=openai", number)  # lost again before anything new
    browser.listen(f"{served}?format=openai")
    assert browser.received == tokens(5)
    assert browser.has_ended


@pytest.mark.parametrize(
    "failure, status",
    [(ValueError("secret"), 500), (TimeoutError("secret"), 504), (ConnectionError("secret"), 502)],
)
def test_an_error_of_the_run_in_another_process(
    relay: RedisRelay, served: str, failure: Exception, status: int
) -> None:
    """The client reads a status and one of the fixed sentences, nothing of the error's own."""
    model = ScriptedChatModel(tokens=[], failure=failure, fail_at=0)
    with pytest.raises(type(failure), match="secret"):
        relay.publish_sync(served.rpartition("/")[2], stream(model, "?"))
    answer = httpx.get(served, timeout=10)
    assert answer.status_code == status
    assert "secret" not in answer.text
    with pytest.raises(RemoteRunError):
        next(relay.subscribe_sync(served.rpartition("/")[2]))
