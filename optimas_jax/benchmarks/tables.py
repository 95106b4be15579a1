"""Makes examples of tables: lists of dicts; JSON, JSONL, CSV and Parquet files; pandas and Hugging Face data."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks.data import DataError, check_ids, read_rows, read_text
from optimas_jax.core.types import Example, digest, freeze
from optimas_jax.programs.plain import PlainError, to_plain

SHARES = (0.5, 0.15, 0.15, 0.2)  # of train, val, confirm, test
_SPLITS = ("train", "val", "confirm", "test")
_FEWEST = {"train": 8, "val": 5, "confirm": 5, "test": 5}  # fewest examples with which a split is meaningful


def read_table(data: Any) -> list[dict[str, Any]]:
    """Rows of a table.

    Args:
      data: dicts; the path of a ``.json``, ``.jsonl``, ``.csv`` or ``.parquet`` file; or a table of pandas, Arrow or
        ``datasets``.

    Raises:
      DataError: for another file or type, no rows, rows that are no objects or lack columns, or values that cannot be
        recorded.
    """
    if isinstance(data, str | Path):
        where, named = str(data), _read_file(Path(data))
    else:
        where, named = "the data", [(f"row {number}", row) for number, row in enumerate(_rows_of(data))]
    read = [_checked(row, f"{where}, {name}") for name, row in named]
    if not read:
        raise DataError(f"{where} holds no rows")
    for (name, _), row in zip(named, read, strict=True):
        if missing := [column for column in read[0] if column not in row]:
            raise DataError(f"{where}, {name} lacks {', '.join(missing)}, which the first row has")
    return read


def _rows_of(data: Any) -> Iterable[Any]:
    """The rows of data that are no file."""
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # pandas
        if not data.columns.is_unique:
            raise DataError(f"the data has a column twice: {', '.join(map(str, data.columns))}")
        named = any(name is not None for name in data.index.names)  # such as by ``set_index("id")``
        return (data.reset_index() if named else data).to_dict(orient="records")
    if hasattr(data, "to_pylist"):  # Arrow
        return data.to_pylist()
    if isinstance(data, Iterable) and not isinstance(data, Mapping | str):  # a list, or a data set of ``datasets``
        return data
    words = f"the data is of type {type(data).__name__}, expected rows or the path of a file"
    if isinstance(data, Mapping) and data:  # a data set with its splits, or columns
        keys = ", ".join(map(str, data))
        words += f"; it has the keys {keys}: give one split, such as data[{next(iter(data))!r}], or a list of dicts"
    raise DataError(words)


def _read_file(path: Path) -> list[tuple[str, Any]]:
    """The rows of a file, each with its place in it."""
    if not os.path.isfile(path):  # unlike ``Path.is_file``, it never raises
        raise DataError(f"no file {str(path)!r}" + " (it is a folder)" * os.path.isdir(path))
    match path.suffix.lower():
        case ".json" | ".jsonl":
            return read_rows(path, lambda item, where: (where.rpartition(", ")[2], item))
        case ".csv":
            return list(_read_csv(path))
        case ".parquet":
            import pyarrow
            import pyarrow.parquet

            try:
                return [(f"row {i}", row) for i, row in enumerate(pyarrow.parquet.read_table(path).to_pylist())]
            except (pyarrow.ArrowException, OSError, ValueError) as error:
                raise DataError(f"{path} is no Parquet file ({error})") from error
    raise DataError(f"{path}: expected a .json, .jsonl, .csv or .parquet file; others can be read with pandas")


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        columns = next(lines, [])
        if len(set(columns)) < len(columns) or (len(columns) == 1 and any(sign in columns[0] for sign in ";\t")):
            shown = f"{columns!r:.200}"
            raise DataError(f"{path} has the columns {shown}, expected different names, separated by commas")
        for values in lines:
            if len(values) not in (0, len(columns)):
                raise DataError(
                    f"{path}, line {lines.line_num} has {len(values)} values, expected {len(columns)}: "
                    f"{', '.join(columns):.200}"
                )
            if values:
                yield f"line {lines.line_num}", dict(zip(columns, values, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: no CSV ({error})") from error


def _checked(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: expected an object, got {type(row).__name__}")
    try:
        return {str(column): _value(value, f"{where}, {column}") for column, value in row.items()}
    except PlainError as error:
        raise DataError(f"{error}; convert the column") from error


def _value(value: Any, where: str) -> Any:
    """A value as plain data; pandas writes NaN for a missing one."""
    return None if isinstance(value, float) and math.isnan(value) else to_plain(value, where)


def examples_of(rows: Sequence[Mapping[str, Any]], inputs: Sequence[str]) -> tuple[list[Example], int]:
    """Rows as examples without a split. Of rows with equal inputs only the first is used.

    Args:
      inputs: columns that the program reads; the others are gold. A column ``id`` has the ids of examples, a column
        ``kind`` their subsets; the program may read both.

    Returns:
      The examples, and the number of rows that were left out.

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
      DataError: the shares are invalid, or a split gets too few examples.
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
