"""Who may ask: the guards that stand before the addresses, each an ASGI middleware.

A server on loopback is within reach of every web page that its user has open.  A page of
somebody else's cannot read an answer, but it can ask, and so cost money: `SameOrigin` refuses
it.  And it can give its own name the address 127.0.0.1 and then read, too: `KnownHosts` refuses
names that are not this server's.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from queuestream.web.serve.failures import Refused, say_no

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BearerToken", "KnownHosts", "SafeHeaders", "SameOrigin", "checked_token"]

_SAFE = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class SafeHeaders:
    """Headers that keep a browser from taking an answer for more than it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through; add the headers to its answer."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=list(message.get("headers", [])))
                for name, value in _SAFE.items():
                    headers.setdefault(name, value)
                message = {**message, "headers": headers.raw}
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class KnownHosts:
    """Refuse requests for names that are not this server's.

    Only a name can be pointed elsewhere by its owner: addresses, and ``localhost``, are let
    through.

    Args:
        app: What is guarded.
        names: The server's names; ``*`` for any.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = ()) -> None:
        self._app = app
        self._names = {name.lower().rstrip(".") for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or refuse it."""
        given = Headers(scope=scope).get("host") if scope["type"] == "http" else None
        if given is None or self._is_ours(given):
            await self._app(scope, receive, send)
            return
        name = _name_in(given)[:100]
        await say_no(
            scope,
            receive,
            send,
            Refused(
                421,
                f"This server does not know itself by the name {name!r}. If that is its name, "
                f"start it with --allow-host {name} (in Python, allow_hosts).",
                code="unknown_host",
            ),
        )

    def _is_ours(self, given: str) -> bool:
        name = _name_in(given)
        if "*" in self._names or name in self._names or name.rpartition(".")[2] == "localhost":
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True


def _name_in(host: str) -> str:
    """The name in a ``Host`` header, without the port."""
    name = host.strip().lower()
    if not name.startswith("["):
        name = name.partition(":")[0]
    return name.partition("]")[0].lstrip("[").rstrip(".")


class SameOrigin:
    """Refuse what a web page of another origin asks, unless that is allowed.

    Args:
        app: What is guarded.
        allowed: Other origins that may ask; ``*`` for any.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str] = ()) -> None:
        self._app = app
        self._allowed = set(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or refuse it."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin")
        # The host alone is compared: behind a proxy the scheme is another.
        if (
            origin is None
            or {origin, "*"} & self._allowed
            or urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
        ):
            await self._app(scope, receive, send)
            return
        refused = Refused(
            403,
            "Web pages of other origins may not ask here. If this one may, start the server with "
            f"--allow-origin {origin[:100]} (in Python, allow_origins).",
            code="origin_not_allowed",
        )
        await say_no(scope, receive, send, refused)


class BearerToken:
    """Refuse who does not know the token; what lies outside of ``prefix`` is for all.

    Args:
        app: What is guarded.
        token: The token.
        prefix: Where it is asked for.
    """

    def __init__(self, app: ASGIApp, token: str, prefix: str = "/v1/") -> None:
        self._app = app
        self._digest = _digest(token.encode())
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or refuse it."""
        if scope["type"] == "http" and any(path.startswith(self._prefix) for path in _paths(scope)):
            refusal = self._look_at(Headers(scope=scope))
            if refusal is not None:
                await say_no(scope, receive, send, refusal)
                return
        await self._app(scope, receive, send)

    def _look_at(self, headers: Headers) -> Refused | None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Digests have one length, and the time of the comparison tells nothing.
        if scheme.lower() == "bearer" and hmac.compare_digest(
            _digest(given.strip().encode("latin-1")), self._digest
        ):
            return None
        what = "That is not the token" if given else "This server asks for a token"
        return Refused(
            401,
            f"{what}: send it as 'Authorization: Bearer TOKEN'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _paths(scope: Scope) -> tuple[str, str]:
    """The path, with and without where the application is mounted: a router takes one of them.

    Which one depends on a ``root_path`` that some servers take from the request.
    """
    path = str(scope["path"])
    return path, path.removeprefix(str(scope.get("root_path", "")))


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def checked_token(token: str | None) -> str | None:
    """The token, if a header can carry it.

    Raises:
        TypeError: If it is no string.
        ValueError: If it is empty, or has a space or something that is not ASCII; the message
            does not say what it is.
    """
    if token is None:
        return None
    if not isinstance(token, str):
        raise TypeError(f"the token must be a string, not {type(token).__name__}")
    if not token or not all("!" <= char <= "~" for char in token):
        raise ValueError("the token must be one word of visible ASCII characters")
    return token
