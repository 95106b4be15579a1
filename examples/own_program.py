"""A program of your own: plain Python with a loop, a tool, and a metric that says why.

python examples/own_program.py
"""

import optimas_jax as oj
from optimas_jax.benchmarks.countries import load_countries

rows = [{"question": f"What is the capital of {one.name}?", "answer": one.capital} for one in load_countries()]

answer = oj.prompt("Answer the question with a name or a number.", max_tokens=8, stop=("\n",))
tries = oj.setting(1, choices=(1, 2, 3))


@oj.component
def check(text):
    """Says what is wrong with an answer, if anything."""
    return "" if text and len(text.split()) <= 3 else "Use at most three words."


async def program(question):
    problem = ""
    for _ in range(tries.value):
        text = await answer(question=question, problem=problem or "none")
        problem = await check(text)
        if not problem:
            break
    return {"answer": text}


def metric(example, made):
    right = example["answer"].lower() in made["answer"].lower()
    return float(right), "" if right else f"Expected {example['answer']}, got {made['answer']}."


if __name__ == "__main__":
    result = oj.optimize(program, metric, rows, workdir="runs/own_program")
    print(result, result.best(question="What is the capital of Peru?"))
