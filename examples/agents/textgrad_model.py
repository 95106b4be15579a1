"""A model of TextGrad: pip install 'optimas_jax[textgrad]'."""

import textgrad as tg
from shop import PRICES, ROWS, grade, look_up
from textgrad.engine.local_model_openai_api import ChatExternalClient

import optimas_jax as oj


class Engine(ChatExternalClient):
    def _check_cache(self, prompt):
        """TextGrad's cache would answer for another instruction; the run has a tape."""


ROLE = "system prompt of a clerk"
clerk = tg.BlackboxLLM(
    Engine(oj.client(sync=True), "clerk"), tg.Variable("You help in a shop.", requires_grad=True, role_description=ROLE)
)


@oj.program(components=[oj.agent("clerk")], timeout=300)
def answer(question):
    known = "\n".join(f"{item}: {look_up(item)}" for item in PRICES if item in question)
    return clerk(tg.Variable(f"{question}\n{known}", requires_grad=False, role_description="question")).value


if __name__ == "__main__":
    result = oj.optimize(answer, grade, ROWS, model="openai:gpt-4o-mini", workdir="runs/textgrad")
    print(result.best["clerk"].instruction, result.best(question="What do 5 figs cost?"))
