"""Reads instructions from a language model's answers; an unusable answer gives none."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from optimas_jax.core.values import Prompt, PromptSpace
from optimas_jax.llm.forms.loose import loose_json, unfenced, without_thoughts

_TAG = re.compile(r"</?instruction>", re.IGNORECASE)
_LATEST = 9  # texts between tags that are looked at
_PLACEHOLDER = re.compile(
    r"</?instruction>|[\[<{(][^\]>})\n]{0,40}\binstruction\b[^\]>})\n]{0,40}[\]>})]", re.IGNORECASE
)
_ECHO = "and"  # the text between the tags in an answer that repeats the request


def parse_instruction(answer: str) -> str:
    """The instruction in a proposer's answer: the last text between tags that is one, a field ``instruction`` of JSON,
    or the whole answer. What the model thought before, and tags that it only mentions, are left out."""
    answer = without_thoughts(answer)
    tagged = [_bare(text) for text in _between_tags(answer)[-_LATEST:]]
    usable = [text for text in tagged if text and not _is_placeholder(text)]
    return usable[-1] if usable else tagged[-1] if tagged else _bare(answer)


def _between_tags(answer: str) -> list[str]:
    """Texts between the tags of an answer. The first may lack its opening tag, the last its closing one."""
    texts: list[str] = []
    opened, start = False, 0
    for tag in _TAG.finditer(answer):
        closing = answer[tag.start() + 1] == "/"
        if closing and (opened or not texts):
            texts.append(answer[start : tag.start()])
        opened, start = not closing, tag.end()
    return [*texts, answer[start:]] if opened else texts


def _bare(text: str) -> str:
    """A text without what a model puts around it: a fence, JSON with a field ``instruction``, quotes."""
    text = text.strip()
    data = loose_json(text)
    if isinstance(data, Mapping):
        named = [value for name, value in data.items() if "instruction" in name.lower() and isinstance(value, str)]
        only = [value for value in data.values() if isinstance(value, str)] if len(data) == 1 else []
        return (named or only or [text])[-1].strip()
    if isinstance(data, str):
        return data.strip()
    text = unfenced(text)
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
    return "placeholder" if _is_placeholder(instruction) else ""


def _is_placeholder(text: str) -> bool:
    return text == _ECHO or not any(character.isalnum() for character in _PLACEHOLDER.sub("", text))
