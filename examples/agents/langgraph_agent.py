"""An agent of LangGraph: pip install 'optimas_jax[langgraph]'."""

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from shop import ROWS, grade, look_up

import optimas_jax as oj


def make_agent(base_url):
    model = ChatOpenAI(model="clerk", base_url=base_url, api_key="none")
    return create_agent(model, [tool(look_up)], system_prompt="You help in a shop.")


@oj.program(components=[oj.agent("clerk")], timeout=300)
async def answer(question):
    state = await make_agent(oj.base_url()).ainvoke({"messages": [{"role": "user", "content": question}]})
    return state["messages"][-1].content


if __name__ == "__main__":
    result = oj.optimize(answer, grade, ROWS, model="openai:gpt-4o-mini", workdir="runs/langgraph")
    print(result.best["clerk"].instruction, result.best(question="What do 5 figs cost?"))
