"""TextGrad on a system of ours: ``textgrad_peer.py ADDRESS``.

The instructions of the components are its variables; a component call is a call on the server, recorded in TextGrad's
graph with the fields that went into it, and the words about a run's score are the loss. As in its own prompt
optimisation, a batch is a step, and a step that lowers the validation score is taken back. Settings of the Optimas
paper (appendix E): batches of 4, validation every second step, one component's instruction at a time.
"""

from __future__ import annotations

import concurrent.futures
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from peer_client import Client, Refused, as_text, as_value, feedback, run_once, tuned

os.environ.setdefault("TEXTGRAD_LOG_DIR", tempfile.mkdtemp())  # it writes every prompt there
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or a library of it asks for prices over the network

import textgrad as tg
from textgrad.autograd.llm_ops import FormattedLLMCall
from textgrad.autograd.string_based_ops import StringBasedFunction
from textgrad.engine import EngineLM

BATCH, VALIDATE_EVERY, THREADS = 4, 2, 32


class ServerEngine(EngineLM):
    """The model behind the server, for TextGrad's own prompts: feedback, and new values of variables."""

    model_string = "server"

    def __init__(self, client: Client, max_tokens: int):
        self.client, self.max_tokens = client, max_tokens

    def generate(self, prompt: str, system_prompt: str | None = None, **_: Any) -> str:
        turns = [{"role": "system", "content": system_prompt or self.system_prompt}]
        turns.append({"role": "user", "content": prompt})
        # Its engines ask at temperature 0, where a step on the same batch would never differ.
        return self.client.complete(turns, max_tokens=self.max_tokens, temperature=1.0)["text"]

    def __call__(self, prompt: str, system_prompt: str | None = None, **settings: Any) -> str:
        return self.generate(prompt, system_prompt, **settings)


class ComponentEngine(EngineLM):
    """One component call, dressed as an engine: the fields are known beforehand, the instruction comes from the
    variable."""

    model_string = "component"

    def __init__(self, system: System, component: Mapping[str, Any], fields: Mapping[str, Any], example: str):
        self.call, self.outputs = (system, component, fields, example), None

    def generate(self, prompt: str, system_prompt: str | None = None, **_: Any) -> str:
        system, component, fields, example = self.call
        value = as_value(component, system_prompt or "")
        self.outputs = system.client.component(component["name"], fields, value, example)
        return as_text(self.outputs)

    def __call__(self, prompt: str, system_prompt: str | None = None, **settings: Any) -> str:
        return self.generate(prompt, system_prompt, **settings)


class RecordedEngine(EngineLM):
    """A call that a program has made, dressed as an engine."""

    model_string = "component"

    def __init__(self, outputs: Mapping[str, Any] | None):
        self.outputs = outputs

    def generate(self, prompt: str, system_prompt: str | None = None, **_: Any) -> str:
        return as_text(self.outputs)

    def __call__(self, prompt: str, system_prompt: str | None = None, **settings: Any) -> str:
        return self.generate(prompt, system_prompt, **settings)


