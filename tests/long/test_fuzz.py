"""Everything that others wrote, damaged and hostile: only typed errors or outcomes, quickly, in little memory.

    python -m pytest -q -n 0 -m long tests/long/test_fuzz.py                  ten fresh seeds, which are printed
    FUZZ_SEEDS=1,2,3 python -m pytest -q -n 0 -m long tests/long/test_fuzz.py

Of all seeds together: 20,000 answers, each through every parser; 10,000 files of rows, configurations and files of a
run folder; tapes and groups, whose flipped bits are never read as other results.
"""

import gc
import os
import random
import secrets
import sys
import time
from pathlib import Path

import pytest
from fuzz_answers import LONG, PARSERS, fuzz_answers
from fuzz_folder import fuzz_files, fuzz_groups, fuzz_metadata, fuzz_tape_bytes, fuzz_tape_rows
from fuzz_rows import fuzz_configs, fuzz_prices, fuzz_rows
from fuzzing import Watch, peak_mb

sys.path.append(str(Path(__file__).parents[1] / "loop"))

from test_whole_run import run

pytestmark = pytest.mark.long
SEEDS = [int(seed) for seed in os.environ.get("FUZZ_SEEDS", "").split(",") if seed] or [
    secrets.randbelow(10**6) for _ in range(10)
]
MOST_MB = 200
ANSWERS, ROWS, CONFIGS, PRICES, FILES, METADATA = 2000, 400, 200, 100, 300, 100  # of each seed
TAPES, GROUPS = 40, 40


@pytest.fixture(autouse=True)
def what_is_there_is_no_garbage():
    """What the libraries have is not looked through while a parser is timed."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(workdir)
    return workdir


@pytest.mark.parametrize("seed", SEEDS)
def test_answers(seed):
    watch, measured = Watch(), Watch(most_seconds=10.0)  # memory is measured slowly
    assert peak_mb(lambda: fuzz_answers(measured, random.Random(seed), 200)) < MOST_MB
    measured.check()
    fuzz_answers(watch, random.Random(seed + 1), ANSWERS - 200)
    watch.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_and_configurations(seed, tmp_path):
    watch, measured = Watch(), Watch(most_seconds=10.0)
    assert peak_mb(lambda: fuzz_rows(measured, tmp_path, random.Random(seed), 100)) < MOST_MB
    measured.check()
    fuzz_rows(watch, tmp_path, random.Random(seed + 1), ROWS - 100)
    fuzz_configs(watch, random.Random(seed), CONFIGS)
    fuzz_prices(watch, random.Random(seed), PRICES)
    watch.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_files_of_a_run_folder(seed, whole, tmp_path):
    watch = Watch()
    fuzz_files(watch, whole, tmp_path, random.Random(seed), FILES)
    fuzz_metadata(watch, whole, tmp_path, random.Random(seed), METADATA)
    fuzz_tape_rows(watch, whole, tmp_path, random.Random(seed), TAPES)
    assert not fuzz_tape_bytes(watch, whole, tmp_path, random.Random(seed), TAPES)
    assert not fuzz_groups(watch, whole, tmp_path, random.Random(seed), GROUPS)
    watch.check()


def test_parsers_take_time_in_proportion_to_their_text():
    """A text four times as long takes at most eight times as long, beside what is too short to be measured."""
    slow = []
    for text in LONG:
        for name, parse in PARSERS.items():
            short, long = (_seconds(parse, text[:size]) for size in (25_000, 100_000))
            if long > max(8 * short, 0.2):
                slow.append(f"{name}: {short:.2f} s, then {long:.2f} s: {text[:30]!a}")
    assert not slow, "\n".join(slow)


def _seconds(parse, text):
    began = time.process_time()
    try:
        parse(text)
    except ValueError as error:
        assert type(error).__module__.startswith("optimas_jax")
    return time.process_time() - began
