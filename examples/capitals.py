"""A program of your own in a few lines: the capitals of countries, on the embedded model.

python examples/capitals.py
"""

import optimas_jax as oj
from optimas_jax.benchmarks.countries import load_countries

rows = [{"question": f"What is the capital of {c.name}?", "answer": c.capital} for c in load_countries()]
answer = oj.prompt("Answer the question.", max_tokens=12, stop=("\n",))


async def pipeline(question):  # plain Python: loops, branches, tools, clients of your own
    return {"answer": (await answer(question=question)).strip(" .")}


def metric(example, made):  # a number, and why it is not higher
    right = made["answer"].lower() == example["answer"].lower()
    return float(right), "" if right else "Give the name of the city alone."


if __name__ == "__main__":
    result = oj.optimize(pipeline, metric, rows, workdir="runs/mine")
    print(result, result.best(question="What is the capital of Peru?"), sep="\n")
