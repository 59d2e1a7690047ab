"""Servers on loopback, and what their clients measure."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.left_out import left_out, missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The packages are those of the dependency group `web-tests`, for the environment `web`.
# Elsewhere the tests are not collected, and test_left_out.py says why.
MISSING = missing(
    ("ag_ui", "fastapi", "h2", "hypercorn", "openai", "playwright", "uvicorn", "websockets")
)
collect_ignore = left_out(__file__, MISSING, but=("test_formats.py",))


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serve an application on loopback, with uvicorn or another server; its host and port."""
    from tests.web.servers import serving  # noqa: PLC0415 - only tox -e web has them

    with ExitStack() as stack:

        def start(app: Any, server: str = "uvicorn") -> str:
            return stack.enter_context(serving(app, server))

        yield start
