"""A chat on loopback: `python gradio_app.py PORT`."""

from __future__ import annotations

import sys

import gradio as gr
from langchain_core.runnables import RunnableLambda

from queuestream.ui import gradio_chat
from tests.ui.apps.model import ObedientModel, tell

model = ObedientModel()


async def use(messages: list[object]) -> object:
    return await model.ainvoke(messages)  # type: ignore[arg-type] # LangChain's own messages


chain = RunnableLambda(use).with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
app = gr.ChatInterface(gradio_chat(chain), title="A chat")
app.launch(
    prevent_thread_lock=True,
    quiet=True,
    server_name="127.0.0.1",
    server_port=int(sys.argv[1]),
    inbrowser=False,
    share=False,
)
tell("ready")
app.block_thread()
