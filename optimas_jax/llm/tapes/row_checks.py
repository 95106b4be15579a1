"""Checksums of the rows of a tape: SQLite notices a damaged file structure, but not a changed text."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Sequence
from typing import Any

_TEXTS = ("key", "kind", "request", "result", "most")
TABLES = {
    "effects": ("key", "kind", "request", "result"),
    "scores": ("key", "score"),
    "attempts": ("id", "key", "most"),
}  # columns that the last column, ``crc``, is the checksum of


def with_check(row: Sequence[Any]) -> tuple[Any, ...]:
    """A row with its checksum behind its fields."""
    return (*row, _check(*row))


def add_checks(connection: sqlite3.Connection) -> None:
    """Adds checksums to the tables of an earlier version, of the rows as they are now."""
    for table in TABLES:
        if "crc" not in _names(connection, table):
            connection.execute(f"ALTER TABLE {table} ADD COLUMN crc INTEGER")
            _know_check(connection)
            connection.execute(f"UPDATE {table} SET crc = {_check_of(table)}")  # noqa: S608 (our names)


def find_damage(connection: sqlite3.Connection) -> list[str]:
    """Descriptions of the damage of a tape: rows that are not as they were written, by their keys.

    Raises:
      sqlite3.Error: the file cannot be read.
    """
    problems = [text for (text,) in connection.execute("PRAGMA integrity_check(3)") if text != "ok"]
    if problems:
        return problems
    _know_check(connection)
    for table in TABLES:
        names = _names(connection, table)
        wrong = [f"crc <> {_check_of(table)}"] if "crc" in names else []  # older tapes have no checksums
        wrong += ["typeof(result) <> 'text' OR NOT json_valid(result)"] if table == "effects" else []
        wrong += ["typeof(score) <> 'real'"] if table == "scores" else []
        if names and wrong:
            query = f"SELECT CAST(key AS BLOB) FROM {table} WHERE {' OR '.join(wrong)}"  # noqa: S608 (our names)
            keys = [bytes(key or b"").decode(errors="backslashreplace") for (key,) in connection.execute(query)]
            problems += [f"{table}, key {key}" for key in keys]
    return problems


def _check_of(table: str) -> str:
    """The checksum of a row, in SQL; texts as bytes, which need not be UTF-8."""
    return f"row_check({', '.join(f'CAST({name} AS BLOB)' if name in _TEXTS else name for name in TABLES[table])})"


def _know_check(connection: sqlite3.Connection) -> None:
    connection.create_function("row_check", -1, _check, deterministic=True)


def _check(*fields: Any) -> int:
    return zlib.crc32(b"\0".join(map(_bytes, fields)))


def _bytes(field: Any) -> bytes:
    return field if isinstance(field, bytes) else str(field).encode(errors="surrogatepass")


def _names(connection: sqlite3.Connection, table: str) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))]
