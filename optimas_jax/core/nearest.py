"""The name that a mistyped one was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from optimas_jax.core.json_text import shown

_LONGEST = 200  # letters of a name that was mistyped, and not pasted


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """``; did you mean 'NAME'?`` with the nearest of the known names; "" if there is none."""
    if not isinstance(name, str) or len(name) > _LONGEST:
        return ""
    by_letters = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), by_letters, n=1)
    return f"; did you mean {shown(by_letters[near[0]])}?" if near else ""
