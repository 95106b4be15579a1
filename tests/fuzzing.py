"""Damaged and hostile inputs, and a watch over what they do: only typed errors, quickly, in little memory."""

from __future__ import annotations

import collections
import contextlib
import copy
import json
import random
import time
import traceback
import tracemalloc
from collections.abc import Callable
from typing import Any

from optimas_jax.core.text.json_text import is_text

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**63, 10**30, 10**400, 1.5, 1e308, -0.0),
    *(float("nan"), float("inf"), float("-inf")),
    *("", " ", "x", "é", "\ud800", "a\udfffb", "\x00", "x\x00y", "\u2028", "yes", "x" * 10_000, "9" * 5000),
    *([], [None], [[]], ["a", 1], [1, 2, 3, 4, 5], ["a"] * 1000, {}, {"a": None}, {"": {}}, [[[]]], {"a": [{}]}),
)
TEXTS = (
    *("", "{", "[]", "{}", "null", "123", "-", '"x"', "NaN", "Infinity", "[NaN]", '{"id": 1}', "\x00", "\ufeff{}"),
    *("{} {}", "{'a': 1}", "[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000, "9" * 5000, "[1e999]"),
    *('{"id": "\\ud800"}', '"\\ud800"', "\ud800", "[" + "9" * 5000 + "]", "\r", "\x1a", '{"a": 1', '{"a": 1}}'),
    *('{"a": "\x01"}', '{"a": "\\x"}', "// no", "<html></html>", '{"a": 1, "a": 2}', '{"__class__": "x"}'),
)


def bend(value: Any, rng: random.Random) -> Any:
    """A copy of plain data with another thing at one place."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        node = waiting.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, item in items:
            places.append((node, key))
            waiting.append(item)
    if not places or rng.random() < 0.03:
        return rng.choice(ODD)
    node, key = rng.choice(places)
    if isinstance(node, dict) and rng.random() < 0.15:
        del node[key]
    elif isinstance(node, dict) and rng.random() < 0.1:
        node[rng.choice(["x", "", "id", "\ud800", "type", "event"])] = rng.choice(ODD)
    else:
        node[key] = rng.choice(ODD)
    return value


def dump(value: Any) -> str:
    """JSON with numbers of any size, NaN and halves of characters."""
    try:
        return json.dumps(value)
    except ValueError:  # too many digits for Python
        return "[" + "9" * 5000 + "]"


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def broken(data: bytes, rng: random.Random) -> bytes:
    """Bytes cut, with one flipped bit, with noise, or with something inserted."""
    if not data:
        return b"\x00"
    place = rng.randrange(len(data))
    match rng.randrange(5):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        case 2:
            return data[:place] + rng.randbytes(16) + data[place + 16 :]
        case 3:
            return data[:place] + rng.choice([b"\x00", b"\xff", b"\n", b"{", b'"', b"\xed\xa0\x80"]) + data[place:]
        case _:
            return rng.randbytes(min(len(data), 300))


def damaged(text: str, rng: random.Random) -> bytes:
    """A file of JSON, damaged in one of the ways."""
    kind = rng.random()
    if kind < 0.25:
        return as_bytes(rng.choice(TEXTS))
    if kind < 0.5:
        return broken(text.encode(), rng)
    return as_bytes(dump(bend(json.loads(text), rng)))


def damaged_lines(text: str, rng: random.Random) -> bytes:
    """A file of JSON lines, damaged in one of the ways."""
    if rng.random() < 0.3:
        return broken(text.encode(), rng)
    lines = [line.encode() for line in text.splitlines()]
    index = rng.randrange(len(lines))
    lines[index] = damaged(lines[index].decode(), rng).replace(b"\n", b"")
    return b"\n".join(lines) + b"\n"


class Watch:
    """Calls functions with inputs, and keeps what they should not have done.

    Attributes:
      slowest: seconds of the longest call, of this process alone: others have the machine, too.
      faults: by kind, the first input that showed it.
      counts: by what came out.
    """

    def __init__(self, most_seconds: float = 0.1):
        self.most_seconds, self.slowest, self.faults = most_seconds, 0.0, dict[str, str]()
        self.counts: collections.Counter[str] = collections.Counter()

    def call(self, shown: Any, function: Callable[[], Any], longer: float = 1.0) -> Any:
        """The function's result, or None for an error. An error of the project's own is right.

        Args:
          longer: how many times as long as usual it may take.
        """
        began, result = time.process_time(), None
        try:
            result = function()
            self.counts["a result"] += 1
        except Exception as error:
            kind, said = type(error), str(error)
            self.counts[kind.__name__] += 1
            if not kind.__module__.startswith("optimas_jax"):
                *_, frame = traceback.extract_tb(error.__traceback__)
                self._note(f"{kind.__name__} in {frame.filename}:{frame.lineno}: {ascii(said)[:200]}", shown)
            elif len(said) > 2000:
                self._note(f"{kind.__name__} with a long message: {ascii(said)[:200]}", shown)
            elif not is_text(said):
                self._note(f"{kind.__name__} with a message that no terminal shows: {ascii(said)[:200]}", shown)
        seconds = time.process_time() - began
        if seconds > longer * self.most_seconds:
            again = time.process_time()  # the first time of all imports what it needs
            with contextlib.suppress(Exception):
                function()
            seconds = min(seconds, time.process_time() - again)
        self.slowest = max(self.slowest, seconds)
        if seconds > longer * self.most_seconds:
            self._note("slow", f"{seconds:.2f} s: {shown}")
        return result

    def _note(self, kind: str, shown: Any) -> None:
        self.faults.setdefault(kind, ascii(shown)[:300])  # one of a kind: the message may differ

    def check(self) -> None:
        assert not self.faults, "\n".join(f"{kind}\n    {shown}" for kind, shown in self.faults.items())


def peak_mb(function: Callable[[], Any]) -> float:
    """The most memory that Python takes for a call, in MB."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
