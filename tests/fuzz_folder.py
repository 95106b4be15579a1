"""Files of a run folder for fuzzing: each is damaged, and then read as the stages, the report and users read it."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzzing import TEXTS, Watch, as_bytes, bend, broken, damaged, damaged_lines, dump
from scripted import scripted_config

from optimas_jax.core.folder.events import from_json, read_events
from optimas_jax.core.folder.files import read_file, read_rows
from optimas_jax.core.usage import Usage
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.loop.evaluate import after_each
from optimas_jax.loop.folder.record import _closed
from optimas_jax.loop.journal import RunFolder, config_of, load_best, reward_name
from optimas_jax.report.page.write import write_page
from optimas_jax.report.run_files import read_run
from optimas_jax.report.tables import tables
from optimas_jax.result import Result, open_run
from optimas_jax.rewards.data import load_groups
from optimas_jax.rewards.scorer import LocalReward
from optimas_jax.saved.folder import read_folder


def _open(folder: Path) -> None:
    """Opens a folder as a resumed command does, which emits its events again."""
    opened = RunFolder(folder, scripted_config())
    try:
        for line in (folder / "events").read_text().splitlines():
            event = from_json(json.loads(line))
            assert event is not None
            opened.emit(event)
        opened.append_new("proposals.jsonl", [{"id": "a", "race": None, "gate": None}])
    finally:
        opened.close()


def _used(path: Path) -> None:
    for usage in (read_file(path) or {}).values():
        str(Usage.from_json(usage) + Usage().times(2.0))


def _record(path: Path) -> None:
    record = read_file(path)
    for part in record["parts"]:
        _closed(part, 1e9)
    str(Result(path.parent, {}).cost)


def _search(path: Path) -> None:
    search, default = read_file(path), load_best(path.parent / "best")
    for configuration in after_each(default, search["accepted"]):
        assert configuration.digest
    reward_name(path.parent, default)


def _results(path: Path) -> None:
    results = read_file(path)
    for table in tables(results):
        str(table.row_count)
    shown = open_run(path.parent)
    str((shown, shown.by_kind, shown.interval, shown.confirmed, shown._repr_html_()))


def _rows(path: Path) -> None:
    shown = Result(path.parents[1] if path.parent.name == "evaluations" else path.parent, {"label": path.stem})
    str({"test": "examples", "proposals": "proposals", "journal": "history"}[path.stem] and read_rows(path))
    if path.stem == "journal":
        str(read_events(path.parent))
    str(getattr(shown, {"test": "examples", "proposals": "proposals", "journal": "history"}[path.stem]))


def _page(folder: Path) -> None:
    write_page(folder / "report.html", read_run(folder))


def _best(path: Path) -> None:
    assert load_best(path.parent).digest
    saved = read_folder(path.parent)
    saved.language_model()
    str((saved.digest, saved.seed, saved.name))


READERS: dict[str, Callable[[Path], Any]] = {
    "config.json": lambda path: (_open(path.parent), config_of(path.parent)),
    "journal.jsonl": lambda path: (_open(path.parent), _rows(path)),
    "proposals.jsonl": lambda path: (_open(path.parent), _rows(path)),
    "evaluations/test.jsonl": _rows,
    "run.json": _record,
    "used.json": _used,
    "spent.json": _used,
    "system.json": read_file,
    "rows.json": lambda path: frozenset(read_file(path) or ()),
    "reward.json": lambda path: CheckpointStore(path.parent / "checkpoints").metadata(read_file(path)["name"]),
    "optimized.json": _search,
    "results.json": _results,
    "evaluations/test.json": lambda path: read_file(path)["n"],
    "best/configuration.json": _best,
}


def fuzz_files(watch: Watch, whole: Path, folder: Path, rng: random.Random, count: int) -> None:
    """Damages each file of a finished run in turn.

    Args:
      whole: the run.
      folder: for copies.
    """
    target = folder / "run"
    for number in range(count):
        name = list(READERS)[number % len(READERS)]
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(whole, target, ignore=shutil.ignore_patterns("checkpoints", "groups", "tensorboard", "tape*"))
        shutil.copy(whole / "journal.jsonl", target / "events")
        text = (whole / name).read_text()
        data = damaged_lines(text, rng) if name.endswith("l") else damaged(text, rng)
        path = target / name
        if rng.random() < 0.02:
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(data)
        watch.call((name, data), lambda path=path, name=name: READERS[name](path), longer=10.0)
        watch.call(("the page", name, data), lambda: _page(target), longer=20.0)


def fuzz_metadata(watch: Watch, whole: Path, folder: Path, rng: random.Random, count: int) -> None:
    """Damages the metadata of a checkpoint."""
    [path] = whole.glob("checkpoints/*/metadata.json")
    target = folder / "checkpoints" / "abc" / "metadata.json"
    target.parent.mkdir(parents=True, exist_ok=True)

    def read() -> None:
        metadata = CheckpointStore(folder / "checkpoints").metadata("abc", LocalReward)
        if metadata is not None:
            str([*metadata["history"][-1:], metadata.get("backbone")])

    for _ in range(count):
        target.write_bytes(damaged(path.read_text(), rng))
        watch.call(target.read_bytes(), read)


def read_tape(path: Path) -> list[Any]:
    """All that a tape holds, as a run reads it."""
    tape = Tape(path)
    try:
        rows = sqlite3.connect(path)
        keys = [key for (key,) in rows.execute("SELECT key FROM effects ORDER BY key")]
        rows.close()
        texts = [tape.get(_Asked(key)).text for key in keys]  # type: ignore[union-attr]
        return [tape.usage().tokens, texts, tape.get_scores(_scores(path))]
    finally:
        tape.close()


def _scores(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return [key for (key,) in connection.execute("SELECT key FROM scores ORDER BY key")]
    finally:
        connection.close()


class _Asked:
    """The request whose key is known."""

    def __init__(self, key: str):
        self.key = key

    def read(self, data: Any) -> Any:
        from fakes import request

        return request().read(data)


def fuzz_tape_rows(watch: Watch, whole: Path, folder: Path, rng: random.Random, count: int) -> None:
    """Puts something else into the rows of a tape."""
    path = folder / "tape.sqlite"
    for _ in range(count):
        for old in folder.glob("tape.sqlite*"):
            old.unlink()
        shutil.copy(whole / "tape.sqlite", path)
        with sqlite3.connect(path) as connection:
            key, result = connection.execute("SELECT key, result FROM effects ORDER BY RANDOM() LIMIT 1").fetchone()
            text = rng.choice(TEXTS) if rng.random() < 0.4 else dump(bend(json.loads(result), rng))
            value: Any = as_bytes(text) if rng.random() < 0.2 else text.encode(errors="replace").decode()
            if rng.random() < 0.8:
                connection.execute("UPDATE effects SET result = ? WHERE key = ?", (value, key))
            else:
                connection.execute("UPDATE scores SET score = ?", (value,))
        connection.close()
        watch.call(text, lambda: read_tape(path), longer=10.0)


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Data with one flipped bit."""
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def fuzz_tape_bytes(watch: Watch, whole: Path, folder: Path, rng: random.Random, count: int) -> list[str]:
    """Damages bytes of a tape; returns what was read as other results, which should be nothing."""
    good = read_tape(shutil.copy(whole / "tape.sqlite", folder / "good.sqlite"))
    data, wrong = (folder / "good.sqlite").read_bytes(), []
    for number in range(count):
        path = folder / "bytes" / "tape.sqlite"
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        path.write_bytes(flipped(data, rng) if number % 2 else broken(data, rng))
        read = watch.call(f"bytes, number {number}", lambda path=path: read_tape(path), longer=10.0)
        if read is not None and read != good and read[1]:
            wrong.append(f"number {number}")
    return wrong


def fuzz_groups(watch: Watch, whole: Path, folder: Path, rng: random.Random, count: int) -> list[str]:
    """Damages files of groups; returns what was read as other groups, which should be nothing."""
    source, target, wrong = whole / "groups" / "offline", folder / "groups", []
    good = load_groups(source)
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    for number in range(count):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        path = target / rng.choice(files)
        data = path.read_bytes()
        if number % 10 == 0:
            path.unlink()
        else:
            path.write_bytes(flipped(data, rng) if number % 2 or not data else broken(data, rng))
        read = watch.call(f"{path.name}, number {number}", lambda: load_groups(target), longer=10.0)
        if read is not None and read != good:
            wrong.append(f"{path.name}, number {number}")
    return wrong
