"""A chat page with Gradio; its stop button stops the model.

`pip install "queuestream[gradio]"`, then `python gradio_chat.py [PORT]`.
"""

import sys

import gradio as gr

from queuestream.demo import DemoChatModel
from queuestream.ui import gradio_chat

app = gr.ChatInterface(gradio_chat(DemoChatModel()), title="What is a stream?")

if __name__ == "__main__":
    app.launch(server_port=int(sys.argv[1]) if len(sys.argv) > 1 else None)
