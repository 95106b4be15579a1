"""JSON that may be damaged or hostile: one reader for files of rows, configurations, run folders, answers of models.

``json.loads`` alone raises three kinds of errors, depends on the depth of the caller's stack, and takes what nothing
behind it can use: NaN, numbers of five thousand digits, halves of characters. Here each of these is a ``JsonError``.
"""

from __future__ import annotations

import functools
import json
import math
import re
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from optimas_jax.core.secrets import redact
from optimas_jax.core.types import valid_text

MOST_NESTED = 100  # lists and objects in each other: far from where recursion ends, and from what people write
_MOST_DIGITS = 310  # of a whole number that a float can hold, with its sign
_MOST_FAILED = 200  # brackets in a text that begin no JSON: for each, Python counts the lines before it
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NO_BRACKET = re.compile(r"[^\[\]{}]++")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MOST_PROBLEMS = 3  # that a message names


class JsonError(ValueError):
    """A text that is no usable JSON; the message says why, and where if that is known.

    Attributes:
      line, column: where, from 1; None if the whole text is meant.
    """

    def __init__(self, reason: str, line: int | None = None, column: int | None = None):
        super().__init__(reason if line is None else f"{reason}, line {line}, column {column}")
        self.reason, self.line, self.column = reason, line, column


def parse_json(text: str | bytes, *, mend: bool = False) -> Any:
    """The value of a JSON text: numbers that a float can hold, valid Unicode, at most 100 levels deep.

    Args:
      mend: replaces halves of characters (lone surrogates) by U+FFFD, in place of an error.

    Raises:
      JsonError: for anything else.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        value = json.loads(text, parse_int=_whole_number, parse_float=_number, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON ({error.msg})", error.lineno, error.colno) from None
    except RecursionError:
        raise _too_deep() from None
    if _is_too_deep(text):
        raise _too_deep()
    if mend:
        return _with_whole_characters(value) if _SURROGATE.search(text) else value
    _check_characters(text, value)
    return value


def find_json(text: str) -> list[Any]:
    """The JSON objects and lists in a text, from left to right; what ``parse_json`` refuses is left out, and halves of
    characters are replaced. Takes time in proportion to the text: nothing is looked for in what was cut off."""
    values: list[Any] = []
    start, failed, halves = _OPENING.search(text), 0, _SURROGATE.search(text) or not is_text(text)
    while start is not None and failed < _MOST_FAILED:
        try:
            value, end = _DECODER.raw_decode(text, start.start())
            if not _is_too_deep(text[start.start() : end]):
                values.append(_with_whole_characters(value) if halves else value)
        except json.JSONDecodeError as error:
            end, failed = max(error.pos, start.end()), failed + 1
        except JsonError:
            end, failed = start.end(), failed + 1
        except RecursionError:
            break
        start = _OPENING.search(text, end)
    return values


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no halves of characters (lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_form(kind: Any, data: Any) -> None:
    """Checks that data has a type as JSON knows it: ``TypedDict`` classes, lists, dicts, numbers, texts. Fields that a
    class does not name are left alone.

    Raises:
      ValueError: for other data; names the field and the value.
    """
    from pydantic import ValidationError

    try:
        _adapter(kind).validate_python(data, strict=True)
    except ValidationError as error:
        problems = [
            f"{shown('.'.join(map(str, one['loc'])) or 'the whole')[1:-1]}: {one['msg']:.200}"
            + (f", got {shown(one['input'])}" if one["type"] != "missing" else "")
            for one in error.errors(include_url=False, include_context=False)[:_MOST_PROBLEMS]
        ]
        more = error.error_count() - len(problems)
        raise ValueError("; ".join(problems) + (f"; and {more} more" if more else "")) from None


def check_record(data: Any, kinds: Mapping[str, Any], **optional: Any) -> None:
    """The same for a flat record that is read very often: its fields have these types; a number is not negative.

    Args:
      kinds: by field; ``float`` stands for any number.
      optional: of fields that may be absent.

    Raises:
      TypeError: names the field and the value.
    """
    if not isinstance(data, dict):
        raise TypeError(f"an object is expected, got {shown(data)}")
    for name, kind in {**kinds, **optional}.items():
        if name not in data and name in optional:
            continue
        value = data.get(name)
        whole = type(value) is int and value >= 0
        right = whole or (type(value) is float and value >= 0) if kind is float else whole if kind is int else None
        if not (isinstance(value, kind) if right is None else right):
            raise TypeError(f"{name} is {shown(value)}" if name in data else f"{name} is missing")


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # slow to import, and most commands check no file

    return TypeAdapter(kind)


def _with_whole_characters(value: Any) -> Any:
    text = json.dumps(value, ensure_ascii=False)
    return value if is_text(text) else json.loads(valid_text(text))


def _whole_number(digits: str) -> int:
    if len(digits) <= _MOST_DIGITS and abs(number := int(digits)) <= sys.float_info.max:
        return number
    raise JsonError(f"a whole number of {len(digits):,} digits, which no float can hold")


def _number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise JsonError(f"the number {shown(digits)} is too large")
    return number


def _no_number(name: str) -> NoReturn:
    raise JsonError(f"{name} is no number of JSON")


def _too_deep() -> JsonError:
    return JsonError(f"lists and objects are nested more than {MOST_NESTED} deep")


def _is_too_deep(text: str) -> bool:
    """Whether a text that is JSON is nested too deep. In each round the innermost pairs of brackets go."""
    if text.count("[") + text.count("{") <= MOST_NESTED:
        return False
    brackets = _NO_BRACKET.sub("", _STRING.sub("", text))
    for _ in range(MOST_NESTED):
        brackets = brackets.replace("[]", "").replace("{}", "")
    return bool(brackets)


def _check_characters(text: str, value: Any) -> None:
    if not is_text(text) or (_SURROGATE.search(text) and not is_text(json.dumps(value, ensure_ascii=False))):
        raise JsonError("a text holds half of a character (a lone surrogate)")


_OPENING = re.compile(r"[\[{]")
_DECODER = json.JSONDecoder(parse_int=_whole_number, parse_float=_number, parse_constant=_no_number)


def shown(value: Any, most: int = 80) -> str:
    """A value in a message: its ``repr``, cut, in characters that any terminal takes."""
    try:
        text = ascii(value) if isinstance(value, str) and not is_text(value) else repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, what holds itself
        text = f"a value of type {type(value).__name__}"
    text = redact(text)  # before it is cut: half a secret is not found any more
    return text if len(text) <= most else f"{text[: most - 3]}..."
