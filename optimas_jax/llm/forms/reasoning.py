"""What a model thinks before it answers: kept beside the answer, and never part of it."""

from __future__ import annotations

import dataclasses
import re

from optimas_jax.llm.base import Completion, CompletionRequest

_OPENED = re.compile(r"\s*<(think|thinking|reasoning)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_CLOSED = re.compile(r"\A(.*?)</(?:think|thinking)>", re.DOTALL)  # the template of the chat has opened it


def separate(request: CompletionRequest, completion: Completion) -> Completion:
    """The completion with reasoning in a field of its own. Without a closing mark all of the text is reasoning."""
    text, parts = completion.text, [completion.reasoning]
    while found := _OPENED.match(text):
        parts.append(found[2].strip())
        text = text[found.end() :]
    if request.schema is None and (found := _CLOSED.match(text)):
        parts.append(found[1].strip())
        text = text[found.end() :]
    if text == completion.text:
        return completion
    return dataclasses.replace(completion, text=text.lstrip("\n"), reasoning="\n".join(filter(None, parts)))
