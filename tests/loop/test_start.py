"""Going on from a saved result: it is replaced by what is confirmed on fresh rows alone, and nothing is paid twice."""

import hashlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from runs import run_config

import optimas_jax as oj
from optimas_jax.benchmarks.data import Dataset
from optimas_jax.core.folder.events import Refresh
from optimas_jax.core.types import Example
from optimas_jax.loop.journal import FolderError, RunFolder, load_best
from optimas_jax.loop.setup.start import keep, row_digest, with_fresh_rows, with_reserve
from optimas_jax.report.console import ConsoleProgress

QUIET = {"optimize.score": "off", "offline.groups": 0, "optimize.inputs": 6, "optimize.labels": 6, "optimize.rounds": 1}


def rows(count, begin=0):
    return [{"q": f"q{number}", "gold": "yy"} for number in range(begin, begin + count)]


class Shouts:
    """A program of two settings, each worth half a point, whose dear function counts its calls."""

    def __init__(self):
        self.paid = []

        @oj.component(effect=True, letter=oj.setting("x", choices=("x", "y")))
        def first(letter, q):
            self.paid.append(("first", q, letter))
            return letter

        @oj.component(effect=True, letter=oj.setting("x", choices=("x", "y")))
        def second(letter, q, text):
            self.paid.append(("second", q, text, letter))
            return text + letter

        async def shout(q):
            return await second(q, await first(q))

        self.program = oj.program(shout, components=[first, second])

    def search(self, folder, data, **config):
        def metric(example, outputs):
            return sum(a == b for a, b in zip(outputs, example["gold"], strict=True)) / 2

        lines = io.StringIO()
        progress = ConsoleProgress(console=Console(file=lines, width=300))
        settings = {**QUIET, **config}
        result = oj.optimize(self.program, metric, data, workdir=folder, config=settings, progress=progress)
        return result, lines.getvalue()


def letters(result):
    return [result.best[name]["letter"] for name in ("first", "second")]


