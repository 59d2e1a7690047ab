"""A stream that survives its reader, its writer and the network: over Redis Streams.

Needs the extra ``redis``::

    relay = RedisRelay.from_url("redis://localhost:6379")

    await relay.publish("chat:42", stream(chain, question))  # in the worker
    async for event in relay.subscribe("chat:42", after=last_event_id):  # anywhere
        ...

``redis`` has `RedisRelay` and says how it works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from queuestream._lazy import lazy

if TYPE_CHECKING:
    from collections.abc import Callable

    from queuestream.relay._entries import RelayEvent
    from queuestream.relay._subscription import Subscription
    from queuestream.relay.redis import RedisRelay

__all__ = ["RedisRelay", "RelayEvent", "Subscription"]

__dir__: Callable[[], list[str]]
_get, __dir__ = lazy(
    __name__,
    {
        "RedisRelay": "redis",
        "RelayEvent": "_entries",
        "Subscription": "_subscription",
        "redis": None,
    },
)


def __getattr__(name: str) -> object:
    try:
        return _get(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        raise ImportError(
            f"queuestream.relay.{name} needs redis, which is not installed: "
            'pip install "queuestream[redis]"'
        ) from error
