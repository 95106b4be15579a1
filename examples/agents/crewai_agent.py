"""A crew of CrewAI: pip install 'optimas_jax[serve]', then crewai, which wants an older openai."""

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool
from shop import ROWS, grade, look_up

import optimas_jax as oj


def make_crew(base_url):
    model = LLM(model="openai/clerk", base_url=base_url, api_key="none")
    story = "You have worked in this shop for years."
    clerk = Agent(role="Clerk", goal="Help.", backstory=story, llm=model, tools=[tool(look_up)])
    task = Task(description="{question}", expected_output="The answer.", agent=clerk)
    return Crew(agents=[clerk], tasks=[task])


@oj.program(components=[oj.agent("clerk", keep=True)], timeout=300)
def answer(question):
    return make_crew(oj.base_url()).kickoff(inputs={"question": question}).raw


if __name__ == "__main__":
    result = oj.optimize(answer, grade, ROWS, model="openai:gpt-4o-mini", workdir="runs/crewai")
    print(result.best["clerk"].instruction, result.best(question="What do 5 figs cost?"))
