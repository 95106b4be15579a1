"""Reads loosely written JSON of models: in a fence, in a string, with Python's quotes or a comma too many.

Everything here takes time in proportion to the text.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from optimas_jax.core.text.json_text import JsonError, parse_json

_FENCE = re.compile(r"[ \t]*(?:```|~~~)[\w+-]*[ \t]*")
# A string of JSON, one of Python, a word of Python, or a comma behind which a list or an object ends. A string without
# an end goes to the end of the text, so that it is looked at once.
_PYTHON = re.compile(
    r"""("[^"\\]*+(?:\\.[^"\\]*+)*+"?+)"""
    r"""|'([^'\\]*+(?:\\.[^'\\]*+)*+)'?+"""
    r"""|\b(True|False|None)\b|(,)(?=\s*+[\]}])""",
    re.DOTALL,
)
_IS_PYTHON = re.compile(r"'|\b(?:True|False|None)\b|,\s*+[\]}]")  # what JSON cannot contain outside of its strings
_WORDS = {"True": "true", "False": "false", "None": "null"}
_MOST_WRAPPED = 3  # most strings and fences around each other
NOTHING = object()  # means that there is no data; None is the null of JSON


def unfenced(text: str) -> str:
    """The content of a text that is one fenced block; any other text as it is. Without spaces around it."""
    text = text.strip()
    lines = text.split("\n")
    fence = text[:3]
    if len(lines) < 2 or fence not in ("```", "~~~") or not _FENCE.fullmatch(lines[0]):
        return text
    if lines[-1].strip() == fence:
        lines.pop()
    body = "\n".join(lines[1:])
    return text if fence in body else body.strip()


def loose_json(text: str) -> Any:
    """The data that a text is, or ``NOTHING``: JSON, also in a fence, in a string of JSON, or as Python writes it."""
    data: Any = NOTHING
    for _ in range(_MOST_WRAPPED):
        text = unfenced(text)
        inner = _parse(text) if text and text[0] in "[{\"'" else NOTHING
        if inner is NOTHING:
            break
        data = inner
        if not isinstance(data, str):
            break
        text = data
    return data


def _parse(text: str) -> Any:
    with contextlib.suppress(JsonError):
        return parse_json(text)
    if _IS_PYTHON.search(text):
        with contextlib.suppress(JsonError):
            return parse_json(_PYTHON.sub(_as_json, text))
    return NOTHING


def _as_json(match: re.Match[str]) -> str:
    string, of_python, word, _ = match.groups()
    if string is not None:
        return string
    if of_python is not None:
        return json.dumps(of_python.replace("\\'", "'"), ensure_ascii=False)
    return _WORDS.get(word, "")
