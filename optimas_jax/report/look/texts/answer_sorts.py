"""Sorts of answers: texts compared with the gold answer, the question and the prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from optimas_jax.report.look.texts import sorts
from optimas_jax.report.look.texts.languages import language_of
from optimas_jax.report.look.texts.sorts import normal, shingles

_LENGTH = 3  # times as many words as the gold answer
_WORDS = 12  # words more than the gold answer, at least
_QUESTION = 40  # words of a question, at most


@dataclasses.dataclass(frozen=True)
class Asked:
    """What an answer is compared with.

    Attributes:
      field: of the outputs.
      gold, inputs: texts of the example.
      demos: answers of demonstrations, normalised (``sorts.normal``).
      prompts: runs of words of instructions.
      labels: names of fields, as a prompt shows them.
      closed: answers of a closed set, such as the labels of classes: none of them is of a wrong sort.
      usual: one of the most frequent answers, before and after together.
    """

    field: str
    gold: Sequence[str]
    inputs: Sequence[str]
    demos: frozenset[str]
    prompts: frozenset[str]
    labels: Sequence[str]
    closed: frozenset[str] = frozenset()
    usual: str = ""


@dataclasses.dataclass(frozen=True)
class Sort:
    """A sort of answers.

    Attributes:
      words: ``answered with WORDS``.
      holds: whether an answer is of this sort.
      other: predicate for gold answers of other sorts: ``is of another sort``.
      in_gold: whether a gold answer is of this sort, or so near to it that an answer may be; by default ``holds``.
    """

    words: str
    holds: Callable[[str, Asked], bool]
    in_gold: Callable[[str, Asked], bool] | None = None
    other: str = "is of another sort"

    def found(self, text: str, asked: Asked) -> bool:
        """Whether an answer is of this sort, and not simply a member of a closed set."""
        return self.holds(text, asked) and (bool(asked.usual) or normal(text) not in asked.closed)

    def expected(self, asked: Asked) -> bool:
        """Whether the gold answer is of this sort."""
        return any((self.in_gold or self.holds)(text, asked) for text in asked.gold)


def _alone(holds: Callable[[str], bool]) -> Callable[[str, Asked], bool]:
    return lambda text, asked: holds(text)


def _is_number(text: str, asked: Asked) -> bool:
    around = " ".join(input_text for input_text in asked.inputs if len(input_text) < 300)
    return sorts.is_number(text, around) and not sorts.is_date(text)


def _other_language(text: str, asked: Asked) -> bool:
    language = language_of(text)
    if not language:
        return False
    of_gold = {language_of(gold) for gold in asked.gold} - {""}
    expected = of_gold or {language_of(input_text) for input_text in asked.inputs} - {""}
    return bool(expected) and language not in expected


def _is_long(text: str, asked: Asked) -> bool:
    most = max((len(gold.split()) for gold in asked.gold), default=0)
    return bool(asked.gold) and len(text.split()) >= max(_LENGTH * most, most + _WORDS)


def _is_short(text: str, asked: Asked) -> bool:
    least = min((len(gold.split()) for gold in asked.gold), default=0)
    return 0 < _LENGTH * len(text.split()) <= least and least >= _WORDS


def _echoes(text: str, asked: Asked) -> bool:
    bare = normal(text)
    inputs = [normal(input_text) for input_text in asked.inputs]
    size = len(bare.split())
    asks = text.rstrip().endswith("?") and size <= _QUESTION
    return asks or any(
        len(input_text.split()) >= 4 and size <= 1.5 * len(input_text.split()) and input_text in bare
        for input_text in inputs
    )


def _repeats_prompt(text: str, asked: Asked) -> bool:
    lines = text.casefold().splitlines()
    labelled = any(line.lstrip("*# ").startswith(label) for line in lines for label in asked.labels)
    return labelled or bool(asked.prompts & shingles(text))


def _repeats_demo(text: str, asked: Asked) -> bool:
    bare = normal(text)
    return bare in asked.demos or any(len(demo.split()) >= 3 and demo in bare for demo in asked.demos)


def is_usual(text: str, asked: Asked) -> bool:
    return bool(asked.usual) and normal(text) == asked.usual


def _no_number(text: str, asked: Asked) -> bool:
    return bool(text.strip()) and all(map(sorts.is_number, asked.gold)) and not sorts.has_number(text)


def _no_yes_no(text: str, asked: Asked) -> bool:
    return bool(text.strip()) and all(map(sorts.is_yes_no, asked.gold)) and not sorts.is_yes_no(text)


WITHOUT_GOLD = (  # whatever the gold answer is, or where there is none
    Sort("nothing, or a placeholder", _alone(sorts.is_nothing)),
    Sort("a refusal", _alone(sorts.is_refusal)),
    Sort("an error message", _alone(sorts.is_error)),
    Sort("text that repeats itself", _alone(sorts.is_loop)),
)
SORTS = (  # of two sorts that hold for the same answers the first is reported
    *WITHOUT_GOLD,
    Sort("JSON", _alone(sorts.is_json)),
    Sort("code", _alone(sorts.is_code)),
    Sort("markup", _alone(sorts.is_markup)),
    Sort("its reasoning", _alone(sorts.is_reasoning)),
    Sort("the question again", _echoes),
    Sort("words of the prompt", _repeats_prompt),
    Sort("a number", _is_number, _alone(sorts.has_number), "has no number"),
    Sort("a date", _alone(sorts.is_date), _alone(sorts.has_date), "has no date"),
    Sort("yes or no", _alone(sorts.is_yes_no)),
    Sort("text of another language", _other_language),
    Sort("a link", _alone(sorts.is_link)),
    Sort("the letter of an option", _alone(sorts.is_letter)),
    Sort("a list of several answers", _alone(sorts.is_several), lambda text, asked: len(asked.gold) > 1),
    Sort("a guess", _alone(sorts.is_guess)),
    Sort("a preamble", _alone(sorts.is_preamble)),
    Sort("capitals", _alone(sorts.is_capitals)),
    Sort("a text much longer than the right one", _is_long),
    Sort("a text much shorter than the right one", _is_short),
    Sort("the answer of a demonstration", _repeats_demo),
    Sort("something that is no number, as the right one is", _no_number),
    Sort("something that is neither yes nor no, as the right one is", _no_yes_no),
)
