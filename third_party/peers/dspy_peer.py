"""DSPy's optimisers of prompts on a system of ours: ``dspy_peer.py NAME ADDRESS``, NAME one of ``OPTIMIZERS``.

The program has one predictor for every component with a prompt; a predictor makes a component call on the server, so
that DSPy decides on instructions and demonstrations and on nothing else. Its own prompts (proposals, reflection) go
to the same model, in its own words.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import sys
from types import SimpleNamespace
from typing import Any

from peer_client import Client, Refused, as_value, feedback, key_of, tuned

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or a library of it asks for prices over the network

import dspy
from dspy.teleprompt.gepa import InstructionProposer
from dspy.teleprompt.mipro_optimizer_v2 import AUTO_RUN_SETTINGS
from dspy.utils.exceptions import AdapterParseError
from sklearn.feature_extraction.text import TfidfVectorizer

THREADS = 32
OPTIMIZERS = ("labeled", "knn", "bootstrap", "miprov2", "copro", "simba", "gepa")
DEMOS, NEIGHBOURS = 16, 3  # as DSPy's documents have them
SIMBA_SIZES = ((32, 6), (16, 6), (16, 3), (8, 3))  # inputs of a step and candidates: its defaults, and smaller ones


class ServerLM(dspy.BaseLM):
    """The model behind the server, for DSPy's own prompts."""

    def __init__(self, client: Client, max_tokens: int, temperature: float = 1.0, **kwargs: Any):
        super().__init__(model="server", model_type="chat", temperature=temperature, max_tokens=max_tokens, **kwargs)
        self.client = client

    def forward(self, prompt: str | None = None, messages: list[dict[str, Any]] | None = None, **kwargs: Any) -> Any:
        settings = {**self.kwargs, **kwargs}
        messages = messages or [{"role": "user", "content": prompt or ""}]
        answers, used = [], {"prompt_tokens": 0, "completion_tokens": 0}
        for number in range(settings.get("n") or 1):
            answer = self._complete(
                [{"role": turn["role"], "content": _text(turn["content"])} for turn in messages],
                max_tokens=settings.get("max_tokens") or self.kwargs["max_tokens"],
                temperature=settings.get("temperature") or 0.0,
            )
            message = SimpleNamespace(content=answer["text"], role="assistant", tool_calls=None)
            answers.append(SimpleNamespace(message=message, finish_reason="stop", index=number))
            used = {name: used[name] + answer[name] for name in used}
        used["total_tokens"] = sum(used.values())
        return SimpleNamespace(choices=answers, usage=used, model=self.model)

    def _complete(self, turns: list[dict[str, str]], **settings: Any) -> dict[str, Any]:
        try:
            return self.client.complete(turns, **settings)
        except Refused as error:  # a prompt that does not fit the model: no answer
            print(error, flush=True)
            return {"text": "", "prompt_tokens": 0, "completion_tokens": 0}


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


class PatientAdapter(dspy.ChatAdapter):
    """DSPy's adapter, but an answer without its marks is taken whole, for the instruction if one is asked for: small
    models seldom write the marks, and would propose nothing."""

    def __init__(self) -> None:
        super().__init__(use_json_adapter_fallback=False)

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        try:
            return super().parse(signature, completion)
        except AdapterParseError:
            names = [*signature.output_fields]
            if any(field.annotation is not str for field in signature.output_fields.values()):
                raise
            asked_for = next((name for name in names if "instruction" in name), names[-1])
            return {**dict.fromkeys(names, ""), asked_for: completion.strip()}


class Part(dspy.Predict):
    """One component with a prompt: what DSPy tunes is its instruction and its demonstrations."""

    def __init__(self, client: Client, component: dict[str, Any]):
        fields = {name: (str, dspy.InputField()) for name in component["inputs"]}
        fields |= {name: (str, dspy.OutputField()) for name in component["outputs"]}
        super().__init__(dspy.Signature(fields, component["instruction"]))
        self.client, self.component = client, component

    def value(self) -> dict[str, Any]:
        return as_value(self.component, self.signature.instructions, [dict(demo) for demo in self.demos])

    def forward(self, **fields: Any) -> Any:
        """Leaves its mark in DSPy's trace, from which demonstrations and reflections are taken."""
        example = fields.pop("example_id")
        try:
            outputs = self.client.component(self.component["name"], fields, self.value(), example, **sampling(self.lm))
        except Refused as error:  # a prompt that does not fit the model: this candidate's failure
            print(error, flush=True)
            outputs = None
        if outputs is None:
            raise Failed(self.component["name"])
        return self.mark(fields, outputs)

    def mark(self, fields: dict[str, Any], outputs: dict[str, Any]) -> Any:
        """The prediction, which is now in DSPy's trace."""
        prediction = dspy.Prediction(**outputs)
        trace = dspy.settings.trace
        if trace is not None:
            trace.append((self, fields, prediction))
        return prediction

    def __call__(self, **fields: Any) -> Any:
        return self.forward(**fields)


