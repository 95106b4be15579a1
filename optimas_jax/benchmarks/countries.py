"""Embedded data like HotpotQA: articles about countries and questions on them, from ``countryinfo``.

Every country has an article with five facts, and its capital has another article. Questions are of HotpotQA's two types
and a simpler one:

    one-hop      one fact of a named country                     What is the currency of Chad?
    bridge       a fact of the country that another fact names   What is the area of the country whose capital is Lima?
    comparison   two countries against each other                Which country has the larger area, Chad or Peru?

Countries are divided among the splits, so that no country occurs in questions of two splits; the articles of all splits
are in the corpus. Every question has exactly one answer.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence

import countryinfo

from optimas_jax.core.types import Example

KINDS = ("one-hop", "bridge", "comparison")
_SPLIT_SHARES = {"train": 0.35, "val": 0.16, "test": 0.35, "confirm": 0.14}
_COMPARABLE = 1.5  # smallest factor between compared numbers


@dataclasses.dataclass(frozen=True)
class Article:
    """One entry of a corpus that a retriever searches."""

    title: str
    text: str


@dataclasses.dataclass(frozen=True)
class Country:
    """Facts about a country. Area in square kilometres."""

    name: str
    capital: str
    region: str
    currency: str
    calling_code: str
    population: int
    area: int


def load_countries() -> tuple[Country, ...]:
    """Countries with all facts, exactly one currency and calling code, and a unique capital whose name differs from the
    country's."""
    rows = [country.info() for country in countryinfo.all_countries()]
    countries = []
    for row in sorted(rows, key=lambda row: row.get("name", "")):
        name, capital, region = (str(row.get(key) or "") for key in ("name", "capital", "subregion"))
        currencies, codes = row.get("currencies") or (), row.get("callingCodes") or ()
        if not (name and capital and region) or len(currencies) != 1 or len(codes) != 1:
            continue
        if min(row.get("population") or 0, row.get("area") or 0) < 100 or name in capital or capital in name:
            continue
        facts = (name, capital, region, currencies[0], codes[0], int(row["population"]), int(row["area"]))
        countries.append(Country(*facts))
    unique = {field: _unique([getattr(country, field) for country in countries]) for field in ("name", "capital")}
    return tuple(c for c in countries if all(getattr(c, field) in unique[field] for field in unique))


def _unique(values: Sequence[str]) -> set[str]:
    return {value for value in values if values.count(value) == 1}


def articles(countries: Sequence[Country]) -> tuple[Article, ...]:
    """The corpus: one article per country and one per capital."""
    corpus = []
    for c in countries:
        corpus.append(
            Article(
                c.name,
                f"{c.name} is a country in {c.region}. The capital of {c.name} is {c.capital}. The currency of "
                f"{c.name} is {c.currency}. The calling code of {c.name} is {c.calling_code}. The population of "
                f"{c.name} is {_rounded(c.population)}. The area of {c.name} is {_rounded(c.area)} square kilometres.",
            )
        )
        corpus.append(Article(c.capital, f"{c.capital} is the seat of the government of {c.name}."))
    return tuple(corpus)


def _rounded(number: int) -> str:
    """A number with three digits, readable for small models: 66078000 -> 66.1 million."""
    for size, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return str(number)


_FACTS: Mapping[str, Callable[[Country], str]] = {
    "capital": lambda c: c.capital,
    "currency": lambda c: c.currency,
    "calling code": lambda c: c.calling_code,
    "population": lambda c: _rounded(c.population),
    "area": lambda c: f"{_rounded(c.area)} square kilometres",
}
_ONE_HOP = {f"What is the {fact} of {{name}}?": answer for fact, answer in _FACTS.items()}
_BRIDGE = {
    f"What is the {fact} of the country whose capital is {{capital}}?": answer
    for fact, answer in _FACTS.items()
    if fact != "capital"
}
_COMPARISON: Mapping[str, Callable[[Country], int]] = {
    "Which country has the larger population, {name} or {other}?": lambda c: c.population,
    "Which country has the larger area, {name} or {other}?": lambda c: c.area,
}


def questions(
    countries: Sequence[Country], split: str, size: int, mix: Mapping[str, float], seed: int
) -> tuple[Example, ...]:
    """Seeded questions of one split, kinds in the shares of ``mix``, no question twice.

    Raises:
      ValueError: for an unknown split or kind, or if the split's countries do not yield that many questions.
    """
    shares = tuple(mix.values())
    if split not in _SPLIT_SHARES or set(mix) - set(KINDS) or min(shares, default=0.0) < 0 or not sum(shares):
        raise ValueError(
            f"split must be one of {', '.join(_SPLIT_SHARES)} and mix have keys {', '.join(KINDS)} with shares; got "
            f"{split!r} and {dict(mix)}"
        )
    rng = random.Random(f"{seed}/{split}")
    members = _deal(countries, split, seed)
    pools = {
        "one-hop": _facts(members, _ONE_HOP),
        "bridge": _facts(members, _BRIDGE),
        "comparison": _comparisons(members, rng),
    }
    counts = _counts(size, mix)
    examples: list[Example] = []
    for kind in ("bridge", "comparison", "one-hop"):
        examples += _take(kind, pools[kind], counts[kind], split, rng)
    rng.shuffle(examples)
    return tuple(dataclasses.replace(example, id=f"{split}-{i:04d}") for i, example in enumerate(examples))


def _counts(size: int, mix: Mapping[str, float]) -> dict[str, int]:
    """Number of questions of each kind, with sum ``size``: rounded down, and up for the largest remainders."""
    exact = {kind: size * mix.get(kind, 0.0) / sum(mix.values()) for kind in KINDS}
    counts = {kind: int(number) for kind, number in exact.items()}
    by_remainder = sorted(KINDS, key=lambda kind: counts[kind] - exact[kind])
    for kind in by_remainder[: size - sum(counts.values())]:
        counts[kind] += 1
    return counts


def _deal(countries: Sequence[Country], split: str, seed: int) -> list[Country]:
    """The countries of one split: a seeded shuffle cut in fixed shares."""
    shuffled = list(countries)
    random.Random(f"{seed}/countries").shuffle(shuffled)
    start = 0.0
    for name, share in _SPLIT_SHARES.items():
        if name == split:
            return shuffled[round(start * len(shuffled)) : round((start + share) * len(shuffled))]
        start += share
    raise AssertionError(split)


def _facts(countries: Sequence[Country], templates: Mapping[str, Callable[[Country], str]]) -> list[tuple[str, str]]:
    return [(text.format(**dataclasses.asdict(c)), answer(c)) for c in countries for text, answer in templates.items()]


def _comparisons(countries: Sequence[Country], rng: random.Random) -> list[tuple[str, str]]:
    pairs = []
    for text, number in _COMPARISON.items():
        for i, first in enumerate(countries):
            for second in countries[i + 1 :]:
                low, high = sorted((first, second), key=number)
                if number(high) >= _COMPARABLE * number(low):
                    names = rng.sample((low.name, high.name), 2)
                    pairs.append((text.format(name=names[0], other=names[1]), high.name))
    return pairs


def _take(kind: str, pool: list[tuple[str, str]], count: int, split: str, rng: random.Random) -> list[Example]:
    if count > len(pool):
        raise ValueError(f"the {split} split has {len(pool)} {kind} questions, {count} were asked for")
    return [
        Example(id="", inputs={"question": question}, gold={"answer": answer}, split=split, kind=kind)
        for question, answer in rng.sample(pool, count)
    ]
