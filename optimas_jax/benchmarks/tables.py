"""Examples from what holds rows: lists of dicts; JSON, JSONL, CSV and Parquet files; pandas and Hugging Face data."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks.data import DataError, check_ids, read_rows
from optimas_jax.core.types import Example, digest, freeze
from optimas_jax.programs.plain import PlainError, to_plain

SHARES = (0.5, 0.15, 0.15, 0.2)  # of train, val, confirm, test
_SPLITS = ("train", "val", "confirm", "test")
_FEWEST = {"train": 8, "val": 5, "confirm": 5, "test": 5}  # examples, below which a split tells nothing


def read_table(data: Any) -> list[dict[str, Any]]:
    """Rows of a table.

    Args:
      data: dicts; the path of a ``.json``, ``.jsonl``, ``.csv`` or ``.parquet`` file; or anything with rows that pandas
        or ``datasets`` made.

    Raises:
      DataError: for another file or type, no rows, rows that are no objects or lack columns, or values that cannot be
        recorded.
    """
    where = str(data) if isinstance(data, str | Path) else "the data"
    rows: Iterable[Any]
    if isinstance(data, str | Path):
        rows = _read_file(Path(data))
    elif hasattr(data, "to_dict") and hasattr(data, "columns"):  # pandas
        rows = data.to_dict(orient="records")
    elif isinstance(data, Iterable) and not isinstance(data, Mapping):  # a list, or a data set of ``datasets``
        rows = data
    else:
        raise DataError(f"the data is of type {type(data).__name__}, expected rows or the path of a file")
    read = [_checked(row, f"{where}, row {number}") for number, row in enumerate(rows)]
    if not read:
        raise DataError(f"{where} holds no rows")
    for number, row in enumerate(read):
        if missing := [column for column in read[0] if column not in row]:
            raise DataError(f"{where}, row {number} lacks {', '.join(missing)}, which the first row has")
    return read


def _read_file(path: Path) -> list[Any]:
    if path.suffix in (".json", ".jsonl"):
        return read_rows(path, lambda item, where: item)
    if not path.is_file():
        raise DataError(f"no file {str(path)!r}")
    if path.suffix == ".csv":
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:  # with or without a byte order mark
                rows = list(csv.DictReader(file, strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} is no CSV file in UTF-8 ({error})") from error
        if odd := [number for number, row in enumerate(rows) if None in row or None in row.values()]:
            raise DataError(f"{path}, row {odd[0]} has more or fewer values than the header has columns")
        return rows
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    raise DataError(f"{path}: expected a .json, .jsonl, .csv or .parquet file")


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: expected an object, got {type(row).__name__}")
    try:
        return {str(column): _value(value, f"{where}, {column}") for column, value in row.items()}
    except PlainError as error:
        raise DataError(str(error)) from error


def _value(value: Any, where: str) -> Any:
    """A value as plain data; pandas writes NaN for a missing one."""
    return None if isinstance(value, float) and math.isnan(value) else to_plain(value, where)


def examples_of(rows: Sequence[Mapping[str, Any]], inputs: Sequence[str]) -> tuple[list[Example], int]:
    """Rows as examples, without a split; of rows with equal inputs the first is used.

    Args:
      inputs: columns that the program reads; the others are gold. A column ``id`` names examples, ``kind`` is their
        subset; both may be read, too.

    Returns:
      The examples, and how many rows were left out.

    Raises:
      DataError: an id stands for two examples.
    """
    examples: dict[str, Example] = {}
    for number, row in enumerate(rows):
        fields = freeze({column: row[column] for column in inputs})
        gold = freeze({column: value for column, value in row.items() if column not in (*inputs, "id")})
        name = str(row["id"]) if row.get("id") is not None else f"row-{number}"
        examples.setdefault(digest(fields), Example(name, fields, gold, "", str(row.get("kind") or "")))
    check_ids([*examples.values()])
    return list(examples.values()), len(rows) - len(examples)


def sizes_of(total: int, shares: Sequence[float] = SHARES) -> dict[str, int]:
    """Number of examples by split: train, val, confirm, test.

    Raises:
      DataError: the shares are no shares, or a split gets too few examples.
    """
    if len(shares) != len(_SPLITS) or any(share < 0 for share in shares) or not math.isclose(sum(shares), 1):
        raise DataError(f"split is {tuple(shares)}: expected four shares (train, val, confirm, test) with the sum 1")
    sizes = {split: int(total * share) for split, share in zip(_SPLITS, shares, strict=True)}
    sizes["train"] += total - sum(sizes.values())
    few = [f"{split} {sizes[split]} of {fewest}" for split, fewest in _FEWEST.items() if sizes[split] < fewest]
    if few:
        raise DataError(
            f"{total} different rows are too few to divide them by {tuple(shares)}: {', '.join(few)} at least. Give "
            "more rows, or other shares (split=)"
        )
    return sizes
