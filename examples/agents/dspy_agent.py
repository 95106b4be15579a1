"""A module of DSPy: pip install 'optimas_jax[dspy]'."""

import dspy
from shop import ROWS, grade, look_up

import optimas_jax as oj


class Clerk(dspy.Module):
    def __init__(self):
        super().__init__()
        self.react = dspy.ReAct("question -> answer", tools=[look_up], max_iters=4)

    def forward(self, question):
        return self.react(question=question)


clerk = Clerk()


@oj.program(components=[oj.agent("clerk", keep=True)], timeout=300)
def answer(question):
    model = dspy.LM("openai/clerk", api_base=oj.base_url(), api_key="none", cache=False)
    with dspy.context(lm=model):
        return clerk(question=question).answer


if __name__ == "__main__":
    result = oj.optimize(answer, grade, ROWS, model="openai:gpt-4o-mini", workdir="runs/dspy")
    print(result.best["clerk"].instruction, result.best(question="What do 5 figs cost?"))
