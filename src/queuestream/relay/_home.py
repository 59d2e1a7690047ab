"""What a relay has on one life of the background loop: a link, readers, writers, their leases."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from queuestream.errors import RelayError
from queuestream.relay._link import Link, keep_task
from queuestream.relay._reader import SharedReader

if TYPE_CHECKING:
    from queuestream.relay._link import Settings
    from queuestream.relay._scripts import Keys
    from queuestream.relay._writer import Writer

__all__ = ["Home"]


class Home:
    """See the module's docstring.  Used on that loop only.

    Attributes:
        settings: As given.
        link: The connection for commands.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.link = Link(settings)
        self._readers: dict[str, SharedReader] = {}
        self._writers: set[Writer] = set()
        self._heart: asyncio.Task[None] | None = None

    def reader(self, keys: Keys) -> SharedReader:
        """The reader of a run: one for all, or one for each hash tag."""
        tag = keys.tag if self.settings.by_tag else self.settings.prefix
        found = self._readers.get(tag)
        if found is None:
            found = self._readers[tag] = SharedReader(self.link, tag)
        return found

    async def open(self, writer: Writer) -> None:
        """Let a writer begin, and keep its lease."""
        await writer.open(self.link, self.reader(writer.keys))
        if writer.has_left:
            return
        self._writers.add(writer)
        if self._heart is None:
            self._heart = asyncio.get_running_loop().create_task(self._beat())
            keep_task(self._heart)

    def leave(self, writer: Writer) -> None:
        """A writer is no more."""
        self._writers.discard(writer)
        writer.leave()
        if not self._writers and self._heart is not None:
            self._heart.cancel()
            self._heart = None

    async def _beat(self) -> None:
        """Renew all leases, three times in each."""
        while True:
            await asyncio.sleep(self.settings.lease / 3)
            await asyncio.gather(*[writer.renew() for writer in tuple(self._writers)])

    def end(self) -> None:
        """Close the connections, sooner or later."""
        keep_task(self.link.loop.create_task(self.close()))

    async def close(self) -> None:
        """Close the connections."""
        if self._heart is not None:
            self._heart.cancel()
        for writer in tuple(self._writers):
            writer.fail(RelayError("the relay was closed"))
        for reader in self._readers.values():
            await reader.close()
        await self.link.close()
