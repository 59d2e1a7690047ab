"""Fact 15, about redis-py and Redis, without our own code."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
from packaging.version import Version

if TYPE_CHECKING:
    from tests.relay.servers import RedisServer


def test_fact_15_an_entry_id_that_is_not_above_the_last_is_refused(
    redis_server: RedisServer,
) -> None:
    client: Any = redis.Redis.from_url(redis_server.url)
    try:
        client.delete("fact 15")
        client.xadd("fact 15", {"a": "b"}, id="2-5")
        for late in ("2-5", "2-4", "1-9"):
            with pytest.raises(redis.ResponseError, match="equal or smaller"):
                client.xadd("fact 15", {"a": "b"}, id=late)
        assert client.xadd("fact 15", {"a": "b"}, id="3-0") == b"3-0"
    finally:
        client.delete("fact 15")
        client.close()


def test_fact_15_a_read_that_blocks_is_cut_by_the_sockets_timeout(
    redis_server: RedisServer,
) -> None:
    """So the timeout must be above the wait."""
    client: Any = redis.Redis.from_url(redis_server.url, socket_timeout=0.05)
    try:
        with pytest.raises(redis.TimeoutError):
            client.xread({"nothing comes": "$"}, block=10_000)
    finally:
        client.close()


@pytest.mark.skipif(Version(metadata.version("redis")) < Version("8.1"), reason="of redis-py 8.1")
@pytest.mark.parametrize("kind", [redis.Redis, redis.asyncio.Redis], ids=["sync", "async"])
def test_fact_15_that_timeout_is_five_seconds_unless_it_is_told(kind: Any) -> None:
    """Of a connection as the client makes it, which this one does not open."""
    for client in (kind(), kind.from_url("redis://localhost")):
        assert client.connection_pool.make_connection().socket_timeout == 5
