"""What the benchmarks' data have in common: where rows come from, how they are read, and how they are dealt to splits.

Rows come from one named source, never silently from another: from the file that a path names, or without a path from
the benchmark's own source. Every error names the file, the line and the field.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar

from optimas_jax.core.ranges import NonNegativeInt
from optimas_jax.core.types import Example, digest

SPLITS = ("train", "val", "test")
Row = TypeVar("Row")


class DataError(ValueError):
    """Rows that cannot be used; says where and why."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from.

    Attributes:
      source: one of the benchmark's ``SOURCES``, read without a ``path``; empty for a benchmark that has one only.
      path: file of rows, JSON (one array) or JSONL.
      train, val, test: number of examples per split.
      splits: ``dealt`` puts all rows in one seeded shuffle; ``official`` deals the rows of the official test set to
        ``test`` and all others to ``train`` and ``val``.
      max_chars: longest text of a row that a system is shown whole (a title, an abstract, what is known of a
        candidate); longer ones are cut (``shorten``), so that small models can read them; 0 for no limit.
      max_items: longest list of a row that is shown whole (products of a session); of longer ones the end; 0 for no
        limit.
      mix: shares of the kinds of generated examples.
      seed: deals examples to splits; apart from the run's seed, so that runs compare on the same data.
    """

    source: str = ""
    path: str = ""
    train: NonNegativeInt = 64
    val: NonNegativeInt = 32
    test: NonNegativeInt = 100
    splits: Literal["dealt", "official"] = "dealt"
    max_chars: NonNegativeInt = 0
    max_items: NonNegativeInt = 0
    mix: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seed: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples by split."""
        return {"train": self.train, "val": self.val, "test": self.test}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What a benchmark reads.

    Attributes:
      splits: examples of ``train``, ``val`` and ``test``.
      chance: by metric, what answers that know nothing of the input score; 0 for those it does not name.
      origin: where the examples are from, in words.
      corpus: what the system searches, if it searches anything.
    """

    splits: Mapping[str, tuple[Example, ...]]
    chance: Mapping[str, float] = dataclasses.field(default_factory=dict)
    origin: str = ""
    corpus: tuple[Any, ...] = ()

    def check(self) -> Dataset:
        """Itself, if a run can use it.

        Raises:
          DataError: if a split is missing or empty, or an id stands for two examples.
        """
        empty = [split for split in SPLITS if not self.splits.get(split)]
        if empty:
            raise DataError(
                f"no examples to {', '.join(empty)}: train, val and test all need some; there are "
                f"{ {split: len(examples) for split, examples in self.splits.items()} }"
            )
        _check_ids([example for split in SPLITS for example in self.splits[split]])
        return self


def uniform_chance(sizes: Sequence[int]) -> float:
    """Share of right answers when one of ``sizes[i]`` options is drawn for example i."""
    return sum(1 / size for size in sizes) / len(sizes)


def most_frequent(splits: Mapping[str, Sequence[Example]], field: str) -> Any:
    """The most frequent gold answer of all examples."""
    answers = collections.Counter(example.gold[field] for examples in splits.values() for example in examples)
    return answers.most_common(1)[0][0]


def deal(examples: Sequence[Example], config: DataConfig) -> dict[str, tuple[Example, ...]]:
    """Deals examples to the splits by a seeded shuffle that does not depend on their order.

    Equal inputs count once, so that no split has an example of another. With ``splits="official"`` the examples' own
    ``split`` says whether they are of the official test set.

    Raises:
      DataError: for fewer examples than asked for, or an id that stands for two.
    """
    unique = list({digest(example.inputs): example for example in examples}.values())
    _check_ids(unique)
    unique.sort(key=lambda example: example.id)
    random.Random(f"{config.seed}/rows").shuffle(unique)
    sizes = config.sizes
    if config.splits == "dealt":
        return _cut(unique, sizes, "different examples")
    test = [example for example in unique if example.split == "test"]
    rest = [example for example in unique if example.split not in ("", "test")]
    tested = _cut(test, {"test": sizes.pop("test")}, "different examples of the official test set")
    return {**_cut(rest, sizes, "different examples outside the official test set"), **tested}


def official_split(row: Mapping[str, Any]) -> str:
    """The split of a row with a field ``split``: ``test``, or ``train`` for any other; "" without one."""
    return "test" if row.get("split") == "test" else "train" if row.get("split") else ""


def _check_ids(examples: Sequence[Example]) -> None:
    repeated = [name for name, count in collections.Counter(example.id for example in examples).items() if count > 1]
    if repeated:
        raise DataError(f"{len(repeated)} ids stand for several examples, the first is {repeated[0]!r}")


def _cut(examples: Sequence[Example], sizes: Mapping[str, int], what: str) -> dict[str, tuple[Example, ...]]:
    asked = sum(sizes.values())
    if len(examples) < asked:
        names = [f"config.data.{split}" for split in sizes]
        raise DataError(
            f"{len(examples)} {what}, {asked} asked for ({dict(sizes)}): lower {', '.join(names)}, or set "
            "config.data.splits (dealt or official)"
        )
    splits, start = {}, 0
    for split, size in sizes.items():
        splits[split] = tuple(dataclasses.replace(example, split=split) for example in examples[start : start + size])
        start += size
    return splits


def read_rows(path: Path, parse: Callable[[Any, str], Row]) -> list[Row]:
    """Rows of a ``.jsonl`` file, or of a ``.json`` file with one array.

    Args:
      parse: ``(item, where) -> row``; raises ``DataError`` that begins with ``where``.

    Raises:
      DataError: for a missing or empty file, text that is not UTF-8, or a line that is not JSON.
    """
    if not path.is_file():
        raise DataError(f"no file {str(path)!r}: set --config.data.path to a file of rows (JSONL, or JSON: one array)")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error})") from error
    if path.suffix == ".json":
        try:
            items = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
        if not isinstance(items, list):
            raise DataError(f"{path} holds {type(items).__name__}, expected an array of rows")
        rows = [parse(item, f"{path}, item {index}") for index, item in enumerate(items)]
    else:
        rows = list(_parse_lines(path, text, parse))
    if not rows:
        raise DataError(f"{path} holds no rows")
    return rows


def _parse_lines(path: Path, text: str, parse: Callable[[Any, str], Row]) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):  # only line feeds end a row
        if line.strip():
            try:
                item = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
            yield parse(item, f"{path}, line {number}")


def hub_rows(name: str, subset: str | None, split: str, parse: Callable[[Any, str], Row], **options: Any) -> list[Row]:
    """Rows of one split of a data set on the Hugging Face hub, or of files on the web.

    Args:
      name, subset, split, options: of ``datasets.load_dataset``.
      parse: as in ``read_rows``.

    Raises:
      DataError: if they do not arrive; says how to use a file instead.
    """
    import datasets

    source = options.get("data_files", name)
    try:
        data = datasets.load_dataset(name, subset, split=split, **options)
    except Exception as error:  # the hub client raises many kinds; all mean that the rows did not arrive
        raise DataError(
            f"could not get {source} from the hub ({type(error).__name__}: {error}). For rows of your own use "
            "--config.data.path=FILE"
        ) from error
    return [parse(item, f"{source}, {split}, row {index}") for index, item in enumerate(data)]


def shorten(text: str, max_chars: int) -> str:
    """The text in one line; if that is longer than ``max_chars`` (0: no limit), its beginning up to the last space
    within the limit, and three dots."""
    line = " ".join(text.split())
    if not max_chars or len(line) <= max_chars:
        return line
    head, _, rest = line[: max_chars + 1].rpartition(" ")
    return f"{head or rest[:max_chars]} ..."


def numbered(texts: Sequence[str], first: int, max_chars: int) -> str:
    """One shortened text a line, each behind its number."""
    return "\n".join(f"{number}. {shorten(text, max_chars)}" for number, text in enumerate(texts, start=first))


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a field may hold, with its words for errors."""

    words: str
    holds: Callable[[Any], bool]


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(of(item) for item in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is one; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


ANY = Kind("anything", lambda value: True)
TEXT = Kind("a text", _is_text)
TEXTS = Kind("a list of texts", lambda value: _is_list(value, _is_text))
INTEGER = Kind("a whole number", _is_integer)
INTEGERS = Kind("a list of whole numbers", lambda value: _is_list(value, _is_integer))
NUMBERS = Kind("a list of numbers", lambda value: _is_list(value, is_number))


def fields_of(item: Any, where: str, kinds: Mapping[str, Kind]) -> Mapping[str, Any]:
    """The row itself, if it is an object with all fields of ``kinds``; other fields are ignored.

    Raises:
      DataError: names every field that is absent (or null, or an empty text), or the first of another kind.
    """
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: expected an object, got {type(item).__name__}")
    missing = [name for name in kinds if item.get(name) is None or item[name] == ""]
    if missing:
        raise DataError(f"{where}: lacks {', '.join(missing)} (a row needs {', '.join(kinds)})")
    for name, kind in kinds.items():
        if not kind.holds(item[name]):
            raise DataError(f"{where}: field {name} is {_shown(item[name])}, expected {kind.words}")
    return item


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
