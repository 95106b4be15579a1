"""The shortest way from the middle of a JSON text to its end, as a grammar allows it.

A grammar does not give the length of its shortest text. So this is a search, byte by byte, guided by the structure of
JSON: brackets are closed as soon as possible; null, numbers and short texts are tried before lists and objects.
Containers that are opened on the way are searched with growing limits, which ends recursive types. The result is nearly
the shortest and always complete.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from llguidance import LLMatcher

_LIMITS = (16, 64, 256, 1024, 4096)  # bytes of a path, tried one after the other
_SCALAR_LIMITS = (8, 64, 512)  # bytes of a text or number, tried one after the other
_STEPS, _SCALAR_STEPS = 4000, 200  # most steps of a search, and of the search for one scalar
_VALUES = b"ntf0123456789.-+eE"  # scalars, in the order of preference
_LETTERS = b"abcdefghijklmnopqrstuvwxyz1234567890ABCDEFGHIJKLMNOPQRSTUVWXYZ-_.:@/ "


@dataclasses.dataclass(frozen=True)
class Path:
    """A text that is the beginning of a JSON text, and the position at its end.

    Attributes:
      matcher: state of the grammar after the text.
      byte_ids: [256] int32, the token of each single byte; -1 for a byte without one.
      text: bytes since the search began.
      stack: the open brackets.
      key: whether the next or current string in the innermost object is a key.
      in_string, escaped: whether the text ends in a string, and after a backslash.
      marks: number of brackets, commas and colons outside of strings.
    """

    matcher: LLMatcher
    byte_ids: np.ndarray
    text: bytes = b""
    stack: bytes = b""
    key: bool = False
    in_string: bool = False
    escaped: bool = False
    marks: int = 0

    def copy(self) -> Path:
        """The same position, with an empty text."""
        return dataclasses.replace(self, matcher=self.matcher.deep_copy(), text=b"")

    def plus(self, text: bytes, tokens: list[int] | None = None) -> Path:
        """The path after more text, which the grammar must allow; ``tokens``: of the text, by default one per byte."""
        matcher = self.matcher.deep_copy()
        if not matcher.consume_tokens(self.byte_ids[list(text)].tolist() if tokens is None else tokens):
            raise RuntimeError(f"the grammar does not allow {text!r}: {matcher.get_error()}")
        stack, key, in_string, escaped, marks = self.stack, self.key, self.in_string, self.escaped, self.marks
        for byte in text:
            if in_string:
                in_string, escaped = escaped or byte != ord('"'), not escaped and byte == ord("\\")
            elif byte == ord('"'):
                in_string = True
            elif byte in b"{[}],:":
                stack = stack + bytes([byte]) if byte in b"{[" else stack[:-1] if byte in b"}]" else stack
                key, marks = byte in b"{," and stack[-1:] == b"{", marks + 1
        extended = self.text + text
        return dataclasses.replace(
            self,
            matcher=matcher,
            text=extended,
            stack=stack,
            key=key,
            in_string=in_string,
            escaped=escaped,
            marks=marks,
        )

    def allowed(self) -> frozenset[int]:
        """Bytes that may come next."""
        mask = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        bits = (mask[self.byte_ids >> 3] >> (self.byte_ids & 7)) & (self.byte_ids >= 0)
        return frozenset(np.flatnonzero(bits).tolist())


def start(matcher: LLMatcher, byte_ids: np.ndarray) -> Path:
    """The empty path at the beginning of a JSON text."""
    return Path(matcher, byte_ids)


def close(path: Path) -> Path | None:
    """A path from here to the end of the JSON text; None if none is found."""
    path, search = path.copy(), _Search()
    for depth in reversed(range(len(path.stack) + 1)):  # closes the open brackets one after the other
        if len(path.stack) < depth:
            continue
        closed = search.within(path, depth - 1, _LIMITS[-1])
        if closed is None:
            return None
        path = closed
    return path


class _Search:
    def __init__(self) -> None:
        self._steps = 0

    def within(self, path: Path, depth: int, most: int) -> Path | None:
        """The path to where at most ``depth`` brackets are open, -1 for the end of the text; with growing limits."""
        for limit in _LIMITS:
            end = self._until(path, depth, min(len(path.text) + limit, most))
            if end is not None:
                return end
            if len(path.text) + limit >= most:
                break
        return None

    def _until(self, path: Path, depth: int, most: int) -> Path | None:
        """As ``within``, with the single limit of ``most`` bytes."""
        while True:
            path, allowed = self._obvious(path)
            if len(path.stack) <= depth or (depth < 0 and path.matcher.is_accepting()):
                return path
            if len(path.text) > most or not allowed:
                return None
            if path.in_string and path.key:  # the key decides what follows: every possible key is tried
                for scalar in self._scalars(path, _SCALAR_LIMITS[-1]):
                    if (end := self._until(scalar, depth, most)) is not None:
                        return end
                return None
            # A value does not affect what follows it: the first one will do.
            values = (scalar for limit in _SCALAR_LIMITS for scalar in self._scalars(path, limit))
            following = next(values, None) or self._container(path, allowed, most)
            if following is None:
                return None
            path = following

    def _container(self, path: Path, allowed: frozenset[int], most: int) -> Path | None:
        """The path after a list or an object that begins here; None if none is found."""
        for limit in _LIMITS:
            for bracket in (byte for byte in b"[{" if byte in allowed):
                end = self._until(path.plus(bytes([bracket])), len(path.stack), min(len(path.text) + limit, most))
                if end is not None:
                    return end
            if len(path.text) + limit >= most:
                break
        return None

    def _obvious(self, path: Path) -> tuple[Path, frozenset[int]]:
        """The path extended while only one byte may follow, or one is best; and the bytes that may follow it."""
        while True:
            self._steps += 1
            if forced := path.matcher.compute_ff_bytes():
                path = path.plus(forced)
                continue
            allowed = path.allowed() if self._steps < _STEPS else frozenset()
            if path.in_string:
                best = [ord('"')] if not path.escaped else []
            else:
                best = [] if path.matcher.is_accepting() else [*b"}],"]
            best = [byte for byte in best if byte in allowed]
            if not best:
                return path, allowed
            path = path.plus(bytes(best[:1]))

    def _scalars(self, path: Path, limit: int) -> Iterator[Path]:
        """Paths after the current or next text or number, of at most ``limit`` bytes."""
        marks, most, last = path.marks, len(path.text) + limit, self._steps + _SCALAR_STEPS

        def go_on(path: Path) -> Iterator[Path]:
            path, allowed = self._obvious(path)
            if path.marks > marks or (not path.in_string and path.text and path.matcher.is_accepting()):
                yield path
            elif len(path.text) <= most and self._steps < last:
                for byte in _choices(path, allowed):
                    yield from go_on(path.plus(bytes([byte])))

        yield from go_on(path)


def _choices(path: Path, allowed: frozenset[int]) -> list[int]:
    """Bytes to try for a scalar, the best first."""
    if not path.in_string:
        return [byte for byte in (*_VALUES, ord('"')) if byte in allowed]
    plain = [byte for byte in _LETTERS if byte in allowed]
    return plain or sorted(allowed - {ord("\\")}) or sorted(allowed)
