"""The chat page: a few files that are read once and sent as they are."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.routing import BaseRoute

__all__ = ["page_routes"]

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS = {
    "Cache-Control": "no-cache",
    # Nothing inline, nothing from elsewhere; and no way from a string to HTML.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


def page_routes() -> list[BaseRoute]:
    """The page at ``/``, and its parts under ``/page/``."""
    folder = resources.files("queuestream.web") / "page"
    files = {
        file.name: file.read_bytes()
        for file in folder.iterdir()
        if file.name.rpartition(".")[2] in _TYPES
    }

    async def page(request: Request) -> Response:
        return _answer(request, files, "index.html")

    async def part(request: Request) -> Response:
        return _answer(request, files, request.path_params["name"])

    return [Route("/", page), Route("/page/{name}", part)]


def _answer(request: Request, files: Mapping[str, bytes], name: str) -> Response:
    if name not in files:
        raise HTTPException(404)
    tag = f'"{hashlib.sha256(files[name]).hexdigest()[:20]}"'
    headers = {**_HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(files[name], headers=headers, media_type=_TYPES[name.rpartition(".")[2]])
