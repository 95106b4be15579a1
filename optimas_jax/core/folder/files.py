"""Reading and writing files of a run folder. Files are written whole or not at all, and read through their forms.

A line of a file of JSON lines that cannot be read is not lost, and neither are the lines after it: an event ``damaged``
with the text of the line replaces it, until a resumed run emits the event again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.text.json_text import check_form, parse_json
from optimas_jax.core.text.secrets import redact
from optimas_jax.core.types import StopRun, valid_text

DAMAGED = "damaged"  # field with the text of a line that could not be read


class FolderError(StopRun):
    """A run folder that cannot be used; the message has the reason and the way out."""


def write_json(path: Path, data: Any) -> None:
    """Writes JSON in one step: a reader sees the old file or the new one, never a part. A file with the same content is
    not written again."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Writes a text in the same way, without secrets of the environment; if it is ``durable``, it survives a power
    cut."""
    data = valid_text(redact(text)).encode()
    if path.is_file() and path.read_bytes() == data:
        return
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    partial.replace(path)


def json_line(row: Mapping[str, Any]) -> str:
    """A row of a file of JSON lines. What JSON does not know becomes text: numbers that are not finite, objects of a
    user's components."""
    return valid_text(redact(json.dumps(_for_json(row), ensure_ascii=False, allow_nan=False)))


def _for_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _for_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_for_json(item) for item in value]
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def read_file(path: Path) -> Any:
    """Data of a JSON file of a run folder, or None where there is none.

    Raises:
      FolderError: it cannot be read, or does not have the form of this file (``core.folder.forms``).
    """
    data = _read_bytes(path)
    if data is None:
        return None
    form = _form_of(path)
    try:
        value = parse_json(data)
        check_form(form.kind, value)
    except ValueError as error:
        raise FolderError(f"{path} is damaged ({error}): {form.way_out}") from error
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines; none if there is no file. A last line that is still being written is left out.

    Raises:
      FolderError: a line cannot be read, or does not have the form of this file.
    """
    rows, form = [], _form_of(path)
    for number, line in _whole_lines(_read_bytes(path) or b""):
        try:
            row = parse_json(line)
            if not isinstance(row, dict) or DAMAGED not in row:
                check_form(form.kind, row)
                rows.append(row)
        except ValueError as error:
            raise FolderError(f"{path}, line {number} is damaged ({error}): {form.way_out}") from error
    return rows


def mend_lines(path: Path) -> list[dict[str, Any]]:
    """Mends a file of JSON lines before a command adds to it, and returns its rows; none if there is no file.

    A last line that a killed process left half-written is removed from the file. Any other line that cannot be read is
    replaced by a line with its text (``DAMAGED``).

    Raises:
      OSError: the file cannot be read or written.
    """
    data = _read_bytes(path)
    if data is None:
        return []
    form = _form_of(path)
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for line in filter(None, data.split(b"\n")):  # only line feeds end a line: texts may hold other line separators
        try:
            row = parse_json(line)
            check_form(form.kind if not isinstance(row, dict) or DAMAGED not in row else Any, row)
        except ValueError:
            row = {DAMAGED: line.decode(errors="backslashreplace")}
        rows.append(row)
        lines.append(json_line(row) if DAMAGED in row else line.decode())
    if rows and DAMAGED in rows[-1] and not data.endswith(b"\n"):
        rows, lines = rows[:-1], lines[:-1]
    whole = "".join(f"{line}\n" for line in lines)
    if whole.encode() != data:
        write_text(path, whole)
    return rows


def replace_line(path: Path, index: int, line: str) -> None:
    """Replaces a line of a mended file."""
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[index] = line
    write_text(path, "\n".join(lines))


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Appends lines; on return they are on disk."""
    if lines:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that have an end and are not empty, with their numbers from 1."""
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        if line.strip():
            yield number, line


def _read_bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError as error:
        raise FolderError(f"{path} is a folder, and a file is expected: move it away") from error
    except (OSError, ValueError) as error:
        raise FolderError(f"cannot read {path} ({error})") from error


def _form_of(path: Path) -> Any:
    from optimas_jax.core.folder.forms import form_of  # its imports are slow, and most commands read no file

    return form_of(path.parent.name, path.name)
