"""LangChain callback handlers: `StreamHandler` and the ready-made ones over it."""

from __future__ import annotations

from queuestream.handlers.base import StreamHandler
from queuestream.handlers.queue import QueueStreamHandler

__all__ = ["QueueStreamHandler", "StreamHandler"]
