"""The files of the page: how they are sent, and that nothing in them needs more than CSP allows."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

import httpx

from queuestream.demo import DemoChatModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serve.conftest import Served

PAGE = resources.files("queuestream.web") / "page"


def test_the_parts_that_it_names_are_sent(serve: Callable[..., Served]) -> None:
    served = serve(DemoChatModel(pace=0))
    page = httpx.get(served.url)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    names = re.findall(r'(?:src|href)="page/([^"]+)"', page.text)
    names += re.findall(r'from "\./([^"]+)"', (PAGE / "chat.js").read_text("utf-8"))
    assert {"chat.js", "api.js", "rate.js", "style.css", "icon.svg"} == set(names)
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    for name in names:
        part = httpx.get(f"{served.url}/page/{name}")
        assert part.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])
        tag = part.headers["etag"]
        again = httpx.get(f"{served.url}/page/{name}", headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")


def test_nothing_in_it_is_inline_or_made_of_strings() -> None:
    html = (PAGE / "index.html").read_text("utf-8")
    assert not re.search(r"<style|style=|<script(?! type=\"module\" src)| on\w+=|https?:", html)
    for name in ("chat.js", "api.js", "rate.js"):
        script = (PAGE / name).read_text("utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)
