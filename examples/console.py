"""Print an answer as it comes, from a plain `invoke`; the model needs no `streaming=True`."""

from queuestream import StreamHandler
from queuestream.demo import DemoChatModel


def print_token(token: str) -> None:
    """Show one token at once."""
    print(token, end="", flush=True)


model = DemoChatModel(pace=0.002)
handler = StreamHandler(on_token=print_token)
answer = model.invoke("What is a stream?", {"callbacks": [handler]})

print(f"({len(answer.text.split())} words)")
