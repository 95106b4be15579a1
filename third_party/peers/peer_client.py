"""The client of ``optimas_jax.compare.peer_server``. Standard library only; an address is its whole state, so that
programs with it can be copied."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

ANSWER_SECONDS = 3600  # the machine may be slow
MISSING = "Not supplied for this particular example."  # as DSPy's adapters write it


class Refused(RuntimeError):
    """A request that the server cannot answer, with the reason."""


@dataclasses.dataclass(frozen=True)
class Client:
    """Requests to the server at an address."""

    address: str

    def request(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Answer of one request.

        For a request that could exceed the budget it never returns: the process is about to be ended, and nothing that
        it could still do would count. Without a server it ends the process.

        Raises:
          Refused: for a request that cannot be answered.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.address + path, data, headers)  # noqa: S310 - http on this machine
        straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # past any proxy
        try:
            with straight.open(request, timeout=ANSWER_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 402:
                while True:
                    time.sleep(ANSWER_SECONDS)
            raise Refused(json.load(error)["error"]) from None
        except OSError as error:  # the comparison has ended; an optimiser could take the error for a score
            print(f"the server is gone: {error}", flush=True)
            os._exit(1)

    def task(self) -> dict[str, Any]:
        return self.request("/task")

    def component(
        self, name: str, inputs: Mapping[str, Any], value: Mapping[str, Any] | None, example: str, **sampling: Any
    ) -> dict[str, Any] | None:
        """Outputs of a component, or None if it failed. ``sampling``: ``temperature`` and ``attempt``."""
        body = {"name": name, "inputs": inputs, "value": value, "example": example, **sampling}
        return self.request("/component", body).get("outputs")

    def complete(self, messages: Sequence[Mapping[str, str]], **settings: Any) -> dict[str, Any]:
        """``settings``: ``max_tokens`` and ``temperature``. A repeated request is sampled anew."""
        return self.request("/complete", {"messages": list(messages), **settings})

    def score(self, values: Mapping[str, Any], example: str, outputs: Mapping[str, Any], **sampling: Any) -> float:
        return self.request("/score", {"values": values, "example": example, "outputs": outputs, **sampling})["score"]

    def unseen(self) -> list[dict[str, Any]]:
        """``id`` and ``inputs`` of the examples that will test the result."""
        return self.request("/unseen")["examples"]

    def choose(self, values: Mapping[str, Any], example: str) -> None:
        """Chooses the prompts of one unseen example."""
        self.request("/choose", {"values": values, "example": example})

    def run(self, values: Mapping[str, Any], example: str, **sampling: Any) -> dict[str, Any]:
        """A run of a whole program: ``outputs``, ``score``, the metric's ``feedback``, and ``calls`` with ``name``,
        ``inputs`` and ``outputs``, which are empty for a call that failed. ``sampling`` as of ``component``."""
        return self.request("/run", {"values": values, "example": example, **sampling})


def run_once(
    client: Client, task: Mapping[str, Any], values: Mapping[str, Any], example: Mapping[str, Any]
) -> dict[str, Any]:
    """A run of a program or of a graph, as ``Client.run`` tells it. A component whose prompt does not fit the model has
    failed, and the run is scored as it is."""
    if task["program"]:
        return client.run(values, example["id"])
    fields, calls = dict(example["inputs"]), []
    for part in task["components"]:
        given = {name: fields[name] for name in part["inputs"]}
        try:
            answer = client.component(part["name"], given, values.get(part["name"]), example["id"])
        except Refused as error:
            print(error, flush=True)
            answer = None
        calls.append({"name": part["name"], "inputs": given, "outputs": answer or {}})
        if answer is None:
            break
        fields |= answer
    outputs = {name: fields[name] for name in task["output_fields"] if name in fields}
    return {"outputs": outputs, "score": client.score(values, example["id"], outputs), "feedback": "", "calls": calls}


def as_text(fields: Mapping[str, Any] | None) -> str:
    """Fields as text, as optimisers that read text see an answer."""
    return "\n".join(str(plain(value)) for value in (fields or {"": "(no answer)"}).values())


def tuned(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The components that have a prompt, in the order of the system."""
    return [component for component in task["components"] if "instruction" in component]


def as_value(component: Mapping[str, Any], instruction: str, demos: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """A prompt as a value of the configuration.

    An instruction that is longer than the system allows is cut, and of too many demonstrations the first stay. An
    optimiser may take whole examples of the task for demonstrations of each part: those with the outputs and some
    inputs come after complete ones, with DSPy's words in place of what they lack, others are left out. So the exported
    prompt is the one that runs.
    """
    inputs, outputs = component["inputs"], component["outputs"]

    def has(demo: Mapping[str, Any], names: Sequence[str]) -> list[bool]:
        return [demo.get(name) is not None for name in names]

    usable = [demo for demo in demos if all(has(demo, outputs)) and (any(has(demo, inputs)) or not inputs)]
    usable.sort(key=lambda demo: not all(has(demo, inputs)))
    shown = [
        {
            side: {name: plain(demo[name]) if demo.get(name) is not None else MISSING for name in component[side]}
            for side in ("inputs", "outputs")
        }
        for demo in usable[: component["max_demos"]]
    ]
    return {"type": "prompt", "instruction": instruction[: component["max_instruction_chars"]], "demos": shown}


def plain(value: Any) -> Any:
    """Lists and texts of JSON; numbers stay."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, int | float | dict) or value is None else str(value)


def key_of(inputs: Mapping[str, Any], names: Sequence[str]) -> str:
    """A key that differs between examples."""
    return json.dumps([plain(inputs[name]) for name in names], sort_keys=True, default=str)


def feedback(outputs: Mapping[str, Any], gold: Mapping[str, Any], score: float) -> str:
    """Feedback on a run, the same for all optimisers that read text."""
    expected = "; ".join(f"{name}: {plain(value)}" for name, value in gold.items())
    answered = "; ".join(f"{name}: {plain(value)}" for name, value in outputs.items()) or "nothing"
    return f"The system answered {answered}. Expected was {expected}. Score: {score:.2f} of 1."
