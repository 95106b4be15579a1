"""Texts of users, models and files as one line of a terminal: nothing in them is markup, moves the cursor or wraps."""

from __future__ import annotations

import re
import unicodedata

from rich.cells import cell_len
from rich.text import Text

_LONG = 2_000  # letters that are kept of the beginning and of the end of a text with more than twice as many
_MARKS = 3  # combining marks that one letter may have
_DROPPED = {"Cf", "Me"}  # joiners, directions, variation selectors among them; enclosing marks
_UNKNOWN = {"Cc", "Cs", "Cn"}  # terminals differ in the width of these
_FLAGS = {0x1F1E6 + index: chr(ord("A") + index) for index in range(26)}  # two of them are one flag, or two letters
_SHADES = dict.fromkeys(range(0x1F3FB, 0x1F400), None)  # of the emoji before them
_SELECTORS = dict.fromkeys(range(0xFE00, 0xFE10), None)
_TABLE = {**_FLAGS, **_SHADES, **_SELECTORS}
_FIGURE = re.compile(r"(?<![\w.])[+-]?\d[\d.,:]*%?")
_LONGEST_FIGURE = 24  # a longer one is a text of digits
_STYLES = (
    (re.compile(r"\s*warning\b"), "yellow"),
    (re.compile(r"\s*accepted\b"), "green"),
    (re.compile(r"iteration \d+/\d+: .*"), "bold"),
    (re.compile(r"(?:probe|collect|train|optimize|refresh|align|evaluate)$"), "bold cyan"),
)
ELLIPSIS = "…"


def plain(text: str) -> str:
    """The text as one line, without characters that change the width, the position or the direction of other text.
    Spaces at its beginning stay."""
    if len(text) > 2 * _LONG:
        text = f"{text[:_LONG]}{ELLIPSIS}{text[-_LONG:]}"
    if text.isascii() and text.isprintable():
        return text.rstrip()
    indent = text[: len(text) - len(text.lstrip(" "))]
    words = " ".join(text.split())
    letters: list[str] = []
    marks = 0
    for letter in unicodedata.normalize("NFC", words).translate(_TABLE):
        kind = unicodedata.category(letter)
        marks = marks + 1 if kind == "Mn" else 0
        if kind in _DROPPED or marks > _MARKS or (marks and not letters):
            continue
        letters.append("\ufffd" if kind in _UNKNOWN else letter)
    return indent + "".join(letters)


def fit(text: str, width: int) -> str:
    """A plain text in at most ``width`` cells. Words are cut, the longest ones first, and figures are kept; where there
    are too many figures, the middle of the text is left out."""
    if cell_len(text) <= width:
        return text
    parts = _parts(text)
    words = [cell_len(part) for part, is_figure in parts if not is_figure]
    room = width - sum(cell_len(part) for part, is_figure in parts if is_figure)
    most = _share(words, room)
    if most >= 2:
        return "".join(part if is_figure else _cut(part, most) for part, is_figure in parts)
    head = max(0, width // 3)
    return _cut(text, head) + _tail(text, width - head)


def padded(text: str, width: int) -> str:
    """The text with spaces behind it, up to ``width`` cells."""
    return text + " " * (width - cell_len(text))


def styled(text: str) -> Text:
    """A line with the style that its first word has."""
    line = Text(text, no_wrap=True, overflow="crop", end="")
    for pattern, style in _STYLES:
        if match := pattern.match(text):
            line.stylize(style, 0, match.end())
            break
    return line


def _parts(text: str) -> list[tuple[str, bool]]:
    """The text in parts, and whether each is a figure."""
    parts: list[tuple[str, bool]] = []
    end = 0
    for match in _FIGURE.finditer(text):
        if len(match[0]) <= _LONGEST_FIGURE:
            parts += [(text[end : match.start()], False), (match[0], True)]
            end = match.end()
    return [part for part in (*parts, (text[end:], False)) if part[0]]


def _share(widths: list[int], room: int) -> int:
    """The largest width of each part with which all parts fit into ``room``."""
    left, most = room, 0
    for index, width in enumerate(sorted(widths)):
        most = left // (len(widths) - index)
        if width > most:
            break
        left -= width
    return most


def _cut(text: str, width: int) -> str:
    """The beginning of a text with an ellipsis, and with the space at its end, in at most ``width`` cells; of a text
    that ends with a path, its end."""
    if cell_len(text) <= width:
        return text
    if width <= 0:
        return ""
    if "/" in text.rpartition(" ")[2]:
        return ELLIPSIS + _tail(text, width - 1)
    end = ELLIPSIS + " " * (text.endswith(" ") and width > 2)
    return _head(text, width - len(end)) + end


def _head(text: str, width: int) -> str:
    width = max(0, width)
    kept = text[:width]  # no letter is narrower than a cell, but marks
    while cell_len(kept) > width:
        kept = kept[:-1]
    return kept


def _tail(text: str, width: int) -> str:
    return _head(text[::-1], width)[::-1]
