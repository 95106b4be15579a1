"""Reads JSON that may be damaged or hostile, in files of rows, configurations, run folders and answers of models.

``json.loads`` alone raises three kinds of errors, depends on the depth of the caller's stack, and accepts values that
no later step can use: NaN, numbers of five thousand digits, halves of characters (lone surrogates). This reader raises
a ``JsonError`` for each of them.
"""

from __future__ import annotations

import functools
import json
import math
import re
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from optimas_jax.core.text.secrets import redact
from optimas_jax.core.types import valid_text

MOST_NESTED = 100  # levels of lists and objects: far below the recursion limit, far above what people write
_MOST_DIGITS = 310  # characters of a whole number that a float can hold, its sign included
_MOST_FAILED = 200  # brackets that begin no JSON: each costs a count of the lines before it
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NO_BRACKET = re.compile(r"[^\[\]{}]++")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_MOST_PROBLEMS = 3  # that a message names


class JsonError(ValueError):
    """A text that is no usable JSON; the message has the reason, and the place if it is known.

    Attributes:
      line, column: place of the error, from 1; None if the error concerns the whole text.
    """

    def __init__(self, reason: str, line: int | None = None, column: int | None = None):
        super().__init__(reason if line is None else f"{reason}, line {line}, column {column}")
        self.reason, self.line, self.column = reason, line, column


def parse_json(text: str | bytes, *, mend: bool = False) -> Any:
    """The value of a JSON text: numbers that a float can hold, valid Unicode, at most 100 levels deep.

    Args:
      mend: whether halves of characters (lone surrogates) become U+FFFD instead of an error.

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
    """The JSON objects and lists in a text, from left to right. Values that ``parse_json`` refuses are left out, and
    halves of characters become U+FFFD. Takes time in proportion to the text, because a broken value is not searched
    again."""
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
    """Checks the type of data from JSON: ``TypedDict`` classes, lists, dicts, numbers, texts. Fields that a class does
    not name are ignored.

    Raises:
      ValueError: for other data; names the field and the value.
    """
    from pydantic import ValidationError

    try:
        _adapter(kind).validate_python(data, strict=True)
    except ValidationError as error:
        problems = [
            f"{shown('.'.join(map(str, problem['loc'])) or 'the whole')[1:-1]}: {problem['msg']:.200}"
            + (f", got {shown(problem['input'])}" if problem["type"] != "missing" else "")
            for problem in error.errors(include_url=False, include_context=False)[:_MOST_PROBLEMS]
        ]
        more = error.error_count() - len(problems)
        raise ValueError("; ".join(problems) + (f"; and {more} more" if more else "")) from None


def check_record(data: Any, kinds: Mapping[str, Any], **optional: Any) -> None:
    """Checks a flat record, faster than ``check_form``: its fields have these types, and no number is negative.

    Args:
      kinds: type by field; ``float`` stands for any number.
      optional: types of fields that may be absent.

    Raises:
      TypeError: names the field and the value.
    """
    if not isinstance(data, dict):
        raise TypeError(f"an object is expected, got {shown(data)}")
    for name, kind in {**kinds, **optional}.items():
        if name not in data and name in optional:
            continue
        value = data.get(name)
        is_count = type(value) is int and value >= 0
        if kind is float:
            fits = is_count or (type(value) is float and value >= 0)
        elif kind is int:
            fits = is_count
        else:
            fits = isinstance(value, kind)
        if not fits:
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
    """Whether a text of JSON is nested too deep. Each round removes the innermost pairs of brackets."""
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
    """A value as messages show it: its ``repr``, cut to ``most`` characters, which any terminal can print."""
    try:
        text = ascii(value) if isinstance(value, str) and not is_text(value) else repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or a value that contains itself
        text = f"a value of type {type(value).__name__}"
    text = redact(text)  # before the cut, because half a secret is not recognised
    return text if len(text) <= most else f"{text[: most - 3]}..."
