"""An agent of the OpenAI Agents SDK: pip install 'optimas_jax[openai-agents]'."""

from agents import Agent, Runner, function_tool, set_default_openai_client, set_tracing_disabled
from shop import ROWS, grade, look_up

import optimas_jax as oj

agent = Agent(name="Clerk", instructions="You help in a shop.", model="clerk", tools=[function_tool(look_up)])

set_default_openai_client(oj.client(), use_for_tracing=False)
set_tracing_disabled(True)


@oj.program(components=[oj.agent("clerk")], timeout=300)
async def answer(question):
    return (await Runner.run(agent, question)).final_output


if __name__ == "__main__":
    result = oj.optimize(answer, grade, ROWS, model="openai:gpt-4o-mini", workdir="runs/openai-agents")
    print(result.best["clerk"].instruction, result.best(question="What do 5 figs cost?"))
