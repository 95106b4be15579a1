"""A tool of an MCP server in a component: pip install 'optimas_jax[mcp]'."""

import sys
from pathlib import Path

from mcp import Client, StdioServerParameters
from shop import ROWS, grade

import optimas_jax as oj

SERVER = StdioServerParameters(command=sys.executable, args=[str(Path(__file__).with_name("mcp_shop.py"))])


@oj.component(effect=True)
async def look_up(item: str) -> str:
    """Looks up the price of one item, such as apple."""
    async with Client(SERVER) as client:
        return (await client.call_tool("look_up", {"item": item})).content[0].text


clerk = oj.prompt("You help in a shop.", tools=[look_up])


@oj.program(timeout=300)
async def answer(question):
    steps = []
    for _ in range(4):
        reply = await clerk(question=question, steps=steps)
        if not reply.calls:
            return reply.text
        steps += [{"call": call, "result": await look_up(**call.arguments)} for call in reply.calls]
    return ""


if __name__ == "__main__":
    result = oj.optimize(answer, grade, ROWS, model="openai:gpt-4o-mini", workdir="runs/mcp")
    print(result.best["clerk"].instruction, result.best(question="What do 5 figs cost?"))
