"""Finds the examples that recorded calls are of, by the texts that they read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from optimas_jax.core.types import Example, digest
from optimas_jax.traces.conversations import squeezed
from optimas_jax.traces.records import leaves

_ANCHOR = 12  # characters at the beginning of a text by which it is looked for; shorter ones must be a whole line
_WORD = re.compile(r"\S+")


class ExampleIndex:
    """Examples by the texts of their inputs. Takes time in proportion to the texts that are looked through."""

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
                if len(part) >= _ANCHOR:
                    self._anchors.setdefault(part[:_ANCHOR], set()).add(part)
                else:
                    self._lines.add(part)

    def find(self, texts: Sequence[str], row: Mapping | None = None) -> list[Example]:
        """Examples of which all texts of the inputs are in ``texts``, those with the longest inputs first.

        Args:
          row: the inputs themselves, where they are known.
        """
        if row is not None and (known := self._by_inputs.get(digest(row))) is not None:
            return [known]
        present = {part for text in texts for part in self._present(text)}
        near = {index for part in present for index in self._by_part[part]}
        found = [self._parts[index] for index in sorted(near) if self._parts[index][1] <= present]
        found.sort(key=lambda one: -sum(map(len, one[1])))
        return [example for example, _ in found]

    def _present(self, text: str) -> set[str]:
        """Texts of examples that stand in a text."""
        found: set[str] = set()
        if self._lines:
            for line in (text, *text.splitlines()):
                whole = squeezed(line)
                found.update(part for part in (whole, squeezed(whole.partition(":")[2])) if part in self._lines)
        flat = squeezed(text)
        for word in _WORD.finditer(flat):
            for begin in _begins(word):
                for part in self._anchors.get(flat[begin : begin + _ANCHOR], ()):
                    if part not in found and flat.startswith(part, begin):
                        found.add(part)
        return found


def _begins(word: re.Match[str]) -> Iterable[int]:
    """Where a text may begin: at a word, or behind quotes and brackets at its beginning."""
    yield word.start()
    for place, character in enumerate(word[0][:3], start=word.start() + 1):
        if character.isalnum():
            break
        yield place
