"""Sorts of texts: a number, a date, a refusal, code. Each is a pure function of one text, and sometimes wrong. Rules
count how often a sort occurs before and after."""

from __future__ import annotations

import re
from typing import Any

from optimas_jax.core.text.json_text import find_json

_WORDS = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MONTHS = (
    r"jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?"
)
_DATE = re.compile(
    rf"\b\d{{4}}-\d{{1,2}}-\d{{1,2}}\b|\b\d{{1,2}}[./]\d{{1,2}}[./]\d{{2,4}}\b|\b(?:{_MONTHS})\.? \d{{1,4}}\b|"
    rf"\b\d{{1,2}}(?:st|nd|rd|th)? (?:of )?(?:{_MONTHS})\b",
    re.IGNORECASE,
)
_SPELLED_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred"
)
_WITH_NUMBERS = (  # words that may accompany a number in an answer that is a number
    "a an the is was are of about around approximately roughly nearly almost over under more less than answer its it "
    "in at and plus minus times equals equal number total value hundred thousand million billion trillion percent per "
    "dollars dollar euros euro pounds usd eur us square cubic kilometres kilometers kilometre kilometer km metres "
    "meters metre meter m cm mm miles mile feet ft inches inch acres hectares kg kilograms grams tons tonnes litres "
    "liters years year months month days day hours hour minutes minute seconds second people inhabitants times x "
    "degrees celsius fahrenheit k bn mn st nd rd th"
)
_SPELLED = frozenset(_SPELLED_WORDS.split())
_OF_NUMBERS = frozenset(_WITH_NUMBERS.split())
_YES_NO = frozenset({"yes", "no", "true", "false", "yeah", "nope", "yep"})
_NOTHING = frozenset(
    {"none", "n/a", "na", "null", "nil", "nan", "undefined", "empty", "nothing", "blank", "tbd", "todo", "answer"}
    | {"placeholder", "no output", "your answer", "your answer here", "answer here", "insert answer here"}
)
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|afraid|unable|not able)|i (?:can(?:'|no)t|cannot|can not|do not|don't|won't|am unable)|"
    r"as an? (?:ai|language|assistant)|(?:we|you|it) can(?:not|'t) (?:be )?(?:determine|answer|tell|say)|cannot be "
    r"(?:determined|answered|known)|unable to (?:answer|help|determine|provide|find|assist)|not able to (?:answer|help|"
    r"provide)|(?:not|isn't|is no|no) (?:enough|sufficient) (?:information|context|data)|no information|not (?:given|"
    r"mentioned|provided|specified|stated|found) in|insufficient (?:information|context|data)|don't know|unknown|not "
    r"sure|no answer|against my|consult a (?:doctor|professional|lawyer))",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"```|^[ \t]*(?:def|class|import|from|return|function|const|let|var|public|private|#include|SELECT|print)\b.*"
    r"[(){};:=]|^[ \t]*SELECT\b.*\bFROM\b|\w{1,40}\([^()\n]{0,200}\)[ \t]*[;{]|=>|</?(?:script|html|div)\b|\bprint\(|"
    r"\blambda \w{1,40}:",
    re.MULTILINE,
)
_MARKUP = re.compile(
    r"\*\*[^*\n]+\*\*|__[^_\n]+__|^ {0,3}#{1,6} \S|^[ \t]*[-*\u2022] \S|^[ \t]*\d+[.)] \S.*\n[ \t]*\d+[.)] \S|"
    r"^[ \t]*\|.+\||</?[a-z][\w-]{0,40}(?: [^<>]{0,200})?/?>|\\(?:boxed|text|frac)\{|"
    r"\[[^\[\]\n]{1,200}\]\([^()\n]{1,200}\)",
    re.MULTILINE | re.IGNORECASE,
)
_ERROR = re.compile(r"traceback \(most recent|(?:error|exception):|\bhttp [45]\d\d\b|stack trace", re.IGNORECASE)
_REASONING = re.compile(
    r"<think|\bstep[- ]by[- ]step\b|\bstep 1\b|\blet(?:'s| us| me) (?:think|see|start|break|first)|\breasoning:|"
    r"\bfirst, (?:we|i|let)|\btherefore,? the answer\b|\bchain of thought\b|\bokay, so\b",
    re.IGNORECASE,
)
_GUESS = re.compile(
    r"\b(?:i (?:think|believe|guess|suppose)|probably|perhaps|possibly|maybe|might be|could be|not (?:entirely |quite )"
    r"?(?:sure|certain)|it seems|likely)\b",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(
    r"^\W*(?:sure|certainly|of course|absolutely|here (?:is|are)|here's|great question|happy to|let me|as requested|"
    r"based on (?:the|your))\b",
    re.IGNORECASE,
)
_LINK = re.compile(r"\b(?:https?://|www\.)\S+", re.IGNORECASE)
_RUN = 6  # words in a row that two texts do not share by accident
_LONGEST = 3_000  # characters of a text that are read


def text_of(value: Any) -> str:
    """A field of a run as one text; lists and mappings as JSON would write them."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value[:_LONGEST]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)[:_LONGEST]
    if isinstance(value, dict | list):
        return repr(value).replace("'", '"')[:_LONGEST]
    return str(value)[:_LONGEST]


def words_of(text: str) -> list[str]:
    """Words in lower case, without digits."""
    return _WORDS.findall(text.casefold())


def normal(text: str) -> str:
    """A text normalised for comparison: words and numbers in lower case, without marks and articles."""
    tokens = re.findall(r"\w+", text.casefold())
    return " ".join(token for token in tokens if token not in ("a", "an", "the"))


def shingles(text: str) -> frozenset[str]:
    """All runs of ``_RUN`` words of a normalised text."""
    words = normal(text).split()
    return frozenset(" ".join(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1))


def has_number(text: str) -> bool:
    """Whether it contains digits or a spelled-out number."""
    return bool(_NUMBER.search(text)) or not _SPELLED.isdisjoint(words_of(text))


def is_number(text: str, around: str = "") -> bool:
    """Whether it is a number, with its unit or in a calculation. ``around``: texts whose words do not count, such as
    the question that it repeats."""
    numbers, words = _NUMBER.findall(text), words_of(text)
    if not numbers:
        return (
            bool(words)
            and len(words) <= 3
            and all(word in _SPELLED | _OF_NUMBERS for word in words)
            and (not _SPELLED.isdisjoint(words))
        )
    known = _OF_NUMBERS | _SPELLED | set(words_of(around))
    return sum(word not in known for word in words) <= min(1, len(words) // 3)


def is_date(text: str) -> bool:
    """Whether it is little more than a date."""
    return bool(_DATE.search(text)) and len(words_of(_DATE.sub(" ", text))) <= 4


def has_date(text: str) -> bool:
    """Whether it contains a date or a year."""
    return bool(_DATE.search(text)) or bool(re.search(r"\b(?:1\d|20)\d\d\b", text))


def is_yes_no(text: str) -> bool:
    """Whether it says yes or no, first or alone."""
    first = re.match(r"\W*(\w+)(?:\W|$)", text.casefold())
    if first is None or first[1] not in _YES_NO:
        return False
    return first[1] != "no" or len(words_of(text)) < 2 or bool(re.match(r"\W*no\s*[,.;:!-]", text.casefold()))


def is_nothing(text: str) -> bool:
    """Whether it is empty, or a placeholder for a missing answer."""
    bare = text.strip().strip("<>[]{}()\"'`*_.:- ").casefold()
    return not re.search(r"\w", text) or bare in _NOTHING


def is_refusal(text: str) -> bool:
    """Whether it says that it does not answer; a long text with such a sentence in its middle does not."""
    return bool(_REFUSAL.search(text.replace("\u2019", "'")[:160]))


def is_json(text: str) -> bool:
    """Whether it is JSON, or little more."""
    if "{" not in text and "[" not in text:
        return False
    bare = re.sub(r"^\s*```\w*|```\s*$", "", text).strip()
    if not (bare.startswith(("{", "[")) and bare.endswith(("}", "]"))):
        return False
    return any(isinstance(data, dict | list) for data in find_json(bare)) or bool(re.match(r"[\[{]\s*[\"']", bare))


def is_code(text: str) -> bool:
    """Whether it contains lines of a program."""
    return bool(_CODE.search(text)) and not is_json(text)


def is_markup(text: str) -> bool:
    """Whether it is formatted: Markdown, tags, LaTeX."""
    return bool(_MARKUP.search(text))


def is_error(text: str) -> bool:
    """Whether it is an error message of software."""
    return bool(_ERROR.search(text))


def is_reasoning(text: str) -> bool:
    """Whether it shows how an answer is found."""
    return bool(_REASONING.search(text))


def is_link(text: str) -> bool:
    """Whether it contains a web address."""
    return bool(_LINK.search(text))


def is_guess(text: str) -> bool:
    """Whether it says that it is not sure."""
    return bool(_GUESS.search(text.replace("\u2019", "'")[:300]))


def is_preamble(text: str) -> bool:
    """Whether it begins with what an assistant says before an answer."""
    return bool(_PREAMBLE.search(text.replace("\u2019", "'")[:80]))


def is_capitals(text: str) -> bool:
    """Whether it is written in capitals: more than a code or an abbreviation."""
    return text.isupper() and sum(char.isalpha() for char in text) > 5


def is_letter(text: str) -> bool:
    """Whether it is the letter of an option."""
    return bool(re.fullmatch(r"\W*(?:option |answer:? |choice )?\(?[a-h]\W*", text.casefold()))


def is_several(text: str) -> bool:
    """Whether it is a list of several answers."""
    parts = [part.strip() for part in re.split(r"[,;/|\n]|\bor\b|\band\b", text)]
    return len(parts) >= 3 and sum(0 < len(part.split()) <= 4 for part in parts) == len(parts)


def is_loop(text: str) -> bool:
    """Whether it repeats itself."""
    words = text.casefold().split()
    if len(words) >= 8 and len(set(words)) <= 0.4 * len(words):
        return True
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return len(lines) >= 4 and len(set(lines)) <= len(lines) / 2
