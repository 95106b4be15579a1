"""Data of the benchmarks: sources of rows, parsing and validation of rows, division into splits.

Rows come from one named source, and never silently from another: from the file at ``path``, or without a path from the
benchmark's source. Every error names the file, the line and the field.
"""

from __future__ import annotations

import collections
import dataclasses
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar

from optimas_jax.core.schema import NonNegativeInt
from optimas_jax.core.text.json_text import JsonError, parse_json, shown
from optimas_jax.core.types import Example, digest

SPLITS = ("train", "val", "test")
Row = TypeVar("Row")


class DataError(ValueError):
    """Rows that cannot be used; the message names the file, the line and the field."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from.

    Attributes:
      source: one of the benchmark's ``SOURCES``, used if ``path`` is empty; "" for a benchmark with one source.
      path: file of rows: JSON (one array) or JSONL.
      train, val, test: number of examples in this split.
      confirm: number of examples for the confirmation, the one test at the end that decides whether the result is kept;
        0 for no confirmation.
      reserve: number of confirmation examples that this run leaves unused. A later search that starts from its result
        (``config.optimize.start``) is confirmed on them.
      splits: ``dealt`` divides all rows by one seeded shuffle; ``official`` takes ``test`` from the official test set
        and the other splits from all other rows.
      max_chars: longest text in a row (a title, an abstract, facts about a candidate), in characters. Longer texts are
        cut (``shorten``), so that small models can read them; 0 for no limit.
      max_items: longest list in a row (products of a session), in items. Of a longer list the end is used; 0 for no
        limit.
      mix: share of each kind of generated example, by name.
      seed: seed of the division into splits. It is separate from the run's seed, so that runs can be compared on the
        same data.
    """

    source: str = ""
    path: str = ""
    train: NonNegativeInt = 64
    val: NonNegativeInt = 32
    test: NonNegativeInt = 100
    confirm: NonNegativeInt = 0
    reserve: NonNegativeInt = 0
    splits: Literal["dealt", "official"] = "dealt"
    max_chars: NonNegativeInt = 0
    max_items: NonNegativeInt = 0
    mix: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seed: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples by split."""
        return {"train": self.train, "val": self.val, "test": self.test, "confirm": self.confirm}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The data of a benchmark.

    Attributes:
      splits: examples of ``train``, ``val`` and ``test``, and of ``confirm`` where there is one.
      chance: by metric, the score of answers that do not depend on the input; 0 for metrics that are not named.
      origin: description of the source.
      corpus: documents that the system searches, if it searches any.
    """

    splits: Mapping[str, tuple[Example, ...]]
    chance: Mapping[str, float] = dataclasses.field(default_factory=dict)
    origin: str = ""
    corpus: tuple[Any, ...] = ()

    def check(self) -> Dataset:
        """Returns the dataset itself if a run can use it.

        Raises:
          DataError: if a split is missing or empty, or an id stands for two examples.
        """
        empty = [split for split in SPLITS if not self.splits.get(split)]
        if empty:
            raise DataError(
                f"no examples to {', '.join(empty)}: train, val and test all need some; there are "
                f"{ {split: len(examples) for split, examples in self.splits.items()} }"
            )
        check_ids([example for examples in self.splits.values() for example in examples])
        return self


def uniform_chance(sizes: Sequence[int]) -> float:
    """Expected accuracy when one of ``sizes[i]`` options is drawn uniformly for example i."""
    return sum(1 / size for size in sizes) / len(sizes)


def most_frequent(splits: Mapping[str, Sequence[Example]], field: str) -> Any:
    """The most frequent gold answer of all examples."""
    answers = collections.Counter(example.gold[field] for examples in splits.values() for example in examples)
    return answers.most_common(1)[0][0]


def deal(examples: Sequence[Example], config: DataConfig) -> dict[str, tuple[Example, ...]]:
    """Divides examples among the splits by a seeded shuffle that does not depend on their order.

    Of examples with equal inputs the last is used (``repetitions`` counts the others), so that no example is in two
    splits. With ``splits="official"`` the examples' ``split`` field tells whether they are in the official test set.

    Raises:
      DataError: for fewer examples than asked for, or an id of two examples.
    """
    unique = list({digest(example.inputs): example for example in examples}.values())
    check_ids(unique)
    unique.sort(key=lambda example: example.id)
    random.Random(f"{config.seed}/rows").shuffle(unique)
    sizes = config.sizes
    if config.splits == "dealt":
        return _cut(unique, sizes, "different examples")
    test = [example for example in unique if example.split == "test"]
    rest = [example for example in unique if example.split not in ("", "test")]
    tested = _cut(test, {"test": sizes.pop("test")}, "different examples of the official test set")
    return {**_cut(rest, sizes, "different examples outside the official test set"), **tested}


def repetitions(examples: Sequence[Example]) -> str:
    """Text about the rows that ``deal`` leaves out, for ``Dataset.origin``: ", without 3 rows whose inputs other rows
    have, 2 of them with another answer"; "" if there are none."""
    keys = [digest(example.inputs) for example in examples]
    used = dict(zip(keys, examples, strict=True))
    left_out = len(examples) - len(used)
    if not left_out:
        return ""
    others = sum(example.gold != used[key].gold for key, example in zip(keys, examples, strict=True))
    answers = f", {others} of them with another answer" if others else ""
    return f", without {left_out} rows whose inputs other rows have{answers}"


def official_split(row: Mapping[str, Any], where: str) -> str:
    """``test`` or, for any other text, ``train``, by the row's field ``split``; "" without that field.

    Raises:
      DataError: it is no text.
    """
    split = text_or_none(row, "split", where)
    return "test" if split == "test" else "train" if split else ""