def sampling(lm: Any) -> dict[str, Any]:
    """Settings of an attempt, where DSPy asks for another answer to the same prompt. ``lm``: of the predictor; SIMBA's
    predictors have one, else that of DSPy's settings counts."""
    lm = lm or dspy.settings.lm
    attempt = lm.kwargs.get("rollout_id")
    return {} if attempt is None else {"temperature": lm.kwargs.get("temperature") or 1.0, "attempt": attempt}


class Failed(Exception):
    """A component without an answer."""


class Program(dspy.Module):
    """The system: components in their order, those without a prompt at their defaults; or a whole program."""

    def __init__(self, client: Client, task: dict[str, Any]):
        super().__init__()
        self.client, self.task = client, task
        names = task["input_fields"]
        self.ids = {key_of(one["inputs"], names): one["id"] for split in task["splits"].values() for one in split}
        for component in tuned(task):
            setattr(self, component["name"], Part(client, component))

    def values(self) -> dict[str, Any]:
        return {component["name"]: getattr(self, component["name"]).value() for component in tuned(self.task)}

    def forward(self, **inputs: Any) -> Any:
        example = self.ids[key_of(inputs, self.task["input_fields"])]
        if self.task["program"]:
            return self._run(example)
        fields = dict(inputs)
        for component in self.task["components"]:
            given = {name: fields[name] for name in component["inputs"]}
            if "instruction" in component:
                try:
                    fields |= dict(getattr(self, component["name"])(**given, example_id=example))
                except Failed:
                    break
            else:
                outputs = self.client.component(component["name"], given, None, example)
                if outputs is None:
                    break
                fields |= outputs
        outputs = {name: fields[name] for name in self.task["output_fields"] if name in fields}
        # The score is noted here, where program and example are both known; the metric below reads it.
        score = self.client.score(self.values(), example, outputs, **self.sampling())
        return dspy.Prediction(**outputs, system_score=score)

    def sampling(self) -> dict[str, Any]:
        """Of a run: DSPy gives all predictors of a program the same model."""
        parts = self.predictors()
        return sampling(parts[0].lm if parts else None)

    def _run(self, example: str) -> Any:
        """A run of a program on the server, which tells the calls that it made."""
        try:
            run = self.client.run(self.values(), example, **self.sampling())
        except Refused as error:
            print(error, flush=True)
            return dspy.Prediction(system_score=0.0)
        for call in run["calls"]:
            part = getattr(self, call["name"], None)
            if isinstance(part, Part) and call["outputs"]:
                part.mark({name: call["inputs"].get(name, "") for name in part.component["inputs"]}, call["outputs"])
        return dspy.Prediction(**run["outputs"], system_score=run["score"], system_feedback=run["feedback"])


def metric(gold: Any, pred: Any, trace: Any = None) -> float:
    """The system's own metric."""
    return getattr(pred, "system_score", 0.0)