class System:
    """The components in their order, and the variables that they answer to."""

    def __init__(self, client: Client, task: Mapping[str, Any]):
        self.client, self.task = client, task
        self.variables = {
            component["name"]: tg.Variable(
                component["instruction"],
                requires_grad=True,
                role_description=f"instruction to a language model with this task: {component['description']}",
            )
            for component in tuned(task)
        }

    def values(self) -> dict[str, Any]:
        return {part["name"]: as_value(part, self.variables[part["name"]].value) for part in tuned(self.task)}

    def score(self, example: Mapping[str, Any]) -> float:
        """Of one run, without a graph."""
        return run_once(self.client, self.task, self.values(), example)["score"]

    def loss(self, example: Mapping[str, Any]) -> tuple[Any, float]:
        """The words about a run as a variable whose graph leads back to the instructions, and the score."""
        if self.task["program"]:
            return self._loss_of_program(example)
        fields = dict(example["inputs"])
        nodes = {
            name: tg.Variable(as_text({name: value}), requires_grad=False, role_description=f"{name} of the task")
            for name, value in fields.items()
        }
        last = next(iter(nodes.values()))
        for component in self.task["components"]:
            given = {name: fields[name] for name in component["inputs"]}
            read = {name: nodes[name] for name in component["inputs"]}
            role = f"{', '.join(component['outputs'])}, made by {component['name']}: {component['description']}"
            if component["name"] in self.variables:
                engine = ComponentEngine(self, component, given, example["id"])
                shown = "\n".join(f"{name}: {{{name}}}" for name in read)
                prompt = self.variables[component["name"]]
                last = FormattedLLMCall(engine, shown, dict.fromkeys(read, ""), prompt)(read, role)
                answer = engine.outputs
            else:
                answer = self.client.component(component["name"], given, None, example["id"])
                words = as_text(answer)
                last = StringBasedFunction(lambda words=words, **_: words, component["description"])(read, role)
            if answer is None:
                break
            fields |= answer
            nodes |= dict.fromkeys(answer, last)
        outputs = self._outputs(fields)
        score = self.client.score(self.values(), example["id"], outputs)
        return _judged(last, feedback(outputs, example["gold"], score)), score

    def _loss_of_program(self, example: Mapping[str, Any]) -> tuple[Any, float]:
        """The same for a program, from the calls that it made: what a call reads is the answer of the last call that
        had these words, or new."""
        run, known = self.client.run(self.values(), example["id"]), dict[str, Any]()
        last = tg.Variable(as_text(example["inputs"]), requires_grad=False, role_description="inputs of the task")
        components = {component["name"]: component for component in self.task["components"]}
        for call in run["calls"]:
            component, answer = components[call["name"]], call["outputs"] or None
            read = {}
            for name, value in call["inputs"].items():
                words = as_text({name: value})
                new = tg.Variable(words, requires_grad=False, role_description=f"{name} of the task")
                read[name] = known.setdefault(words, new)
            role = f"{', '.join(answer or {})}, made by {component['name']}: {component['description']}"
            if component["name"] in self.variables:
                shown = "\n".join(f"{name}: {{{name}}}" for name in read)
                variable = self.variables[component["name"]]
                last = FormattedLLMCall(RecordedEngine(answer), shown, dict.fromkeys(read, ""), variable)(read, role)
            else:
                words = as_text(answer)
                last = StringBasedFunction(lambda words=words, **_: words, component["description"])(read, role)
            known |= {as_text({name: value}): last for name, value in (answer or {}).items()}
        words = run["feedback"] or feedback(run["outputs"], example["gold"], run["score"])
        return _judged(last, words), run["score"]

    def _outputs(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        return {name: fields[name] for name in self.task["output_fields"] if name in fields}


def _judged(last: Any, words: str) -> Any:
    """The words about a run, as a variable behind its last answer."""
    judged = StringBasedFunction(lambda **_: words, "The metric that compares the answer with what is expected.")
    return judged({"prediction": last}, "evaluation of the answer")


def validate(system: System) -> float:
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return statistics.fmean(pool.map(system.score, system.task["splits"]["val"]))


def step(system: System, variable: Any, engine: ServerEngine, batch: list[Mapping[str, Any]]) -> None:
    """One step of gradient descent on one instruction. A batch that cannot be stepped on (the model's answer has no
    marks around the new value, or the prompt does not fit) leaves it as it is."""
    for other in system.variables.values():
        other.requires_grad = other is variable
    optimizer = tg.TGD([variable], engine=engine)
    optimizer.zero_grad()
    before = variable.value
    try:
        with concurrent.futures.ThreadPoolExecutor(BATCH) as pool:
            losses = [loss for loss, _ in pool.map(system.loss, batch)]
        tg.sum(losses).backward()
        optimizer.step()
    except (IndexError, Refused) as error:
        variable.set_value(before)
        print(f"no step: {type(error).__name__}: {str(error)[:300]}", flush=True)


def main(address: str) -> None:
    client = Client(address)
    task = client.task()
    engine = ServerEngine(client, task["max_tokens"])
    tg.set_backward_engine(engine, override=True)
    system, rng = System(client, task), random.Random(task["seed"])
    best, train = validate(system), list(task["splits"]["train"])
    while True:  # epochs, until the budget ends the process
        for variable in system.variables.values():
            rng.shuffle(train)
            kept = variable.value
            for number in range(len(train) // BATCH or 1):
                step(system, variable, engine, train[number * BATCH : (number + 1) * BATCH])
                if number % VALIDATE_EVERY == VALIDATE_EVERY - 1 and variable.value != kept:
                    score = validate(system)
                    if score < best:
                        variable.set_value(kept)
                    else:
                        best, kept = score, variable.value
            variable.set_value(kept)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Refused as error:
        raise SystemExit(f"the server refused: {error}") from None
