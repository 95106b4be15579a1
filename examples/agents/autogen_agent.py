"""An agent of AutoGen: pip install 'optimas_jax[autogen]'."""

from autogen_agentchat.agents import AssistantAgent
from autogen_ext.models.openai import OpenAIChatCompletionClient
from shop import ROWS, grade, look_up

import optimas_jax as oj

INFO = {"vision": False, "function_calling": True, "json_output": True, "family": "unknown", "structured_output": True}


def make_agent(base_url):
    client = OpenAIChatCompletionClient(model="clerk", base_url=base_url, api_key="none", model_info=INFO)
    return AssistantAgent("clerk", client, tools=[look_up], system_message="You help in a shop.", max_tool_iterations=4)


@oj.program(components=[oj.agent("clerk")], timeout=300)
async def answer(question):
    done = await make_agent(oj.base_url()).run(task=question)
    return done.messages[-1].content


if __name__ == "__main__":
    result = oj.optimize(answer, grade, ROWS, model="openai:gpt-4o-mini", workdir="runs/autogen")
    print(result.best["clerk"].instruction, result.best(question="What do 5 figs cost?"))
