"""Some of what ``tests/long/test_fuzz.py`` does much longer: damaged and hostile inputs meet typed errors only."""

import random

import pytest
from fuzz_answers import PARSERS, fuzz_answers
from fuzz_rows import fuzz_configs, fuzz_prices, fuzz_rows
from fuzzing import Watch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimas_jax.benchmarks.pubmedqa import LABELS, final_answer
from optimas_jax.benchmarks.stark_prime import read_scores
from optimas_jax.core.text.json_text import JsonError, find_json, parse_json

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_answers():
    watch = Watch(most_seconds=1.0)
    fuzz_answers(watch, random.Random(0), 150)
    watch.check()


def test_rows_configurations_and_prices(tmp_path):
    watch = Watch(most_seconds=1.0)
    fuzz_rows(watch, tmp_path, random.Random(0), 150)
    fuzz_configs(watch, random.Random(0), 100)
    fuzz_prices(watch, random.Random(0), 50)
    watch.check()


@settings(deadline=1000)
@given(st.text(), st.sampled_from(sorted(PARSERS)))
def test_no_text_breaks_a_parser(text, name):
    try:
        PARSERS[name](text)
    except ValueError as error:
        assert type(error).__module__.startswith("optimas_jax")


@given(st.text(alphabet="{}[]\"'\\,:`.0123456789eE-+ \nyesno<>/", max_size=40), st.integers(1, 5))
def test_scores_and_labels_are_what_they_say(text, count):
    scores = read_scores(text, count)
    assert len(scores) == count and all(0 <= score <= 1 for score in scores)
    assert final_answer(text) in ("", *LABELS)


@given(JSON)
def test_json_that_was_written_is_read(value):
    import json

    text = json.dumps(value, ensure_ascii=False)
    assert parse_json(text) == parse_json(json.dumps(value)) == value
    assert parse_json(text.encode()) == value
    if isinstance(value, list | dict):
        assert find_json(f"Here it is: {text} as you asked")[0] == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON .Expecting value., line 1, column 1"),
        ('{"a": 1,\n "b"', "line 2, column"),
        ("[" * 101 + "]" * 101, "nested more than 100 deep"),
        ("[" * 100_000, "nested more than 100 deep"),
        ('{"a":' * 100_000, "nested more than 100 deep"),
        ("9" * 5000, "a whole number of 5,000 digits"),
        (f"[{10**309}]", "a whole number of 310 digits"),
        ("1e999", "the number '1e999' is too large"),
        ("-" + "9" * 400 + ".5", "is too large"),
        ("NaN", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ('"\\ud800"', "half of a character"),
        ('{"\\udfff": 1}', "half of a character"),
        ('"\ud800"', "half of a character"),
        (b"\xff", "not UTF-8 text .byte 0"),
        (b'"\xed\xa0\x80"', "not UTF-8 text"),
        ("\x00", "not JSON"),
        ('"\x01"', "not JSON"),
    ],
)
def test_json_that_nothing_can_use_says_why(text, reason):
    with pytest.raises(JsonError, match=reason):
        parse_json(text)


def test_brackets_in_texts_are_no_depth():
    assert parse_json('["' + "[{" * 500 + '"]') == ["[{" * 500]
    assert parse_json("[" * 100 + "]" * 100) and parse_json('"\\ud83d\\ude00"') == "\U0001f600"
