"""Masks the secrets of the environment, so that no file, message or traceback holds one.

All text that leaves the process goes through ``redact``: messages, tracebacks, files of a run, pages.
"""

from __future__ import annotations

import functools
import os
import re
import urllib.parse
from typing import Any

MASK = "***"
_LOGIN = re.compile(r"""(?<=://)[^\s/?#@"'<>\\]+@""")  # user and password of an address
_QUERY_KEY = re.compile(
    r"""((?:[?&]|&amp;)(?:api[-_]?key|key|token|access[-_]token|secret|password)=)[^\s&#"'<>\\]+""", re.IGNORECASE
)
_NAMES = re.compile(r"(API_?KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)  # names of variables that hold a secret
_SHORTEST = 8  # characters: a shorter value may be an ordinary word, and is not masked
_SHORT = dict(zip("\n\r\t\b\f", "nrtbf", strict=True))  # character -> what follows the backslash in its short escape
_NAMED = dict(zip("&<>\"'", ("amp", "lt", "gt", "quot", "apos"), strict=True))  # character -> its name in HTML


def redact(text: str) -> str:
    """The text with all secrets of the environment masked, in every form in which a library or a server may quote
    them."""
    secrets = tuple(value for name, value in os.environ.items() if _NAMES.search(name))
    for pattern in _patterns(secrets):
        text = pattern.sub(MASK, text)
    return text


def redacted(text: str, most: int) -> str:
    """The first ``most`` characters of the text, masked before the cut, because half a secret is not recognised."""
    return redact(text)[:most]


class Redacted:
    """A text stream that masks secrets in everything that it writes."""

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
    """Patterns of all secrets and of each of their lines, the longest first."""
    parts = {part for secret in secrets for part in (secret, secret.strip(), *secret.splitlines())}
    ordered = sorted((part for part in parts if len(part) >= _SHORTEST), key=lambda part: (-len(part), part))
    return [_pattern(part) for part in ordered]


def _pattern(secret: str) -> re.Pattern[str]:
    """Pattern of a secret as it is and as other texts quote it: by Python and JSON, any number of times, by HTML, and
    in addresses. Matching takes time in proportion to the text, because a run of backslashes is read once."""
    runs = re.findall(r"\\+|[^\\]", secret)
    after = ["", *runs[:-1]]
    body = "".join(_written(run, before[:1] == "\\") for before, run in zip(after, runs, strict=True))
    return re.compile(body if _is_plain(runs[0]) else rf"(?<!\\){body}")


def _is_plain(letter: str) -> bool:
    """Whether a character is written as it is in every kind of text."""
    return (letter.isascii() and letter.isalnum()) or letter in "-_.~"


def _written(letter: str, behind: bool) -> str:
    """Pattern of a character, or of a run of backslashes.

    Args:
      behind: whether it follows a run of backslashes, whose pattern covers all backslashes before the character.
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
        slashes + r"\\+".join(f"u(?i:00{byte:02x})" for byte in utf8),  # bytes of UTF-8 that were decoded one by one
        *(f"{slashes}{name[0]}(?i:{name[1:]})" for name in quoted),
        rf"&(?:amp;)*(?:#0*{code}|#[xX]0*(?i:{code:x})|{_NAMED.get(letter, '#')});",
    ]
    return f"(?:{'|'.join(ways)}{'|[+]' * (letter == ' ')})"


def without_keys(address: str) -> str:
    """An address without its user, password, query and fragment, which may hold secrets."""
    parts = urllib.parse.urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def shareable(text: str) -> str:
    """The text as others may read it: masked by ``redact``, and with passwords and keys in addresses masked as well."""
    return _QUERY_KEY.sub(rf"\1{MASK}", _LOGIN.sub(f"{MASK}@", redact(text)))


def key_problem(key: str) -> str:
    """Reason why a key cannot be sent in a header, without the key itself; "" if it can be sent."""
    for position, letter in enumerate(key):
        if not "\x20" < letter < "\x7f":
            return f"letter {position + 1} of its {len(key)} is U+{ord(letter):04X}, and a header takes printable ASCII"
    return ""
