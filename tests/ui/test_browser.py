"""The real apps in a real browser, and screenshots to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.examples.programs import EXAMPLES
from tests.ui.conftest import App, free_port

if TYPE_CHECKING:
    from pathlib import Path


def open_chat(gradio_app: App, page: Any) -> Any:
    """Open Gradio's page; the box for questions."""
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


def open_streamlit(app: App, page: Any) -> None:
    """Open Streamlit's page.  Its first one imports everything, on a machine that may be busy."""
    page.goto(app.url)
    app.wait_for("drawn", within=45)


def ask(page: Any, question: str) -> None:
    box = page.get_by_label("Question")
    box.fill(question)
    box.press("Enter")


def test_streamlit_shows_growing_text(streamlit_app: App, page: Any, screenshots: Path) -> None:
    open_streamlit(streamlit_app, page)
    ask(page, "hello")
    streamlit_app.wait_for("written You said **hello**.")
    page.get_by_text("complete: You said hello.").wait_for()
    page.screenshot(path=screenshots / "streamlit-done.png")


def test_a_rerun_stops_a_silent_model(streamlit_app: App, page: Any, screenshots: Path) -> None:
    """A button, and another question: both rerun the script while no token comes."""
    open_streamlit(streamlit_app, page)
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
    open_streamlit(streamlit_app, page)
    ask(page, "silent")
    streamlit_app.wait_for("made 2")
    page.get_by_role("button", name="Stop").click()
    streamlit_app.wait_for("left silent")


def test_the_end_of_a_session_stops_a_silent_model(streamlit_app: App, page: Any) -> None:
    """Streamlit keeps a session for a while in case that its browser comes back."""
    open_streamlit(streamlit_app, page)
    ask(page, "silent")
    streamlit_app.wait_for("made 2")
    page.close()
    streamlit_app.wait_for("left silent", within=30)


def test_the_chainlit_example_answers_and_stops(
    page: Any, screenshots: Path, tmp_path: Path
) -> None:
    """Chainlit writes files where it runs, hence the folder."""
    port = free_port()
    program = tmp_path / "chainlit_app.py"
    example = (EXAMPLES / "chainlit_app.py").read_text("utf-8")
    assert "model = DemoChatModel()" in example
    obedient = "from tests.ui.apps.model import ObedientModel\nmodel = ObedientModel()"
    program.write_text(example.replace("model = DemoChatModel()", obedient), "utf-8")
    command = ["-m", "chainlit", "run", str(program), "--headless", "--port", str(port)]
    app = App(*command, "--host", "127.0.0.1", port=port, cwd=tmp_path)
    try:
        app.wait_until_it_serves()
        page.goto(app.url)
        box = page.locator("#chat-input")
        box.click()
        box.press_sequentially("hello")
        page.locator("#chat-submit").click()  # enabled when the page is connected
        app.wait_for("left hello")
        page.get_by_text("You said").wait_for()
        page.screenshot(path=screenshots / "chainlit.png")
        box.click()
        box.press_sequentially("silent")
        page.locator("#chat-submit").click()  # enabled when the page is connected
        app.wait_for("made 2")
        page.locator("#stop-button").click()
        app.wait_for("left silent")
    finally:
        app.stop()
    assert not [line for line in app.log if "Traceback" in line]
