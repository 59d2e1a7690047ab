"""The real apps in a real browser, and screenshots to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ui.conftest import App


def open_chat(gradio_app: App, page: Any) -> Any:
    """Open Gradio's page; the box for questions, when somebody listens to it."""
    with page.expect_request("**/heartbeat/**"):
        page.goto(gradio_app.url)
    return page.get_by_role("textbox").first


def test_gradio_shows_growing_text_and_its_stop_button_stops_the_model(
    gradio_app: App, page: Any, screenshots: Path
) -> None:
    box = open_chat(gradio_app, page)
    box.fill("hello")
    box.press("Enter")
    page.get_by_text("You said hello.").wait_for()
    box.fill("history")
    box.press("Enter")
    page.get_by_text("human=hello; ai=You said hello.; human=history;").wait_for()
    box.fill("silent")
    box.press("Enter")
    page.get_by_text("one two").wait_for()
    gradio_app.wait_for("made 2")
    page.screenshot(path=screenshots / "gradio-silent.png")
    page.locator("button.stop-button").click()
    gradio_app.wait_for("left silent")
    page.screenshot(path=screenshots / "gradio-stopped.png")


def test_a_browser_that_leaves_gradio_stops_the_model(gradio_app: App, page: Any) -> None:
    box = open_chat(gradio_app, page)
    box.fill("endless")
    box.press("Enter")
    gradio_app.wait_for("made 5")
    page.close()
    gradio_app.wait_for("left endless")


def ask(page: Any, question: str) -> None:
    box = page.get_by_label("Question")
    box.fill(question)
    box.press("Enter")


def test_streamlit_shows_growing_text(streamlit_app: App, page: Any, screenshots: Path) -> None:
    page.goto(streamlit_app.url)
    ask(page, "hello")
    streamlit_app.wait_for("written You said **hello**.")
    page.get_by_text("complete: You said hello.").wait_for()
    page.screenshot(path=screenshots / "streamlit-done.png")


def test_a_rerun_stops_a_silent_model(streamlit_app: App, page: Any, screenshots: Path) -> None:
    """A button, and another question: both rerun the script while no token comes."""
    page.goto(streamlit_app.url)
    ask(page, "silent")
    streamlit_app.wait_for("made 2")
    page.get_by_text("one two").wait_for()
    page.screenshot(path=screenshots / "streamlit-silent.png")
    page.get_by_role("button", name="Again").click()
    streamlit_app.wait_for("left silent")
    streamlit_app.wait_for("made 2")
    ask(page, "mute")
    streamlit_app.wait_for("left silent")
    streamlit_app.wait_for("asked mute")
    ask(page, "hello")
    streamlit_app.wait_for("left mute")
    streamlit_app.wait_for("written You said **hello**.")


def test_streamlits_stop_button_stops_a_silent_model(streamlit_app: App, page: Any) -> None:
    page.goto(streamlit_app.url)
    ask(page, "silent")
    streamlit_app.wait_for("made 2")
    page.get_by_role("button", name="Stop").click()
    streamlit_app.wait_for("left silent")


def test_the_end_of_a_session_stops_a_silent_model(streamlit_app: App, page: Any) -> None:
    """Streamlit keeps a session for a while in case that its browser comes back."""
    page.goto(streamlit_app.url)
    ask(page, "silent")
    streamlit_app.wait_for("made 2")
    page.close()
    streamlit_app.wait_for("left silent", within=30)
