"""Finds the examples of recorded calls, by the texts that the calls read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from optimas_jax.core.types import Example, digest
from optimas_jax.traces.conversations import squeezed
from optimas_jax.traces.records import leaves

ANCHOR = 12  # characters at the beginning of a text by which it is searched; a shorter text must be a whole line
_WORD = re.compile(r"\S+")


class ExampleIndex:
    """Index of examples by the texts of their inputs. A search takes time in proportion to the searched texts."""

    def __init__(self, examples: Iterable[Example]):
        self._by_inputs: dict[str, Example] = {}
        self._parts: list[tuple[Example, frozenset[str]]] = []
        self._anchors: dict[str, set[str]] = {}
        self._lines: set[str] = set()
        self._by_part: dict[str, list[int]] = {}
        for example in examples:
            self._by_inputs[digest(example.inputs)] = example
            parts = frozenset(squeezed(leaf) for leaf in leaves(example.inputs))
            if not parts:
                continue
            self._parts.append((example, parts))
            for part in parts:
                self._by_part.setdefault(part, []).append(len(self._parts) - 1)
                if len(part) >= ANCHOR:
                    self._anchors.setdefault(part[:ANCHOR], set()).add(part)
                else:
                    self._lines.add(part)

    def find(self, texts: Sequence[str], row: Mapping | None = None) -> list[Example]:
        """Examples whose input texts are all in ``texts``, the longest inputs first.

        Args:
          row: the inputs of the example, if they are known.
        """
        if row is not None and (known := self._by_inputs.get(digest(row))) is not None:
            return [known]
        present = {part for text in texts for part in self._present(text)}
        near = {index for part in present for index in self._by_part[part]}
        matches = [self._parts[index] for index in sorted(near) if self._parts[index][1] <= present]
        matches.sort(key=lambda match: -sum(map(len, match[1])))
        return [example for example, _ in matches]

    def _present(self, text: str) -> set[str]:
        """Texts of examples that occur in a text."""
        parts: set[str] = set()
        if self._lines:
            for line in (text, *text.splitlines()):
                whole = squeezed(line)
                parts.update(part for part in (whole, squeezed(whole.partition(":")[2])) if part in self._lines)
        flat = squeezed(text)
        for word in _WORD.finditer(flat):
            for begin in _begins(word):
                for part in self._anchors.get(flat[begin : begin + ANCHOR], ()):
                    if part not in parts and flat.startswith(part, begin):
                        parts.add(part)
        return parts


def _begins(word: re.Match[str]) -> Iterable[int]:
    """Positions at which a text may begin: at a word, or after quotes and brackets at its beginning."""
    yield word.start()
    for position, character in enumerate(word[0][:3], start=word.start() + 1):
        if character.isalnum():
            break
        yield position
