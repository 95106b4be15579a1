"""Reasoning that a model writes before it answers: kept in a field of its own, never part of the answer."""

from __future__ import annotations

import dataclasses
import re

from optimas_jax.llm.base import Completion, CompletionRequest

_OPENED = re.compile(r"\s*<(think|thinking|reasoning)>(.*?)(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_CLOSED = re.compile(r"\A(.*?)</(?:think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)


def split_thoughts(text: str, *, template_opens: bool = True) -> tuple[str, str]:
    """(thoughts, answer) of a model's text. Without a closing mark all of it is thoughts.

    Args:
      template_opens: whether the chat's template may have opened the thoughts, so that only their end is marked.
    """
    thoughts: list[str] = []
    while match := _OPENED.match(text):
        thoughts.append(match[2].strip())
        text = text[match.end() :]
    if template_opens and (match := _CLOSED.match(text)):
        thoughts.append(match[1].strip())
        text = text[match.end() :]
    return "\n".join(filter(None, thoughts)), text


def separate(request: CompletionRequest, completion: Completion) -> Completion:
    """The completion with reasoning in a field of its own."""
    thoughts, answer = split_thoughts(completion.text, template_opens=request.schema is None)
    if answer == completion.text:
        return completion
    reasoning = "\n".join(filter(None, (completion.reasoning, thoughts)))
    return dataclasses.replace(completion, text=answer.lstrip("\n"), reasoning=reasoning)
