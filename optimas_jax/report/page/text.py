"""Numbers, amounts and texts as a page shows them. Every value of a file can be shown: None, text, huge numbers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

NONE = "–"  # where there is no number
TOO_FEW = "too few to say"
_LARGE = 100_000.0  # numbers from here on are written with an exponent
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    """``0.219``; ``1.2e+30`` for large ones."""
    if not is_number(value):
        return NONE
    return f"{value:.3g}" if abs(value) >= _LARGE else _without_minus_zero(f"{value:.{digits}f}")


def signed(value: Any, digits: int = 3) -> str:
    """``+0.219``."""
    shown = number(value, digits)
    return shown if shown == NONE or shown.startswith("-") else f"+{shown}"


def interval(bounds: Any, digits: int = 3) -> str:
    """``[0.139, 0.300]``; words where there is none."""
    return f"[{number(bounds[0], digits)}, {number(bounds[1], digits)}]" if is_interval(bounds) else TOO_FEW


def is_interval(bounds: Any) -> TypeGuard[tuple[float, float]]:
    """Whether a value is a pair of finite numbers."""
    return isinstance(bounds, Sequence) and len(bounds) == 2 and all(map(is_number, bounds))


def count(value: Any) -> str:
    """``1,234``."""
    return f"{value:,.0f}" if is_number(value) else NONE


def counted(amount: int, noun: str, plural: str = "") -> str:
    """``1 example``, ``3 examples``."""
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def dollars(value: Any) -> str:
    """``$0``, ``$0.0123``, ``$12.30``."""
    if not is_number(value):
        return NONE
    if not value:
        return "$0"
    return f"${value:,.2f}" if abs(value) >= 1 else f"${value:.2g}" if abs(value) < 0.001 else f"${value:.4f}"


def duration(seconds: Any) -> str:
    """``41 s``, ``5 min 22 s``, ``2 h 3 min``."""
    if not is_number(seconds):
        return NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def percent(share: Any) -> str:
    """``42 %``."""
    return f"{100 * share:.0f} %" if is_number(share) else NONE


def clip(text: str, most: int) -> str:
    """The beginning of a long text, and how much was left out."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def name(value: Any) -> str:
    """A name as a page shows it: the beginning of a long one."""
    return clip(str(value), 80)


def visible(text: str) -> str:
    """The text with pictures or codes in place of control characters and of marks that change the direction of text.
    Line breaks and tabs stay."""
    return _CONTROL.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"


def plain(value: Any) -> str:
    """Any recorded value as text: texts as they are, lists item by item, fields with their names, other data as
    JSON."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Mapping):
        if set(value) == {"image_url", "sha256"}:
            return "[image]"
        if len(value) == 1:
            return plain(next(iter(value.values())))
        if value and all(map(_is_line, value.values())):
            return "\n".join(f"{name}: {plain(item)}" for name, item in value.items())
    elif isinstance(value, Sequence) and all(map(_is_line, value)):
        return "\n".join(map(plain, value))
    elif isinstance(value, Sequence) and all(isinstance(item, Mapping) for item in value):
        return "\n\n".join(map(plain, value))
    return json.dumps(_plain_data(value), ensure_ascii=False, indent=1)


def _is_line(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


def _plain_data(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain_data(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_data(item) for item in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def slug(*parts: str) -> str:
    """An id of an element: letters, digits and dashes, and a number that distinguishes names that look alike."""
    text = "-".join(parts)
    words = re.sub(r"[^a-zA-Z0-9]+", "-", text)[:60].strip("-")
    return words if words == text else f"{words}-{_number_of(text):08x}"


def _number_of(text: str) -> int:
    import zlib

    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def _without_minus_zero(text: str) -> str:
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text