def digests(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_a_saved_result_is_replaced_by_what_is_confirmed_on_fresh_rows_alone(tmp_path):
    shouts = Shouts()
    one = {"optimize.components": "first", "data.reserve": 6}
    before, _ = shouts.search(tmp_path / "one", rows(80), **one)
    assert letters(before) == ["y", "x"] and before.confirmed
    known, files = set(shouts.paid), digests(tmp_path / "one")
    assert len(known) == len(shouts.paid)
    shouts.paid.clear()

    start = {"optimize.start": str(tmp_path / "one" / "best"), "data.reserve": 0}
    on_reserve, _ = shouts.search(tmp_path / "two", rows(80), **start)
    assert letters(on_reserve) == ["y", "y"] and on_reserve.confirmed
    assert on_reserve.results["confirmed"]["n"] == 6
    assert on_reserve.results["baseline"]["mean"] == 0.5 and on_reserve.gain == 0.5
    assert not known & set(shouts.paid) and len(set(shouts.paid)) == len(shouts.paid)  # nothing is paid again

    again, lines = shouts.search(tmp_path / "three", rows(80), **{**start, "optimize.start": str(tmp_path / "two")})
    assert letters(again) == ["y", "y"] and not again.confirmed and "nothing to confirm" not in lines

    assert digests(tmp_path / "one") == files


def test_without_fresh_rows_the_saved_result_stays(tmp_path):
    shouts = Shouts()
    shouts.search(tmp_path / "one", rows(60), **{"optimize.components": "first"})
    start = {"optimize.start": str(tmp_path / "one" / "best")}
    result, lines = shouts.search(tmp_path / "two", rows(60), **start)
    assert letters(result) == ["y", "x"] and "not confirmed: no fresh rows" in lines
    assert "warning: no row is new to the run that this one starts from" in lines
    assert result.results["confirmed"] == {
        "n": 0,
        "changes": None,
        "verdict": "not confirmed: no fresh rows",
        "tests": [],
    }
    assert load_best(tmp_path / "two" / "unconfirmed")["second"]["letter"] == "y"
    grown, _ = shouts.search(tmp_path / "three", rows(70), **start)
    assert letters(grown) == ["y", "y"] and 5 <= grown.results["confirmed"]["n"] <= 10
    used = set(json.loads((tmp_path / "three" / "best" / "rows.json").read_text()))
    assert set(json.loads((tmp_path / "two" / "rows.json").read_text())) < used


def test_a_start_that_cannot_be_used_is_named(tmp_path):
    shouts = Shouts()
    with pytest.raises(FolderError, match=r"there is no folder nowhere"):
        shouts.search(tmp_path / "two", rows(60), **{"optimize.start": "nowhere"})
    shouts.search(tmp_path / "one", rows(60), **{"optimize.components": "first"})
    (tmp_path / "one" / "best" / "rows.json").unlink()
    (tmp_path / "one" / "rows.json").unlink()
    with pytest.raises(FolderError, match=r"has no rows\.json, which names the rows that its run used"):
        shouts.search(tmp_path / "two", rows(60), **{"optimize.start": str(tmp_path / "one")})
    assert not Path("nowhere").exists()


def test_rows_that_a_folder_has_paid_for_stay_known(tmp_path):
    """A graph's rows may be others when its command is run again."""
    folder = RunFolder(tmp_path / "run", run_config())
    for begin, known in ((0, {0, 1}), (2, {2, 3}), (4, {2, 3, 4, 5})):  # nothing was paid for of the first ones
        keep(folder, Dataset({"train": (example(begin), example(begin + 1))}), None)
        assert set(folder.read("rows.json")) == {row_digest(example(number)) for number in known}
        if begin:
            folder.emit(Refresh(groups={}))
    folder.close()


def test_a_replay_with_another_server_leaves_every_file(tmp_path):
    shouts, one = Shouts(), {"optimize.components": "first"}
    shouts.search(tmp_path / "one", rows(60), **one)
    files = {path: known for path, known in digests(tmp_path / "one").items() if path.suffix != ".sqlite"}
    shouts.search(tmp_path / "one", rows(60), **one, **{"server.base_url": "http://127.0.0.1:9/v1"})
    after = digests(tmp_path / "one")
    assert [path.name for path, known in files.items() if after[path] != known] == []
    assert (tmp_path / "one" / "config-2.json").is_file()


def example(number):
    return Example(str(number), {"q": number}, {}, "")


@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 4),
    used=st.sets(st.integers(0, 23)),
)
def test_fresh_rows_go_to_the_confirm_split_and_no_row_is_in_two(sizes, used):
    numbers = iter(range(24))
    names = ("train", "val", "test", "confirm")
    splits = {name: tuple(example(next(numbers)) for _ in range(size)) for name, size in zip(names, sizes, strict=True)}
    stale = frozenset(row_digest(example(number)) for number in used)
    found = with_fresh_rows(Dataset(splits), stale).splits
    every = [int(one.id) for split in found.values() for one in split]
    assert len(set(every)) == len(every) and found["test"] == splits["test"]
    assert [len(found[name]) for name in ("train", "val")] == [len(splits[name]) for name in ("train", "val")]
    confirm = {int(one.id) for one in found["confirm"]}
    assert not confirm & used
    fresh = [int(one.id) for name in ("train", "val", "confirm") for one in splits[name] if int(one.id) not in used]
    assert len(confirm) == min(len(splits["confirm"]), len(fresh))


def test_a_reserve_is_the_end_of_the_confirm_split():
    data = Dataset({"confirm": tuple(map(example, range(5)))})
    assert with_reserve(data, 0) is data
    assert [one.id for one in with_reserve(data, 2).splits["confirm"]] == ["0", "1", "2"]
    with pytest.raises(ValueError, match=r"config\.data\.reserve is 5, and the confirm split has 5 rows"):
        with_reserve(data, 5)
