"""Secrets of the environment, which are in no file, message or traceback.

Everything that leaves the process as text goes through ``redact``: messages, tracebacks, files of a run, pages.
"""

from __future__ import annotations

import functools
import os
import re
import urllib.parse
from typing import Any

MASK = "***"
_LOGIN = re.compile(r"""(?<=://)[^\s/?#@"'<>\\]+@""")  # of an address, user and password
_QUERY_KEY = re.compile(
    r"""((?:[?&]|&amp;)(?:api[-_]?key|key|token|access[-_]token|secret|password)=)[^\s&#"'<>\\]+""", re.IGNORECASE
)
_NAMES = re.compile(r"(API_?KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)  # of variables that hold one
_SHORTEST = 8  # letters: a shorter text is a word that may stand anywhere
_SHORT = dict(zip("\n\r\t\b\f", "nrtbf", strict=True))  # what follows a backslash in the short form of a letter
_NAMED = dict(zip("&<>\"'", ("amp", "lt", "gt", "quot", "apos"), strict=True))  # in HTML


def redact(text: str) -> str:
    """The text with all secrets of the environment masked, in whatever form a library or a server may quote them."""
    secrets = tuple(value for name, value in os.environ.items() if _NAMES.search(name))
    for pattern in _patterns(secrets):
        text = pattern.sub(MASK, text)
    return text


def redacted(text: str, most: int) -> str:
    """The first ``most`` letters, masked before they are cut: half a secret is not found any more."""
    return redact(text)[:most]


class Redacted:
    """A stream of text that writes no secret."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(redact(text))

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@functools.lru_cache(maxsize=8)
def _patterns(secrets: tuple[str, ...]) -> list[re.Pattern[str]]:
    """Patterns of all secrets, and of each of their lines, the longest first."""
    parts = {part for secret in secrets for part in (secret, secret.strip(), *secret.splitlines())}
    ordered = sorted((part for part in parts if len(part) >= _SHORTEST), key=lambda part: (-len(part), part))
    return [_pattern(part) for part in ordered]


def _pattern(secret: str) -> re.Pattern[str]:
    """A secret as it is and as it stands in other texts: quoted by Python and JSON, any number of times, by HTML, and
    for addresses. Takes time in proportion to a text: a run of backslashes is looked at once."""
    runs = re.findall(r"\\+|[^\\]", secret)
    after = ["", *runs[:-1]]
    body = "".join(_written(run, before[:1] == "\\") for before, run in zip(after, runs, strict=True))
    return re.compile(body if _is_plain(runs[0]) else rf"(?<!\\){body}")


def _is_plain(letter: str) -> bool:
    """Whether a letter is written as it is everywhere."""
    return (letter.isascii() and letter.isalnum()) or letter in "-_.~"


def _written(letter: str, behind: bool) -> str:
    """Pattern of a letter, or of a run of backslashes.

    Args:
      behind: whether it follows a run of backslashes, whose pattern has all of those before the letter.
    """
    if _is_plain(letter):
        return re.escape(letter)
    if letter[0] == "\\":
        return r"(?:\\+|(?:%(?:25)*5[cC])+|(?:&(?:amp;)*#92;)+)"
    utf8, utf16 = letter.encode("utf-8", "replace"), letter.encode("utf-16-be", "surrogatepass").hex()
    units, code, slashes = [utf16[at : at + 4] for at in range(0, len(utf16), 4)], ord(letter), "" if behind else r"\\+"
    quoted = [f"x{code:02x}"] * (code < 256) + [f"U{code:08x}", *_SHORT.get(letter, ())]
    ways = [
        re.escape(letter) if behind else rf"\\*{re.escape(letter)}",
        re.escape(utf8.decode("latin-1")),
        "".join(rf"%(?:25)*(?i:{byte:02x})" for byte in utf8),
        slashes + r"\\+".join(f"x(?i:{byte:02x})" for byte in utf8),
        slashes + r"\\+".join(f"u(?i:{unit})" for unit in units),
        slashes + r"\\+".join(f"u(?i:00{byte:02x})" for byte in utf8),  # bytes that were taken for letters
        *(f"{slashes}{name[0]}(?i:{name[1:]})" for name in quoted),
        rf"&(?:amp;)*(?:#0*{code}|#[xX]0*(?i:{code:x})|{_NAMED.get(letter, '#')});",
    ]
    return f"(?:{'|'.join(ways)}{'|[+]' * (letter == ' ')})"


def without_keys(address: str) -> str:
    """An address without what it may hold of passwords and keys."""
    parts = urllib.parse.urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def shareable(text: str) -> str:
    """The text as others may read it: ``redact``, and addresses in it without what they hold of passwords and keys."""
    return _QUERY_KEY.sub(rf"\1{MASK}", _LOGIN.sub(f"{MASK}@", redact(text)))


def key_problem(key: str) -> str:
    """Why a key cannot be sent in a header; "" if it can. The key is not in the answer."""
    for position, letter in enumerate(key):
        if not "\x20" < letter < "\x7f":
            return f"letter {position + 1} of its {len(key)} is U+{ord(letter):04X}, and a header takes printable ASCII"
    return ""
