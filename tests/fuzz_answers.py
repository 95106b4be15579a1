"""Answers of models for fuzzing, and everything that reads them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any, Literal

from fakes import request
from fuzzing import TEXTS, Watch, bend, dump

from optimas_jax.benchmarks import bigcodebench, pubmedqa, stark_prime
from optimas_jax.benchmarks.code_extraction import extract_program, extract_tests, fenced_blocks
from optimas_jax.benchmarks.metrics import exact_match, first_character, token_f1
from optimas_jax.core.running.event_loop import off_loop
from optimas_jax.core.text.json_text import find_json
from optimas_jax.core.types import Outcome, digest, freeze
from optimas_jax.core.values import Prompt, PromptSpace
from optimas_jax.llm.base import Completion
from optimas_jax.llm.forms.answers import AnswerType
from optimas_jax.llm.forms.loose import loose_json
from optimas_jax.llm.forms.reasoning import separate
from optimas_jax.llm.forms.tools import ReplyType
from optimas_jax.llm.render import render_fields
from optimas_jax.rewards.judge import parse_scores
from optimas_jax.search.optimisers.instructions import propose_instructions

_GOOD = (
    *('{"1": 0.1, "2": 0.9, "3": 0.3}', "[0.1, 0.9, 0.3]", "1. 0.1\n2. 0.9\n3. 0.3", "Answer: yes", "0.1, 0.9, 0.3"),
    *("<instruction>Say it.</instruction>", '{"instruction": "Say it."}', '{"name": "x", "items": [1, 2]}'),
    *("```python\ndef task_func(x):\n    return x\n```", "def task_func(x):\n    return x\n\nThat is it."),
    *('{"text": "", "calls": [{"name": "look", "arguments": {"where": "x"}}]}', "<think>hm</think>yes"),
)
_PIECES = (
    *(
        "<instruction>",
        "</instruction>",
        "<INSTRUCTION>",
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "instruction",
    ),
    *("```", "```python\n", "~~~", "\n", "\r\n", "\r", "\t", " " * 50, "\n" * 50, '"', "'", '\\"', "\\", "`", "*"),
    *("{", "}", "[", "]", "(", ")", ":", ",", ", ", ".", "%", "-", "+", "e", "1e-1", "0.5", "1", "9" * 400, "1/2"),
    *("yes", "no", "maybe", "Answer: ", "the final answer is", "true", "None", "null", "NaN", "Infinity", "1. 0.3\n"),
    *(
        "def task_func(x):\n",
        "    return x\n",
        "import os\n",
        "@a\n",
        "#\n",
        "class TestCases:\n",
        "if True:\n",
        "lambda:",
    ),
    *(
        "instruction",
        '{"instruction": "',
        '"calls": [',
        '"arguments": ',
        "a" * 100,
        "é",
        "\ud800",
        "\x00",
        "\u2028",
        "[[ ## a ## ]]",
    ),
)


@dataclasses.dataclass(frozen=True)
class _Thing:
    name: str
    items: list[int]


def _look(where: str, depth: int = 1) -> str:
    """Looks somewhere."""
    return where * depth


_TYPES = [AnswerType("said", kind) for kind in (_Thing, int, str, list[float], dict[str, Any], Literal["yes", "no"])]
_REPLY = ReplyType((_look,))


def _instructions(text: str) -> None:
    made = propose_instructions([text], Prompt("Say it."), PromptSpace())
    digest(freeze([prompt.instruction for prompt in made]))


def _typed(text: str) -> None:
    for kind in _TYPES:
        try:
            fields = kind.read(text)
        except ValueError:  # an AnswerError
            continue
        digest(fields)
        kind.restore(fields)


def _recorded(text: str) -> None:
    """What happens to any answer: it is recorded, becomes outputs, and part of the next request."""
    completion = separate(request(), Completion(text, Outcome.OK, 1, 1))
    request().read(json.loads(json.dumps(completion.to_json())))
    outputs = freeze({"said": completion.text})
    assert request(render_fields(outputs, ["said"])).most().prompt_tokens
    assert digest(outputs) and request(completion.text).key


PARSERS: dict[str, Callable[[str], Any]] = {
    "instructions": _instructions,
    "scores": lambda text: stark_prime.read_scores(text, 3),
    "final answer": pubmedqa.final_answer,
    "first character": lambda text: first_character(text, "1"),
    "f1": lambda text: (token_f1(text, "the answer"), exact_match(text, "the answer")),
    "program": lambda text: extract_program(text, "task_func", "Start with:\n```\ndef task_func(x):\n```"),
    "tests": lambda text: extract_tests(text, "task_func"),
    "blocks": fenced_blocks,
    "cut": lambda text: bigcodebench.cut_middle(text, 100),
    "judge": lambda text: parse_scores(text, 3),
    "typed": _typed,
    "reply": _REPLY.read,
    "loose": loose_json,
    "pieces": find_json,
    "recorded": _recorded,
}


def an_answer(rng: random.Random) -> str:
    """A text as models write it, and worse."""
    kind = rng.random()
    if kind < 0.1:
        return rng.choice(TEXTS)
    if kind < 0.25:
        text = rng.choice(_GOOD)
        return text[: rng.randrange(len(text) + 1)] + rng.choice(_PIECES) + text[rng.randrange(len(text)) :]
    if kind < 0.35:
        return dump(bend(json.loads(rng.choice([text for text in _GOOD if text[0] in "{[" and "\n" not in text])), rng))
    if kind < 0.45:
        return rng.choice(_PIECES) * rng.randrange(1, 2000)
    if kind < 0.5:
        return (rng.choice(_PIECES) + rng.choice(_PIECES)) * rng.randrange(1, 1000)
    return "".join(rng.choice(_PIECES) for _ in range(rng.randrange(60)))


def fuzz_answers(watch: Watch, rng: random.Random, count: int) -> None:
    """Every answer through every parser. One of more than 20,000 characters may take longer: time is linear."""
    for _ in range(count):
        text = an_answer(rng)
        for name, parse in PARSERS.items():
            watch.call(
                (name, len(text), text[:200]),
                lambda text=text, parse=parse: parse(text),
                longer=max(1.0, len(text) / 20_000),
            )


LONG = [piece * (100_000 // len(piece)) for piece in _PIECES] + [
    *(
        first + piece * (100_000 // len(piece))
        for piece in _PIECES
        for first in ('"', "<instruction>", "```\n", "answer")
    ),
    *(piece * (100_000 // len(piece)) + "x" for piece in ("1", " ", "[", '{"a":', "answer ", "@a\n#\n")),
    "@a\n" * 50 + "#\n" * 20_000,
]


def read_on_the_loop(text: str) -> list[Any]:
    """A text read as a component does it."""
    return asyncio.run(off_loop(lambda: find_json(text), len(text)))
