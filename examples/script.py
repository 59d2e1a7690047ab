"""Print a chain's answer as it comes, then use the whole of it."""

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from queuestream import stream
from queuestream.demo import DemoChatModel

prompt = ChatPromptTemplate.from_template("Tell me about {topic}.")
chain = prompt | DemoChatModel(pace=0.005) | StrOutputParser()

with stream(chain, {"topic": "rivers"}) as tokens:
    for token in tokens:
        print(token, end="", flush=True)

print(f"({len(tokens.result.split())} words)")
