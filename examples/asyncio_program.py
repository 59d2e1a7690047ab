"""Consume two streams at once on one asyncio loop."""

import asyncio

from queuestream import stream
from queuestream.demo import DemoChatModel


async def count(name: str, model: DemoChatModel) -> None:
    """Count the tokens of one answer."""
    number = 0
    async with stream(model, "What is a stream?") as tokens:
        async for _ in tokens:
            number += 1
    print(f"{name}: {number} tokens")


async def main() -> None:
    """Run both until both have ended."""
    await asyncio.gather(
        count("slow", DemoChatModel(pace=0.004)),
        count("quick", DemoChatModel(pace=0.001)),
    )


asyncio.run(main())
