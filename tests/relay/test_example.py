"""The example of two processes runs from one command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from queuestream.demo import DemoChatModel
from tests.relay.servers import free_port
from tests.relay.test_sse import Browser
from tests.support.gates import eventually

if TYPE_CHECKING:
    from tests.relay.servers import RedisServer

PROGRAM = Path(__file__).parents[2] / "examples" / "relay_chat.py"


@pytest.mark.timeout(180)  # three processes import Celery and FastAPI
def test_relay_chat(redis_server: RedisServer) -> None:
    port = free_port()
    environment = {**os.environ, "REDIS_URL": redis_server.url, "PORT": str(port)}
    process = subprocess.Popen([sys.executable, PROGRAM], env=environment, stdout=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"

    def is_served() -> bool:
        try:
            return httpx.get(url, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    try:
        eventually(is_served, 90)
        made = httpx.post(f"{url}/answers", params={"question": "Hello"}, timeout=60).json()
        browser = Browser()
        browser.listen(f"{url}/answers/{made['id']}", 5)
        browser.listen(f"{url}/answers/{made['id']}")
        assert "".join(browser.received) == DemoChatModel(pace=0).invoke("Hello").text
        other = httpx.post(f"{url}/answers", params={"question": "Hello"}, timeout=60).json()
        browser = Browser()
        browser.listen(f"{url}/answers/{other['id']}", 2)
        stopped = httpx.delete(f"{url}/answers/{other['id']}", timeout=60).json()
        assert stopped == {"stopped": True}
    finally:
        process.terminate()  # not SIGINT, which is ignored where a shell started the tests with &
        assert process.wait(60) == 0
        assert process.stdout is not None
        process.stdout.close()
