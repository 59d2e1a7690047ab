"""Stream a function that asks the model twice, and leave when there is enough."""

from typing import Any

from queuestream import stream
from queuestream.demo import DemoChatModel

model = DemoChatModel(pace=0.002)


def answer(question: str, callbacks: Any = None) -> str:
    """Draft an answer, then ask for a better one: both calls are heard."""
    draft = model.invoke(question, {"callbacks": callbacks})
    return model.invoke(f"Improve this: {draft.text}", {"callbacks": callbacks}).text


with stream(answer, "What is a stream?") as tokens:
    for token in tokens:
        print(token, end="", flush=True)
        if tokens.text.count("bucket") == 2:
            break  # leaving the block stops the function at its next token

print(f"\nEnough after {len(tokens.text)} characters.")
