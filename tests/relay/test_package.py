"""The relay in a process: it ends, it forks, it has no redis."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from queuestream import stream
from queuestream.errors import StreamClosedError
from queuestream.relay import RedisRelay
from tests.support.gates import eventually
from tests.support.models import ScriptedChatModel

if TYPE_CHECKING:
    from tests.relay.servers import RedisServer


def run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_process_can_exit(redis_server: RedisServer) -> None:
    """Promise 8: with a reader, a writer and their connections left open."""
    program = """
import sys, threading
from queuestream import stream
from queuestream.demo import DemoChatModel
from queuestream.relay import RedisRelay
relay = RedisRelay.from_url(sys.argv[1], prefix="exit")
writing = lambda: relay.publish_sync("a", stream(DemoChatModel(pace=1), "?"))
threading.Thread(target=writing, daemon=True).start()
print(next(relay.subscribe_sync("a")).kind)
left = relay.subscribe_sync("b")
threading.Thread(target=lambda: next(left), daemon=True).start()
"""
    assert run(program, redis_server.url) == "text\n"


def test_without_redis_the_message_says_what_to_install() -> None:
    program = """
import sys
sys.modules["redis"] = None
import queuestream.relay
try:
    queuestream.relay.RedisRelay
except ImportError as error:
    print(error)
"""
    assert run(program) == (
        "queuestream.relay.RedisRelay needs redis, which is not installed: "
        'pip install "queuestream[redis]"\n'
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on Windows")
def test_after_a_fork(redis_server: RedisServer) -> None:
    """Promise 8: the child connects anew; the parent's subscription is not the child's."""
    program = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from queuestream.relay import RedisRelay
from queuestream.errors import StreamClosedError
relay = RedisRelay.from_url(sys.argv[1], prefix=sys.argv[2])
events = relay.subscribe_sync("a")
print(next(events).text, flush=True)
if not os.fork():
    try:
        next(events)
    except StreamClosedError as error:
        print(error, flush=True)
    print([event.text for event in relay.subscribe_sync("a")], relay.status_sync("a"), flush=True)
    os._exit(0)
os.wait()
print([event.text for event in events], flush=True)
"""
    prefix = f"fork-{os.getpid()}"
    with RedisRelay.from_url(redis_server.url, prefix=prefix) as relay:
        relay.publish_sync("a", stream(ScriptedChatModel(tokens=["1", "2"]), "?"))
    assert run(program, redis_server.url, prefix) == (
        "1\na is read in the process that was forked\n['1', '2'] finished\n['2']\n"
    )


def test_a_relay_that_is_dropped_leaves_no_connection(redis_server: RedisServer) -> None:
    relay = RedisRelay.from_url(redis_server.url, client_name="dropped")
    assert relay.status_sync("a") == "pending"
    assert any("name=dropped" in line for line in redis_server.client_list())
    del relay
    eventually(lambda: not any("name=dropped" in line for line in redis_server.client_list()))


def test_a_closed_subscription(relay: RedisRelay) -> None:
    relay.publish_sync("a", stream(ScriptedChatModel(tokens=["1", "2"]), "?"))
    with relay.subscribe_sync("a") as events:
        assert next(events).text == "1"
    with pytest.raises(StreamClosedError, match="was closed before its end"):
        next(events)
