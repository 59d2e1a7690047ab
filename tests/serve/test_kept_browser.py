"""The chat page where answers are kept: it is loaded anew, and its server goes."""

from __future__ import annotations

import signal
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.serve.test_browser import TARGET, answer, ask

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serve.conftest import Server

LONG = "Every token is shown as it comes, and nothing waits for the end. " * 12


@pytest.fixture
def kept(start: Callable[..., Server], redis_url: str) -> Callable[..., Server]:
    """Start servers that share one name of their own, and so their answers."""
    name = f"kept-{uuid.uuid4().hex[:8]}"

    def start_kept(**more: Any) -> Server:
        return start(TARGET, f"--name={name}", f"--redis={redis_url}", **more)

    return start_kept


def text_of(page: Any) -> str:
    return str(answer(page).locator("> .text").text_content())


def complete(page: Any) -> None:
    page.get_by_text("The answer is complete.").wait_for(state="attached")


def times(server: Server, line: str) -> int:
    return "".join(server.log).count(line)


def test_a_reload_in_the_middle_of_an_answer(page: Any, kept: Callable[..., Server]) -> None:
    """The answer goes on meanwhile, and is shown whole, once; the model is asked once."""
    server = kept()
    page.goto(server.url)
    ask(page, "long")
    answer(page).get_by_text("Every token").wait_for()
    page.reload()
    complete(page)
    assert text_of(page) == LONG
    assert answer(page).get_by_role("alert").is_hidden()
    assert times(server, "MODEL asked long") == 1
    page.reload()
    page.get_by_text("ready", exact=True).wait_for()
    assert text_of(page) == LONG
    ask(page, "hello")
    page.get_by_text("You said **hello**.").wait_for()
    assert times(server, "MODEL asked long") == 1


def test_a_silent_answer_is_waited_for_after_a_reload_and_can_be_stopped(
    page: Any, kept: Callable[..., Server]
) -> None:
    server = kept()
    page.goto(server.url)
    ask(page, "silent")
    answer(page).get_by_text("one two").wait_for()
    page.reload()
    page.get_by_role("button", name="Stop").click()
    server.wait_for("MODEL left silent")
    answer(page).get_by_text("Stopped.").wait_for()
    page.reload()
    answer(page).get_by_text("Stopped.").wait_for()
    assert text_of(page) == "one two "
    assert times(server, "MODEL asked silent") == 1


@pytest.mark.parametrize(
    "number, reloads",
    [(signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGTERM, False)],
    ids=["killed", "killed, and the page is reloaded", "stopped"],
)
def test_the_server_is_restarted_in_the_middle_of_an_answer(
    page: Any, kept: Callable[..., Server], number: int, reloads: bool
) -> None:
    """The run is lost with its process; it is begun again, and what was shown gives way."""
    first = kept()
    page.goto(first.url)
    ask(page, "long")
    answer(page).get_by_text("Every token").wait_for()
    first.signal(number)
    first.end()
    second = kept(port=first.port)
    if reloads:
        page.reload()
    complete(page)
    assert text_of(page) == LONG
    assert times(second, "MODEL asked long") == 1
    assert answer(page).get_by_role("alert").is_hidden()


def test_an_answer_that_begins_again_and_again_is_given_up(
    page: Any, kept: Callable[..., Server]
) -> None:
    """Hazard: each beginning brings a token, counts as progress, and is paid for.

    Whatever is asked for begins, says one token, and breaks off, as if it killed its server.
    """
    server = kept()
    asked: list[str] = []

    def begin_and_break_off(route: Any) -> None:
        asked.append(route.request.method)
        chunk = '{"choices": [{"index": 0, "delta": {"content": "so far"}}]}'
        event = f"id: {1_800_000_000_000 + len(asked)}-1\ndata: {chunk}\n\n"
        route.fulfill(status=201, content_type="text/event-stream", body=event)

    page.clock.install()  # the pauses between the tries are the page's, and not the test's
    page.route("**/v1/answers/*", begin_and_break_off)
    page.goto(server.url)
    page.get_by_text("ready", exact=True).wait_for()
    ask(page, "hello")
    error = answer(page).get_by_role("alert")
    for _ in range(20):
        page.clock.run_for(20_000)
        if error.is_visible():
            break
    error.get_by_text("The connection was lost.").wait_for()
    assert asked == ["PUT"] * 7
    assert text_of(page) == "so far"


def test_an_answer_that_has_expired_is_not_asked_again_unasked(
    page: Any, kept: Callable[..., Server]
) -> None:
    """A page that is opened after hours costs nothing before its reader says so."""
    server = kept()
    page.add_init_script(
        """sessionStorage.getItem("queuestream chat") ?? sessionStorage.setItem(
            "queuestream chat", JSON.stringify([{
                question: "hello", answer: "You ", end: "", id: "0".repeat(32), last: "1-1",
            }]))"""
    )
    page.goto(server.url)
    error = answer(page).get_by_role("alert")
    error.get_by_text("There is no such answer, or not any more.").wait_for()
    assert text_of(page) == "You "
    assert times(server, "MODEL asked") == 0
    error.get_by_role("button", name="Ask again").click()
    page.get_by_text("You said **hello**.").wait_for()
    assert times(server, "MODEL asked hello") == 1
