"""Secrets of the environment, which are in no file, message or traceback.

Everything that leaves the process as text goes through ``redact``: messages, tracebacks, files of a run, pages.
"""

from __future__ import annotations

import functools
import html
import json
import os
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

MASK = "***"
_NAMES = re.compile(r"(API_?KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)  # of variables that hold one
_SHORTEST = 8  # letters: a shorter text is a word that may stand anywhere


def redact(text: str) -> str:
    """The text with all secrets of the environment masked, in whatever form a library or a server may quote them."""
    secrets = tuple(value for name, value in os.environ.items() if _NAMES.search(name))
    for form in _forms_of(secrets):
        text = text.replace(form, MASK)
    return text


def redacted(text: str, most: int) -> str:
    """The first ``most`` letters, masked before they are cut: half a secret is not found any more."""
    return redact(text)[:most]


class Redacted:
    """A stream of text that writes no secret."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(redact(text))

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@functools.lru_cache(maxsize=8)
def _forms_of(secrets: tuple[str, ...]) -> list[str]:
    """All forms of secrets, the longest first."""
    forms = {form for secret in secrets for form in _forms(secret) if len(form) >= _SHORTEST}
    return sorted(forms, key=lambda form: (-len(form), form))


def _forms(secret: str) -> Iterator[str]:
    """A secret, and each of its lines, as it is and as it stands in other texts."""
    for part in {secret, secret.strip(), *secret.splitlines()}:
        valid = part.encode("utf-8", "replace")
        yield from (part, repr(part)[1:-1], repr(valid)[2:-1], html.escape(part), valid.decode("latin-1"))
        yield from (json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1])
        yield from (urllib.parse.quote(valid, safe=safe) for safe in ("", "/"))
        yield from (urllib.parse.quote_plus(valid), part.encode("unicode_escape").decode("ascii"))
        yield part.replace("[", "\\[")  # in the markup of a console


def key_problem(key: str) -> str:
    """Why a key cannot be sent in a header; "" if it can. The key is not in the answer."""
    for position, letter in enumerate(key):
        if not "\x20" < letter < "\x7f":
            return f"letter {position + 1} of its {len(key)} is U+{ord(letter):04X}, and a header takes printable ASCII"
    return ""
