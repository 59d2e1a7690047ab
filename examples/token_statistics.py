"""Measure runs: one handler for all, whose numbers are those of the last run."""

from queuestream.demo import DemoChatModel
from queuestream.handlers import StatisticsStreamHandler


def print_token(token: str) -> None:
    """Show one token at once."""
    print(token, end="", flush=True)


passage = "A stream is water that knows where it is going."
handler = StatisticsStreamHandler(on_token=print_token)

for pace in (0.002, 0.01):
    model = DemoChatModel(passage=passage, pace=pace)
    model.invoke("What is a stream?", {"callbacks": [handler]})
    print(f"\n[{handler.summary()}]")
