"""Reads files of recorded calls; objects of different forms may be in one file."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optimas_jax.core.text.json_text import JsonError, parse_json, shown
from optimas_jax.traces.openai import is_openai, read_openai
from optimas_jax.traces.otel import Span, is_otel, read_otel, read_spans
from optimas_jax.traces.own import is_own, read_own
from optimas_jax.traces.records import Recorded, TraceError

_FORMS = (
    "messages of OpenAI (messages, request and response, calls), OpenTelemetry spans (attributes, resourceSpans), rows "
    "of evaluations/*.jsonl (before, after), or calls (component, inputs, outputs)"
)


@dataclasses.dataclass(frozen=True)
class TraceFiles:
    """Recorded calls of some files.

    Attributes:
      digests: SHA-256 of each file, by the path as it was given.
      calls: in the order of the files.
    """

    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    calls: tuple[Recorded, ...] = ()


def read_traces(files: str | Iterable[str | Path]) -> TraceFiles:
    """Recorded calls of files: JSON Lines, or one JSON text.

    Args:
      files: paths, or one text with commas between them.

    Raises:
      TraceError: a file is missing, empty or without a call; a line is no JSON, or has no known form; names both.
    """
    if isinstance(files, str):
        paths = [path.strip() for path in files.split(",") if path.strip()]
    else:
        paths = [*map(str, files)]
    digests, calls = dict[str, str](), list[Recorded]()
    for path in dict.fromkeys(paths):
        data = _bytes(Path(path))
        digests[path] = hashlib.sha256(data).hexdigest()
        of_file = _calls(Path(path), data)
        if not of_file:
            raise TraceError(f"{path} has no call of a model in a form that is read ({_FORMS}): leave it out")
        calls += of_file
    return TraceFiles(digests, tuple(calls))


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TraceError(f"no file {str(path)!r} of recorded calls to read ({reason}): set traces to one") from error
    if not data.strip():
        raise TraceError(f"{path} is empty: give a file of recorded calls ({_FORMS}), or leave traces out")
    if data.startswith(b"\x1f\x8b"):
        raise TraceError(f"{path} is compressed (gzip): unpack it")
    return data


def _calls(path: Path, data: bytes) -> list[Recorded]:
    calls, spans = list[Recorded](), list[Span]()
    for place, item in _items(path, data):
        where = f"{path.name}{place}"
        if not isinstance(item, Mapping):
            raise TraceError(f"{path}{place}: {shown(item)}, expected an object: {_FORMS}")
        try:
            if is_otel(item):
                spans += read_spans(item, where)
            elif is_own(item):
                calls += read_own(item, where)
            elif is_openai(item):
                calls += read_openai(item, where)
            else:
                raise TraceError(f"{where}: no recorded call in {', '.join(map(shown, item)) or 'an empty object'}")
        except TraceError as error:
            raise TraceError(
                f"{path.parent / str(error)}. Known forms: {_FORMS}. Mend the line or take it out"
            ) from None
    try:
        return [*calls, *read_otel(spans)]
    except TraceError as error:
        raise TraceError(f"{path.parent / str(error)}. Mend the span or take it out") from None


def _items(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    """Objects of a file with their places: from each line, or from a file that is a single JSON text."""
    lines = data.split(b"\n")
    first = next(line for line in lines if line.strip())
    try:
        parse_json(first, mend=True)
    except JsonError:
        whole = _whole(data)
        if whole is not None:
            yield from _numbered("", whole)
            return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = parse_json(line, mend=True)
        except JsonError as error:
            column = "" if error.column is None else f" at column {error.column}"
            raise TraceError(
                f"{path}, line {number}: {error.reason}{column}. Recorded calls are JSON Lines, one object a line: "
                "mend the line or take it out"
            ) from None
        yield from _numbered(f", line {number}", item)


def _whole(data: bytes) -> Any:
    """The value of a text over several lines, or None."""
    try:
        return parse_json(data, mend=True)
    except JsonError:
        return None


def _numbered(place: str, item: Any) -> Iterator[tuple[str, Any]]:
    """An object with its place, or each object of a list."""
    if not isinstance(item, list):
        yield place, item
        return
    for number, listed in enumerate(item, start=1):
        yield f"{place}, item {number}", listed
