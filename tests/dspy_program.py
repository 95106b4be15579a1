"""A module of three predictors with a loop in ``forward``, searched: python dspy_program.py ADDRESS FOLDER, in the
environment of DSPy. ADDRESS serves the model that the run has itself. Prints what was found as JSON, in the last line.

The saved module is then loaded by plain DSPy, with a model behind ADDRESS, and asked the same questions.
"""

import json
import sys
from typing import Literal

import dspy

import optimas_jax as oj
from optimas_jax.report.console import ConsoleProgress

COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "the sun": "yellow", "the sea": "blue"}
ROWS = [
    {"question": f"{ask} {thing}?", "colour": colour}
    for ask in (
        "What is the colour of",
        "Which colour has",
        "What colour is",
        "Tell the colour of",
        "Name the colour of",
    )
    for thing, colour in COLOURS.items()
]


class Check(dspy.Signature):
    """Is the draft one word?"""

    draft: str = dspy.InputField()
    verdict: Literal["yes", "no"] = dspy.OutputField()


class Colours(dspy.Module):
    def __init__(self):
        super().__init__()
        self.topic = dspy.Predict("question -> thing")
        self.draft = dspy.Predict("question, thing -> answer")
        self.check = dspy.Predict(Check)
        self.topic.demos = [dspy.Example(question=f"What colour is {x}?", thing=x) for x in ("milk", "gold", "a lemon")]
        self.draft.demos = [
            dspy.Example(question=f"What colour is {x}?", thing=x, answer=f"The colour of {x} is {y}.")
            for x, y in (("milk", "white"), ("gold", "yellow"), ("a cherry", "red"))
        ]
        self.check.demos = [
            dspy.Example(draft=draft, verdict=verdict)
            for draft, verdict in (("green", "yes"), ("The colour of gold is yellow.", "no"), ("blue", "yes"))
        ]

    def forward(self, question):
        thing = self.topic(question=question).thing
        for _ in range(2):
            answer = self.draft(question=question, thing=thing).answer
            if self.check(draft=answer).verdict == "yes":
                break
        return dspy.Prediction(answer=answer, thing=thing)


def grade(example, prediction, trace=None):
    right = example.colour in prediction.answer.lower()
    return dspy.Prediction(score=right / (1 + len(prediction.answer) / 50), feedback="" if right else "Say the colour.")


def main(model, address, folder, settings):
    module = Colours()
    program = oj.dspy.program(module)
    result = oj.optimize(
        program,
        oj.dspy.metric(grade),
        ROWS,
        model=oj.LanguageModel(model, style="chat", max_tokens=60),
        split=(0.4, 0.2, 0.2, 0.2),
        workdir=folder,
        config=settings,
        progress=ConsoleProgress(quiet=True),
    )
    oj.dspy.tuned(module, result.best).save(f"{folder}/colours.json")
    loaded = Colours()
    loaded.load(f"{folder}/colours.json")
    ours, theirs = oj.load(folder, program), []
    served = dspy.LM("openai/m", api_base=address, api_key="none", cache=False, temperature=0.0, max_tokens=60)
    questions = [row["question"] for row in ROWS[:8]]
    with dspy.context(lm=served):
        for question in questions:
            try:
                theirs.append(dict(loaded(question=question).items()))
            except Exception as error:
                theirs.append(type(error).__name__)
    mine = []
    for question in questions:
        try:
            mine.append(ours(question=question))
        except oj.ComponentFailure as failure:
            mine.append(str(failure))
    return {
        "gain": result.gain,
        "prompts": {name: [result.best[name].instruction, len(result.best[name].demos)] for name in ("topic", "draft")},
        "ours": mine,
        "theirs": theirs,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4], json.loads(sys.argv[4]))))
