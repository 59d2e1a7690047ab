"""A chat with Chainlit: `pip install chainlit`, then `chainlit run chainlit_app.py`.

Chainlit's stop button cancels the function below, and that stops the model.
"""

import chainlit as cl

from queuestream import stream
from queuestream.demo import DemoChatModel

model = DemoChatModel()


@cl.on_message
async def answer(question: cl.Message) -> None:
    """Send the answer token by token."""
    reply = cl.Message(content="")
    async with stream(model, question.content) as tokens:
        async for token in tokens:
            await reply.stream_token(token)
    await reply.update()