def gepa_metric(task: dict[str, Any]) -> Any:
    golds = {key_of(one["inputs"], task["input_fields"]): one["gold"] for s in task["splits"].values() for one in s}

    def with_feedback(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        outputs = {name: pred[name] for name in pred.keys() if not name.startswith("system_")}  # noqa: SIM118
        score = metric(gold, pred)
        expected = golds[key_of(gold, task["input_fields"])]
        told = getattr(pred, "system_feedback", "") or feedback(outputs, expected, score)
        return dspy.Prediction(score=score, feedback=told)

    return with_feedback


def examples(task: dict[str, Any], split: str) -> list[Any]:
    rows = [dspy.Example(**one["inputs"], **one["gold"]) for one in task["splits"][split]]
    return [one.with_inputs(*task["input_fields"]) for one in rows]


def compile_with(name: str, program: Program, task: dict[str, Any], lm: ServerLM, seed: int) -> Any:
    """Each at its defaults, of a size that the budget pays for."""
    train, val = examples(task, "train"), examples(task, "val")
    if name in ("labeled", "bootstrap"):
        random.Random(seed).shuffle(train)  # both draw alike whatever the seed
    if name == "labeled":
        return dspy.LabeledFewShot(k=DEMOS).compile(program, trainset=train)
    if name == "bootstrap":
        optimizer = dspy.BootstrapFewShotWithRandomSearch(metric=metric, num_threads=THREADS)
        return optimizer.compile(program, trainset=train, valset=val)
    if name == "simba":
        inputs, candidates, steps = simba_size(program, task, len(val))
        optimizer = dspy.SIMBA(
            metric=metric,
            bsize=inputs,
            num_candidates=candidates,
            max_steps=steps,
            prompt_model=lm,
            num_threads=THREADS,
        )
        return optimizer.compile(program, trainset=val, seed=seed)
    if name == "miprov2":
        optimizer = dspy.MIPROv2(
            metric=metric,
            prompt_model=lm,
            task_model=lm,
            auto=auto_setting(program, task, len(val)),
            num_threads=THREADS,
            seed=seed,
        )
        return optimizer.compile(program, trainset=train, valset=val)
    if name == "copro":
        optimizer = dspy.COPRO(prompt_model=lm, metric=metric)
        return optimizer.compile(program, trainset=val, eval_kwargs={"num_threads": THREADS, "display_progress": False})
    optimizer = dspy.GEPA(
        metric=gepa_metric(task),
        reflection_lm=lm,
        instruction_proposer=InstructionProposer(adapter=PatientAdapter()),  # its own, but asked for JSON
        max_metric_calls=10**7,
        num_threads=THREADS,
        seed=seed,
        track_stats=False,
    )
    return optimizer.compile(program, trainset=train, valset=val)


def simba_size(program: Program, task: dict[str, Any], evaluated: int) -> tuple[int, int, int]:
    """Inputs of a step, candidates and steps of SIMBA: the largest of its sizes with two steps that the budget pays
    for, at the tokens that a run of the system has taken so far; one step of the smallest if none."""
    runs = task["budget"] / (program.client.task()["tokens"] / evaluated)
    for inputs, candidates in SIMBA_SIZES:
        steps = int(runs // (2 * inputs * candidates + evaluated))  # a step samples, tries candidates, and scores one
        if steps >= 2 and inputs <= evaluated:
            return inputs, candidates, min(steps, 8)
    inputs, candidates = SIMBA_SIZES[-1]
    return min(inputs, evaluated), candidates, 1


def choose_by_neighbours(program: Program, task: dict[str, Any], seed: int) -> None:
    """KNNFewShot: for each input the demonstrations that BootstrapFewShot makes of its nearest training examples, those
    that the budget pays for. An input's nearest are found as DSPy finds them, by the words of the inputs."""
    train = examples(task, "train")
    random.Random(seed).shuffle(train)
    tokens = program.client.task()["tokens"]
    each = tokens / len(task["splits"]["val"])
    train = train[: max(NEIGHBOURS, int((task["budget"] - tokens) // each))]
    words = TfidfVectorizer().fit([_inputs(row.inputs()) for row in train])
    nearest = dspy.KNN(NEIGHBOURS, train, vectorizer=lambda texts: words.transform(texts).toarray())
    for row in program.client.unseen():
        optimizer = dspy.BootstrapFewShot(metric=metric)
        compiled = optimizer.compile(program, trainset=nearest(**row["inputs"]))
        program.client.choose(compiled.values(), row["id"])


def _inputs(row: Any) -> str:
    return " | ".join(f"{name}: {value}" for name, value in row.items())


def auto_setting(program: Program, task: dict[str, Any], evaluated: int) -> str:
    """The largest of MIPROv2's three sizes whose trials the budget pays for, at the tokens that a run of the system has
    taken so far; the smallest if none."""
    tokens = program.client.task()["tokens"] / evaluated
    choices = 2 * len(program.predictors())  # an instruction and a set of demonstrations of each
    for name in ("heavy", "medium", "light"):
        candidates = AUTO_RUN_SETTINGS[name]["n"]
        trials = int(max(2 * choices * math.log2(candidates), 1.5 * candidates))
        if trials * evaluated * tokens <= task["budget"]:
            return name
    return "light"


def main(name: str, address: str) -> None:
    if name not in OPTIMIZERS:
        raise SystemExit(f"{name!r} is not one of {', '.join(OPTIMIZERS)}")
    client = Client(address)
    task = client.task()
    lm = ServerLM(client, task["max_tokens"])
    dspy.configure(lm=lm, adapter=PatientAdapter())
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)  # the tape keeps every answer
    program = Program(client, task)
    evaluate = dspy.Evaluate(devset=examples(task, "val"), metric=metric, num_threads=THREADS)
    evaluate(program)  # a first candidate
    if name == "knn":
        choose_by_neighbours(program, task, task["seed"])
        return
    if name == "labeled":
        evaluate(compile_with(name, program, task, lm, task["seed"]))
        return
    for number in itertools.count():  # until the budget ends the process; the server knows the best of all rounds
        compiled = compile_with(name, program, task, lm, task["seed"] + number)
        # COPRO and SIMBA go on from what they have found; the others begin anew.
        program = without_record(compiled) if name in ("copro", "simba") else program


def without_record(program: Program) -> Program:
    """The program without the candidates of its search: with them every round would copy those of all earlier ones."""
    for name in ("candidate_programs", "trial_logs"):
        vars(program).pop(name, None)
    return program


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Refused as error:
        raise SystemExit(f"the server refused: {error}") from None
