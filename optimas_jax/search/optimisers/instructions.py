"""Reads instructions from a language model's answers; an unusable answer gives none."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from optimas_jax.core.values import Prompt, PromptSpace

_TAGGED = re.compile(r"<instruction>(.*?)(?:</instruction>|\Z)", re.DOTALL)
_PLACEHOLDER = re.compile(
    r"</?instruction>|[\[<{(][^\]>})\n]{0,40}\binstruction\b[^\]>})\n]{0,40}[\]>})]", re.IGNORECASE
)
_ECHO = "and"  # the text between the tags in an answer that repeats the request


def parse_instruction(answer: str) -> str:
    """The instruction in a proposer's answer: the text between the tags, or the whole answer without tags."""
    tagged = _TAGGED.search(answer)
    text = (tagged.group(1) if tagged else answer).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def propose_instructions(
    answers: Sequence[str],
    current: Prompt,
    space: PromptSpace,
    dropped: Callable[[str, str], None] = lambda reason, text: None,
) -> list[Prompt]:
    """Prompts with new instructions and the current demonstrations: distinct, allowed, not the current one.

    ``dropped``: callback for rejected answers: (reason, text).
    """
    prompts: list[Prompt] = []
    for answer in answers:
        prompt = Prompt(parse_instruction(answer), current.demos)
        reason = _unusable(prompt.instruction, space)
        if not reason and (prompt == current or prompt in prompts):
            reason = "repeated"
        if reason:
            dropped(reason, answer)
        else:
            prompts.append(prompt)
    return prompts


def drop_summary(reasons: Mapping[str, int]) -> str:
    """Numbers of dropped answers, by reason: "8 answers dropped (5 empty, 3 repeated)"."""
    ranked = sorted(reasons.items(), key=lambda item: -item[1])
    return f"{sum(reasons.values())} answers dropped ({', '.join(f'{count} {reason}' for reason, count in ranked)})"


def _unusable(instruction: str, space: PromptSpace) -> str:
    """Why this is no instruction, or ""."""
    if not instruction:
        return "empty"
    if len(instruction) > space.max_instruction_chars:
        return f"longer than {space.max_instruction_chars} characters"
    if instruction == _ECHO or not any(character.isalnum() for character in _PLACEHOLDER.sub("", instruction)):
        return "placeholder"
    return ""
