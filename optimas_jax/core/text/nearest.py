"""Suggests the known name that is nearest to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from optimas_jax.core.text.json_text import shown

_LONGEST = 200  # characters of a name; a longer text was not mistyped, but pasted


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """``; did you mean 'NAME'?`` with the nearest of the known names; "" if there is none."""
    if not isinstance(name, str) or len(name) > _LONGEST:
        return ""
    by_letters = {known_name.lower(): known_name for known_name in known}
    near = difflib.get_close_matches(name.lower(), by_letters, n=1)
    return f"; did you mean {shown(by_letters[near[0]])}?" if near else ""
