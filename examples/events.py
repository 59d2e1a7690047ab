"""Show the events of a run whose first model breaks off, and what both have cost."""

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda

from queuestream import stream
from queuestream.demo import DemoChatModel

model = DemoChatModel(passage="A stream is water that knows where it is going.", pace=0.02)


def unreliable(question: str, config: RunnableConfig) -> AIMessage:
    """Ask the model, and fail when it has answered."""
    answer = model.invoke(question, config)
    if answer.text:
        raise ConnectionError("the connection broke")
    return answer


chain = RunnableLambda(unreliable).with_fallbacks([model])

with stream(chain, "What is a stream?", select="event") as events:
    for event in events:
        if event.kind == "text":
            print(event.text, end="", flush=True)
        elif event.kind == "restart":
            print(f"\n(attempt {event.attempt}: all again)")

cost = events.usage["output_tokens"] if events.usage else 0
print(f"\n{cost} tokens in {events.statistics.attempts} attempts; the answer: {events.text!r}")
