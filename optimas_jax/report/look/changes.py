"""What a run changed and kept, and rules on it: prompts that grew, test examples in them."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.folder.events import Accept
from optimas_jax.core.values import Prompt, Value, plain_values, value_from_json
from optimas_jax.report.look.examples import Row
from optimas_jax.report.look.finding import Finding, plain, quoted
from optimas_jax.report.look.texts.sorts import is_nothing, normal, shingles, text_of
from optimas_jax.report.page.text import counted
from optimas_jax.report.run_files import RunFiles

_NO_INSTRUCTION = re.compile(
    r"\W*(?:i(?:'m| am) (?:sorry|unable)|sorry|i can(?:'|no)t|i cannot|as an? (?:ai|language)|traceback|\w*error:)",
    re.IGNORECASE,
)
_TELLING = 4  # words that a text needs to identify an example
_LONG = 4000  # characters of a prompt that is long by itself
_GROWTH = 3  # times the characters before
_FEWEST = 1500  # characters, more than before


@dataclasses.dataclass(frozen=True)
class Demos:
    """The prompts that were kept, as rules on answers need them.

    Attributes:
      shown: component, example and texts of the outputs of each demonstration.
      answers: these texts, as they are compared.
      shingles: runs of words of the instructions.
    """

    shown: Sequence[tuple[str, str, Sequence[str]]]
    answers: frozenset[str]
    shingles: frozenset[str]


def kept_values(run: RunFiles) -> dict[str, Value]:
    """The value in ``best/`` of each component that was changed; while a search runs, the value in use."""
    result = run.results or run.optimized
    if result is None:
        return {event.component: event.value for event in run.events if isinstance(event, Accept)}
    confirmed = result.get("confirmed")
    accepted = result["accepted"][: (confirmed["changes"] or 0) if confirmed else None]
    return {change["component"]: value_from_json(change["value"]) for change in accepted}


def prompts_of(value: Value) -> list[Prompt]:
    """The prompts of a value, which may choose between several."""
    return [plain_value for plain_value in plain_values(value) if isinstance(plain_value, Prompt)]


def kept_prompts(run: RunFiles) -> Demos:
    """Demonstrations and instructions that were kept."""
    prompts = [(name, prompt) for name, value in kept_values(run).items() for prompt in prompts_of(value)]
    shown = [
        (name, demo.example_id, [text_of(text) for text in demo.outputs.values()])
        for name, prompt in prompts
        for demo in prompt.demos
    ]
    answers = frozenset(normal(text) for _, _, texts in shown for text in texts) - {""}
    return Demos(shown, answers, frozenset().union(*(shingles(prompt.instruction) for _, prompt in prompts)))


def examples_in_prompts(run: RunFiles) -> list[Finding]:
    """Examples of the evaluation stand in kept prompts, so that their scores say nothing about new examples."""
    if not run.examples:
        return []
    by_id = {row["id"]: row for row in run.examples}
    id_of_text = _telling(run.examples)
    id_of_inputs = {_key(row["inputs"]): row["id"] for row in run.examples if row["inputs"]}
    split = (run.results or {}).get("split", "test")
    findings = []
    for name, value in kept_values(run).items():
        ids: dict[str, str] = {}
        for prompt in prompts_of(value):
            for demo in prompt.demos:
                texts = [normal(text_of(text)) for text in demo.inputs.values()]
                ids |= {id_of_text[text]: "a demonstration" for text in texts if text in id_of_text}
                if (example_id := id_of_inputs.get(_key(demo.inputs))) is not None:
                    ids[example_id] = "a demonstration"
                if demo.example_id in by_id:
                    ids[demo.example_id] = "a demonstration"
            instruction = normal(prompt.instruction)
            ids |= {
                example_id: "the instruction"
                for text, example_id in id_of_text.items()
                if text in instruction and example_id not in ids
            }
        if ids:
            first = next(iter(ids))
            sentence = (
                f"{counted(len(ids), f'{plain(split)} example')} {'stands' if len(ids) == 1 else 'stand'} in the "
                f"prompt of {plain(name)} that was kept ({plain(first)} in {ids[first]}): on "
                f"{'it' if len(ids) == 1 else 'them'} the score says nothing of new examples."
            )
            findings.append(Finding("leak", sentence, "changes", 1))
    return findings


def _key(inputs: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, normal(text_of(value))) for name, value in inputs.items()))


def _telling(rows: Sequence[Row]) -> dict[str, str]:
    """Texts of inputs that only one example has, and the id of that example."""
    texts = [(normal(text_of(text)), row["id"]) for row in rows for text in row["inputs"].values()]
    counts = Counter(text for text, _ in texts)
    return {text: example_id for text, example_id in texts if counts[text] == 1 and len(text.split()) >= _TELLING}


def prompts_say_nothing(run: RunFiles) -> list[Finding]:
    """An instruction that was kept is none: empty, a placeholder, a refusal or an error of the model that wrote it."""
    return [
        Finding(
            "odd_prompt",
            f"The kept instruction of {plain(name)} is {quoted(prompt.instruction)}: no instruction.",
            "changes",
            2,
        )
        for name, value in kept_values(run).items()
        for prompt in prompts_of(value)
        if (_NO_INSTRUCTION.match(prompt.instruction) or is_nothing(prompt.instruction)) and not _was(run, name, prompt)
    ]


def _was(run: RunFiles, name: str, prompt: Prompt) -> bool:
    """Whether a component may have had this instruction from the start."""
    if run.system is None:
        return bool(prompt.demos)
    parts = {part["name"]: part["value"] for part in run.system["components"]}
    return (parts.get(name) or {}).get("instruction") == prompt.instruction


def prompts_grew(run: RunFiles) -> list[Finding]:
    """Prompts that were kept are much longer than those before them, or very long where that is not known."""
    starts, grown = start_sizes(run), []
    for name, value in kept_values(run).items():
        size = max((_size(prompt) for prompt in prompts_of(value)), default=0)
        before = starts.get(name)
        grew = before is not None and size >= _GROWTH * before and size - before >= _FEWEST
        if grew or (before is None and size >= _LONG):
            demos = max(len(prompt.demos) for prompt in prompts_of(value))
            was = "" if before is None else f"{before:,} to "
            grown.append(f"{plain(name)} {was}{size:,} characters, with {counted(demos, 'demonstration')}")
    if not grown:
        return []
    sentence = (
        f"The kept prompts have grown: {'; '.join(grown[:3])}{'; ...' * (len(grown) > 3)}. Every run pays for it."
    )
    return [Finding("prompt_grew", sentence, "changes", 5)]


def start_sizes(run: RunFiles) -> dict[str, int]:
    """Characters of the prompt of each component before any change. In older folders they are known only from proposals
    of demonstrations alone, which leave the instruction as it is."""
    parts = (run.system or {}).get("components", ())
    starts = [(part["name"], value_from_json(part["value"])) for part in parts if part["value"] is not None]
    sizes = {name: max(map(_size, prompts)) for name, value in starts if (prompts := prompts_of(value))}
    for row in run.proposals if run.system is None else ():
        value = row.get("value")
        if row.get("optimiser") == "demos" and isinstance(value, Mapping) and value.get("type") == "prompt":
            sizes.setdefault(str(row.get("component")), len(str(value.get("instruction"))))
    return sizes


def _size(prompt: Prompt) -> int:
    return len(prompt.instruction) + sum(_characters(demo.inputs) + _characters(demo.outputs) for demo in prompt.demos)


def _characters(fields: Mapping[str, Any]) -> int:
    return sum(len(name) + len(text_of(value)) for name, value in fields.items())
