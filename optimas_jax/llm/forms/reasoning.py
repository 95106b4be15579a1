"""What a model thinks before it answers: kept beside the answer, and never part of it."""

from __future__ import annotations

import dataclasses
import re

from optimas_jax.llm.base import Completion, CompletionRequest

_OPENED = re.compile(r"\s*<(think|thinking|reasoning)>(.*?)(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_CLOSED = re.compile(r"\A(.*?)</(?:think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)


def split_thoughts(text: str, *, template_opens: bool = True) -> tuple[str, str]:
    """(thoughts, answer) of what a model wrote. Without a closing mark all of it is thoughts.

    Args:
      template_opens: whether the chat's template may have opened the thoughts, so that only their end is marked.
    """
    thoughts: list[str] = []
    while found := _OPENED.match(text):
        thoughts.append(found[2].strip())
        text = text[found.end() :]
    if template_opens and (found := _CLOSED.match(text)):
        thoughts.append(found[1].strip())
        text = text[found.end() :]
    return "\n".join(filter(None, thoughts)), text


def separate(request: CompletionRequest, completion: Completion) -> Completion:
    """The completion with reasoning in a field of its own."""
    thoughts, answer = split_thoughts(completion.text, template_opens=request.schema is None)
    if answer == completion.text:
        return completion
    reasoning = "\n".join(filter(None, (completion.reasoning, thoughts)))
    return dataclasses.replace(completion, text=answer.lstrip("\n"), reasoning=reasoning)
