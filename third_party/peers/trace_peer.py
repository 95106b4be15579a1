"""Trace (OpenTrace) with OptoPrime on a system of ours: ``trace_peer.py ADDRESS``.

The instructions of the components are Trace's parameters; a component call is an operator on the instruction and the
fields that it reads, and the words about the runs of a batch are the feedback. OptoPrime sees the recorded graph and
suggests new instructions as JSON. As in Trace's examples a batch is a step and its answers are joined into one node; a
step that lowers the validation score is taken back, and one that cannot be read changes nothing.
"""

from __future__ import annotations

import concurrent.futures
import os
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from peer_client import Client, Refused, as_text, as_value, feedback, run_once, tuned

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or a library of it asks for prices over the network

from opto.optimizers import OptoPrime
from opto.trace import bundle, node

BATCH, VALIDATE_EVERY, THREADS = 4, 2, 32  # as for TextGrad


class ServerLLM:
    """The model behind the server, for OptoPrime's prompts."""

    def __init__(self, client: Client, max_tokens: int):
        self.client, self.max_tokens = client, max_tokens

    def __call__(self, messages: Sequence[Mapping[str, str]], **_: Any) -> Any:
        answer = self.client.complete(messages, max_tokens=self.max_tokens, temperature=1.0)
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=answer["text"]))])


class System:
    """The components in their order, and the parameters that they answer to."""

    def __init__(self, client: Client, task: Mapping[str, Any]):
        self.client, self.task = client, task
        self.parameters = {
            part["name"]: node(part["instruction"], name=f"instruction_{part['name']}", trainable=True)
            for part in tuned(task)
        }

    def values(self) -> dict[str, Any]:
        return {part["name"]: as_value(part, self.parameters[part["name"]].data) for part in tuned(self.task)}

    def run(self, example: Mapping[str, Any]) -> dict[str, Any]:
        return run_once(self.client, self.task, self.values(), example)

    def score(self, example: Mapping[str, Any]) -> float:
        return self.run(example)["score"]

    def recorded(self, example: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> Any:
        """The last answer of a run as a node of the graph. The calls have been made; what a call reads is the answer
        of the last call that had these words, or new."""
        known: dict[str, Any] = {}
        last = node(as_text(example["inputs"]), name="inputs")
        for call in calls:
            read = [
                known.setdefault(as_text({name: value}), node(as_text({name: value}), name=name))
                for name, value in call["inputs"].items()
            ]
            read = [*{id(one): one for one in read}.values()]  # two inputs may have the same words; Trace refuses pairs
            prompt = self.parameters.get(call["name"])
            last = _operator(self._part(call["name"]), as_text(call["outputs"]))(
                *([] if prompt is None else [prompt]), *read
            )
            known |= {as_text({name: value}): last for name, value in call["outputs"].items()}
        return last

    def _part(self, name: str) -> Mapping[str, Any]:
        return next(part for part in self.task["components"] if part["name"] == name)


def _operator(part: Mapping[str, Any], answer: str) -> Any:
    """A call that was made, as an operator of Trace, with the component's name and description."""

    def call(*read: Any) -> str:
        return answer

    call.__name__ = call.__qualname__ = part["name"]
    return bundle(description=f"[{part['name']}] {part['description']}", allow_external_dependencies=True)(call)


@bundle(description="[batch] The answers of several runs.")
def batch_of(*answers: Any) -> str:
    return "\n".join(f"ID [{number}]: {answer}" for number, answer in enumerate(answers))


def validate(system: System) -> float:
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return statistics.fmean(pool.map(system.score, system.task["splits"]["val"]))


def step(system: System, optimizer: OptoPrime, batch: Sequence[Mapping[str, Any]]) -> None:
    """One step on the instructions. A prompt that does not fit the model leaves them as they are."""
    try:
        with concurrent.futures.ThreadPoolExecutor(BATCH) as pool:
            runs = list(pool.map(system.run, batch))
        answers = [system.recorded(example, run["calls"]) for example, run in zip(batch, runs, strict=True)]
        judged = [
            run["feedback"] or feedback(run["outputs"], example["gold"], run["score"])
            for example, run in zip(batch, runs, strict=True)
        ]
        optimizer.zero_feedback()
        optimizer.backward(
            batch_of(*answers), "\n".join(f"ID [{number}]: {text}" for number, text in enumerate(judged))
        )
        optimizer.step()
    except Refused as error:
        print(f"no step: {str(error)[:300]}", flush=True)


def main(address: str) -> None:
    client = Client(address)
    task = client.task()
    system, rng = System(client, task), random.Random(task["seed"])
    parameters = system.parameters
    optimizer = OptoPrime([*parameters.values()], llm=ServerLLM(client, task["max_tokens"]))
    best, train = validate(system), list(task["splits"]["train"])
    kept = {name: parameter.data for name, parameter in parameters.items()}
    while True:  # epochs, until the budget ends the process
        rng.shuffle(train)
        for number in range(len(train) // BATCH or 1):
            step(system, optimizer, train[number * BATCH : (number + 1) * BATCH])
            now = {name: parameter.data for name, parameter in parameters.items()}
            if number % VALIDATE_EVERY == VALIDATE_EVERY - 1 and now != kept:
                score = validate(system)
                if score < best:
                    optimizer.update({parameters[name]: kept[name] for name in parameters})
                else:
                    best, kept = score, now


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Refused as error:
        raise SystemExit(f"the server refused: {error}") from None
