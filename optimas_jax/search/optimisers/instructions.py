"""Reads instructions from a language model's answers, and rejects unusable answers."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optimas_jax.core.text.json_text import find_json
from optimas_jax.core.values import Prompt, PromptSpace
from optimas_jax.llm.forms.loose import loose_json, unfenced
from optimas_jax.llm.forms.reasoning import split_thoughts

_TAG = re.compile(r"<\s?(/?)\s?instruction\s?(?:>|\Z)", re.IGNORECASE)
_ESCAPED = "&lt;instruction&gt;"
_SECTION = re.compile(r"\[\[ ?## ?(\w{1,40}) ?## ?\]\]")  # heading of a section in DSPy's format
_HEADING = re.compile(
    r"\A[*#\s]{0,4}(?:(?:new|improved|better|revised|updated|final) )?instruction[*\s]{0,3}:[*\s]{0,4}", re.IGNORECASE
)
_LATEST = 9  # number of texts between tags that are read, the last ones
_PLACEHOLDER = re.compile(
    r"</?instruction>|[\[<{(][^\]>})\n]{0,40}\binstruction\b[^\]>})\n]{0,40}[\]>})]", re.IGNORECASE
)
_ECHO = "and"  # the text between the tags in an answer that repeats the request


def parse_instruction(answer: str) -> str:
    """The instruction in a proposer's answer: the last usable text between tags, the section or JSON field with that
    name, or the whole answer. The model's reasoning, and tags that it only mentions, are left out."""
    answer = split_thoughts(answer)[1]
    if _ESCAPED in answer.lower():
        answer = html.unescape(answer)
    closed, opened = _between_tags(answer)
    tagged = [_bare(text) for text in (*closed[-_LATEST:], *opened)]
    usable = [text for text in tagged if text and not _is_placeholder(text)]
    if tagged:  # closed tags have precedence over an open one
        closed_ones = [text for text in usable if not opened or text != tagged[-1]]
        return (closed_ones or usable or tagged)[-1]
    sections = _SECTION.split(answer)
    named = [text for name, text in zip(sections[1::2], sections[2::2], strict=True) if "instruction" in name.lower()]
    return _bare(named[-1] if named else answer)


def _between_tags(answer: str) -> tuple[list[str], list[str]]:
    """Texts between the tags of an answer, where the first may lack its opening tag; and the text after an opening tag
    that is not closed."""
    texts: list[str] = []
    opened, start = False, 0
    for tag in _TAG.finditer(answer):
        closing = bool(tag[1])
        if closing and (opened or not texts):
            texts.append(answer[start : tag.start()])
        opened, start = not closing, tag.end()
    return texts, [answer[start:]] if opened else []


def _bare(text: str) -> str:
    """A text without its wrapping by a model: a fence, JSON with a field ``instruction``, quotes."""
    text = text.strip()
    data = loose_json(text)
    if isinstance(data, Mapping):
        only = [value for value in data.values() if isinstance(value, str)] if len(data) == 1 else []
        return (_named(data) or only or [text])[-1].strip()
    if isinstance(data, str):
        return data.strip()
    pieces = [named[-1] for piece in find_json(text)[-_LATEST:] if isinstance(piece, dict) and (named := _named(piece))]
    if pieces:
        return pieces[-1].strip()
    text = _HEADING.sub("", unfenced(text)).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def _named(data: Mapping[str, Any]) -> list[str]:
    """Texts of the fields with "instruction" in their names."""
    fields = [value for name, value in data.items() if "instruction" in name.lower()]
    return [
        text for value in fields for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)
    ]


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
    """Why a text is no usable instruction, or ""."""
    if not instruction:
        return "empty"
    if len(instruction) > space.max_instruction_chars:
        return f"longer than {space.max_instruction_chars} characters"
    return "placeholder" if _is_placeholder(instruction) else ""


def _is_placeholder(text: str) -> bool:
    return text == _ECHO or not any(character.isalnum() for character in _PLACEHOLDER.sub("", text))
