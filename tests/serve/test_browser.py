"""The chat page in a real browser, and screenshots to look at."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.serve.conftest import Server
from tests.serve.targets import MARKUP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TARGET = "tests.serve.targets:model"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(TARGET, "--name=obedient")
    yield server
    server.stop()


@pytest.fixture
def chat(server: Server, page: Any) -> Any:
    """The page, and whatever its console complains of fails the test."""
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if "Content Security" in said.text else None,
    )
    page.goto(server.url)
    page.get_by_text("ready", exact=True).wait_for()
    yield page
    assert complaints == []


def ask(page: Any, question: str) -> None:
    box = page.locator("#question")
    box.fill(question)
    box.press("Enter")


def answer(page: Any) -> Any:
    return page.locator(".answer").last


def test_text_grows_while_it_streams_and_statistics_come_with_it(chat: Any) -> None:
    assert chat.title() == "obedient · queuestream"
    ask(chat, "silent")
    text = answer(chat).locator("> .text")
    answer(chat).get_by_text("one two").wait_for()
    assert answer(chat).get_attribute("aria-busy") == "true"
    numbers = answer(chat).locator(".numbers")
    numbers.get_by_text("2 tokens", exact=True).wait_for()
    assert re.search(r"0\.\d\d s to the first token", numbers.inner_text())
    answer(chat).get_by_label("Rate over time").wait_for()
    assert answer(chat).locator("polyline").get_attribute("points")
    chat.keyboard.press("Escape")
    answer(chat).get_by_text("Stopped.").wait_for()
    assert text.text_content() == "one two "
    assert answer(chat).get_attribute("aria-busy") == "false"
    assert chat.locator("#send").is_visible()


@pytest.mark.parametrize("how", ["the button", "Escape"])
@pytest.mark.parametrize("question, told", [("silent", "made 2"), ("mute", "asked mute")])
def test_stop_stops_the_model_also_while_it_is_silent(
    chat: Any, server: Server, how: str, question: str, told: str
) -> None:
    """Promise 4, from the reader's hand to the model."""
    ask(chat, question)
    server.wait_for(f"MODEL {told}")
    if how == "Escape":
        chat.keyboard.press("Escape")
    else:
        chat.get_by_role("button", name="Stop").click()
    server.wait_for(f"MODEL left {question}")
    answer(chat).get_by_text("Stopped.").wait_for()


def test_leaving_the_page_stops_the_model(chat: Any, server: Server) -> None:
    ask(chat, "endless")
    server.wait_for("MODEL made 5")
    chat.goto("about:blank")
    server.wait_for("MODEL left endless")


def test_text_of_a_model_is_never_html(chat: Any) -> None:
    ask(chat, "markup")
    chat.get_by_text("The answer is complete.").wait_for(state="attached")
    assert answer(chat).locator("> .text").text_content() == MARKUP
    assert answer(chat).locator("img").count() == 0
    assert chat.title() == "obedient · queuestream"


def test_the_history_is_sent_and_survives_a_reload(chat: Any, server: Server) -> None:
    ask(chat, "hello")
    chat.get_by_text("You said **hello**.").wait_for()
    server.wait_for("MODEL left hello")
    chat.reload()
    chat.get_by_text("ready", exact=True).wait_for()
    ask(chat, "history")
    chat.get_by_text("human=hello; ai=You said **hello**.; human=history;").wait_for()
    chat.get_by_role("button", name="New chat").click()
    assert chat.locator("article").count() == 0


def test_shift_enter_is_a_new_line(chat: Any) -> None:
    box = chat.locator("#question")
    box.fill("one")
    box.press("Shift+Enter")
    box.press_sequentially("two")
    assert box.input_value() == "one\ntwo"
    assert chat.locator("article").count() == 0


def test_an_error_is_shown_where_it_happens_and_can_be_asked_again(
    chat: Any, server: Server
) -> None:
    ask(chat, "flaky")
    error = answer(chat).get_by_role("alert")
    error.get_by_text("provider answered with an error").wait_for()
    assert answer(chat).locator("> .text").text_content() == "one two "
    error.get_by_role("button", name="Ask again").click()
    answer(chat).get_by_text("good answer").wait_for()
    assert not error.is_visible()
    server.wait_for("MODEL left flaky")


def test_a_run_that_fails_before_its_first_token_says_so_too(page: Any, start: Any) -> None:
    server = start("tests.serve.targets:model", "--first-token-timeout=0.2")
    page.goto(server.url)
    ask(page, "mute")
    answer(page).get_by_role("alert").get_by_text("did not answer in time").wait_for()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_page_connects_again_and_asks_again(
    page: Any, start: Callable[..., Server], number: int
) -> None:
    """The server dies in the middle of an answer, and another takes its place.

    Its long name, what is said meanwhile and a long question do not make the page wider.
    """
    page.set_viewport_size({"width": 360, "height": 640})
    first = start(TARGET)
    page.goto(first.url)
    ask(page, "silent")
    first.wait_for("MODEL made 2")
    first.signal(number)
    first.end()
    page.get_by_text("reconnecting…").wait_for()
    page.locator("#question").fill("word " * 100 + "w" * 100)
    assert page.evaluate(OVERFLOW) == 0
    second = start(TARGET, port=first.port)
    second.wait_for("MODEL made 2")
    page.locator(".answer:not(.outdated)").get_by_text("one two").wait_for()
    page.keyboard.press("Escape")
    second.wait_for("MODEL left silent")
    page.get_by_text("ready", exact=True).wait_for()


def test_a_server_with_a_token_asks_for_it(page: Any, start: Callable[..., Server]) -> None:
    server = start(TARGET, "--host=0.0.0.0", QUEUESTREAM_TOKEN="sesame")
    page.goto(f"http://127.0.0.1:{server.port}")
    page.get_by_label("This server asks for a token").fill("wrong")
    page.get_by_role("button", name="Use it").click()
    page.get_by_text("wrong token").wait_for()
    page.get_by_label("This server asks for a token").fill("sesame")
    page.get_by_role("button", name="Use it").click()
    page.get_by_text("ready", exact=True).wait_for()
    ask(page, "hello")
    page.get_by_text("You said **hello**.").wait_for()
    assert "sesame" not in "".join(server.log)
    assert "WARNING whoever" not in "".join(server.log)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(390, 844), (1100, 760)], ids=["phone", "desktop"])
def test_screenshots(
    server: Server, browser: Any, screenshots: Path, scheme: str, size: tuple[int, int]
) -> None:
    """Nothing is wider than the screen, and somebody looks at the pictures."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        device_scale_factor=2 if size[0] < 500 else 1,
        has_touch=size[0] < 500,
        is_mobile=size[0] < 500,
    )
    page = context.new_page()
    page.set_default_timeout(15_000)
    name = f"serve-{'phone' if size[0] < 500 else 'desktop'}-{scheme}"
    page.goto(server.url)
    page.get_by_text("ready", exact=True).wait_for()
    page.screenshot(path=screenshots / f"{name}-empty.png")
    ask(page, "hello")
    page.get_by_text("You said **hello**.").wait_for()
    ask(page, "fail")
    answer(page).get_by_role("alert").wait_for()
    ask(page, "long")
    answer(page).locator(".count").get_by_text(re.compile("^([6-9]|1.)[0-9]$")).wait_for()
    page.screenshot(path=screenshots / f"{name}-streaming.png")
    page.get_by_text("The answer is complete.").wait_for(state="attached")
    page.screenshot(path=screenshots / f"{name}-done.png")
    assert page.evaluate(OVERFLOW) == 0
    context.close()