def text_or_none(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field that may be absent, null or empty: "" then; raises ``DataError`` if it is no text."""
    value = row.get(name)
    if not isinstance(value, str | None):
        raise DataError(f"{where}: field {name} is {shown(value)}, expected a text")
    return value or ""


def check_ids(examples: Sequence[Example]) -> None:
    """Raises ``DataError`` if an id stands for two examples."""
    repeated = [name for name, count in collections.Counter(example.id for example in examples).items() if count > 1]
    if repeated:
        raise DataError(f"{len(repeated)} ids stand for several examples, the first is {shown(repeated[0])}")


def _cut(examples: Sequence[Example], sizes: Mapping[str, int], what: str) -> dict[str, tuple[Example, ...]]:
    needed = sum(sizes.values())
    if len(examples) < needed:
        names = [f"config.data.{split}" for split in sizes]
        raise DataError(
            f"{len(examples)} {what}, {needed} asked for ({dict(sizes)}): lower {', '.join(names)}, or set "
            "config.data.splits (dealt or official)"
        )
    splits, start = {}, 0
    for split, size in sizes.items():
        if not size and split not in SPLITS:
            continue
        splits[split] = tuple(dataclasses.replace(example, split=split) for example in examples[start : start + size])
        start += size
    return splits


def read_rows(path: Path, parse: Callable[[Any, str], Row]) -> list[Row]:
    """Rows of a ``.jsonl`` file, or of a ``.json`` file with one array.

    Args:
      parse: ``(item, where) -> row``; raises ``DataError`` that begins with ``where``.

    Raises:
      DataError: for a missing or empty file, text that is not UTF-8, or a line that is no JSON (``json_text``).
    """
    text = read_text(path, ": set --config.data.path to a file of rows (JSONL, or JSON: one array)")
    if path.suffix == ".json":
        try:
            items = parse_json(text)
        except JsonError as error:
            line = "" if error.line is None else f", line {error.line}"
            raise DataError(f"{path}{line}: {error.reason}") from error
        if not isinstance(items, list):
            raise DataError(f"{path} holds {type(items).__name__}, expected an array of rows")
        rows = [parse(item, f"{path}, item {index}") for index, item in enumerate(items)]
    else:
        rows = list(_parse_lines(path, text, parse))
    if not rows:
        raise DataError(f"{path} holds no rows")
    return rows


def read_text(path: Path, way_out: str = "") -> str:
    """The text of a file, with or without a byte order mark; raises ``DataError`` if there is none, or not in UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error})") from error
    except (OSError, ValueError) as error:  # no such file, a folder, a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"no file {str(path)!r} to read ({reason}){way_out}") from error


def _parse_lines(path: Path, text: str, parse: Callable[[Any, str], Row]) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):  # only line feeds end a row
        if line.strip():
            try:
                item = parse_json(line)
            except JsonError as error:
                column = "" if error.column is None else f" at column {error.column}"
                raise DataError(f"{path}, line {number}: {error.reason}{column}") from error
            yield parse(item, f"{path}, line {number}")


def hub_rows(name: str, subset: str | None, split: str, parse: Callable[[Any, str], Row], **options: Any) -> list[Row]:
    """Rows of one split of a data set on the Hugging Face hub, or of files on the web.

    Args:
      name, subset, split, options: of ``datasets.load_dataset``.
      parse: as in ``read_rows``.

    Raises:
      DataError: if they cannot be fetched; the message tells how to use a file instead.
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
    """The text in one line; if it is longer than ``max_chars`` (0: no limit), it is cut at the last space within the
    limit, and three dots are appended."""
    line = " ".join(text.split())
    if not max_chars or len(line) <= max_chars:
        return line
    head, _, rest = line[: max_chars + 1].rpartition(" ")
    return f"{head or rest[:max_chars]} ..."


def numbered(texts: Sequence[str], first: int, max_chars: int) -> str:
    """Shortened texts, one per line, each after its number."""
    return "\n".join(f"{number}. {shorten(text, max_chars)}" for number, text in enumerate(texts, start=first))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A type of fields: its description in error messages, and its check."""

    description: str
    holds: Callable[[Any], bool]


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(of(item) for item in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number; booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    """Whether a value is a number, and ``float`` can hold it."""
    return is_number(value) and abs(value) <= sys.float_info.max  # false for NaN


ANY = Kind("anything", lambda value: True)
TEXT = Kind("a text", _is_text)
TEXTS = Kind("a list of texts", lambda value: _is_list(value, _is_text))
INTEGER = Kind("a whole number", _is_integer)
INTEGERS = Kind("a list of whole numbers", lambda value: _is_list(value, _is_integer))
NUMBERS = Kind("a list of finite numbers", lambda value: _is_list(value, _is_finite))


def fields_of(item: Any, where: str, kinds: Mapping[str, Kind]) -> Mapping[str, Any]:
    """Returns the row itself if it is an object with all fields of ``kinds``; other fields are ignored.

    Raises:
      DataError: names every field that is absent (or null, or an empty text), or the first field of another kind.
    """
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: expected an object, got {type(item).__name__}")
    missing = [name for name in kinds if item.get(name) is None or item[name] == ""]
    if missing:
        raise DataError(f"{where}: lacks {', '.join(missing)} (a row needs {', '.join(kinds)})")
    for name, kind in kinds.items():
        if not kind.holds(item[name]):
            raise DataError(f"{where}: field {name} is {shown(item[name])}, expected {kind.description}")
    return item
