import json
import math

import datasets
import pandas as pd
import pytest

from optimas_jax.benchmarks.data import DataError
from optimas_jax.benchmarks.tables import examples_of, read_table, sizes_of

ROWS = [{"question": "a?", "answer": "a", "n": 1}, {"question": "b?", "answer": "b", "n": 2}]
TEXTS = [{key: str(value) for key, value in row.items()} for row in ROWS]


def test_rows_from_everything_that_has_rows(tmp_path):
    table = pd.DataFrame(ROWS)
    table.to_csv(tmp_path / "a.csv", index=False, encoding="utf-8-sig")
    table.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    for data in (ROWS, table, datasets.Dataset.from_list(ROWS), iter(ROWS)):
        assert read_table(data) == ROWS
    for name in ("a.parquet", "a.jsonl", "a.json"):
        assert read_table(tmp_path / name) == read_table(str(tmp_path / name)) == ROWS
    assert read_table(tmp_path / "a.csv") == TEXTS
    assert read_table([{"x": math.nan}]) == [{"x": None}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the data holds no rows"),
        (3, "the data is of type int, expected rows"),
        ({"a": 1}, "is of type dict, expected rows"),
        (["a"], "row 0: expected an object, got str"),
        ([{"a": 1, "b": 2}, {"a": 1}], "row 1 lacks b, which the first row has"),
        ([{"a": object()}], r"row 0, a is of type object"),
        ("nothing.csv", "no file 'nothing.csv'"),
        ("nothing.xml", "no file 'nothing.xml'"),
    ],
)
def test_what_holds_no_rows(data, message):
    with pytest.raises(DataError, match=message):
        read_table(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1\n", "line 2 has 1 values, expected 2: a, b"),
        ('a,b\n"1\n1",2\n1,2,3\n', "line 4 has 3 values, expected 2: a, b"),
        ("", "holds no rows"),
        ("a,b\n", "holds no rows"),
        ("a,a\n1,2\n", r"has the columns \['a', 'a'\], expected different names"),
        ("a;b\n1;2\n", r"has the columns \['a;b'\], .* separated by commas"),
        ('a,b\n"1,2\n', r"line 2: no CSV \(unexpected end of data\)"),
    ],
)
def test_csv_files_that_do_not_hold_together(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "a.csv")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"expected a \.json, \.jsonl, \.csv or \.parquet file"):
        read_table(tmp_path / "a.txt")


def test_columns_that_the_program_does_not_read_are_gold():
    rows = [
        {"id": "x", "question": "a?", "answer": "a", "kind": "k"},
        {"id": "y", "question": "a?", "answer": "b", "kind": ""},
    ]
    [example], repeated = examples_of(rows, ["question"])
    assert (example.id, example.kind, repeated) == ("x", "k", 1)
    assert example.inputs == {"question": "a?"} and example.gold == {"answer": "a", "kind": "k"}
    with pytest.raises(DataError, match="1 ids stand for several examples, the first is 'x'"):
        examples_of([rows[0], {**rows[0], "question": "other"}], ["question"])


def test_splits_by_share():
    assert sizes_of(96) == {"train": 49, "val": 14, "confirm": 14, "test": 19}
    with pytest.raises(DataError, match=r"12 different rows are too few .* val 1 of 5, confirm 1 of 5, test 2 of 5"):
        sizes_of(12)
    with pytest.raises(DataError, match="expected four shares"):
        sizes_of(100, (0.5, 0.5))
