"""Look here first: planted harms are named, clean runs are silent."""

import pytest

from optimas_jax.report.look.first import look_first, shown_first
from tests import planted_runs as planted


def kinds_of(run, folder):
    return [finding.kind for finding in look_first(planted.read(run, folder))]


def worse_kind(run):
    for row in run.rows:
        if row["kind"] == "kind 1":
            planted.answer(row, "Nowhere", 0.0)


def test_a_kind_that_lost_is_named(tmp_path):
    [finding] = look_first(planted.read(planted.plant(planted.clean_run(), worse_kind), tmp_path))
    assert finding.kind == "kind_lost" and "kind 1" in finding.sentence


@pytest.mark.parametrize(("n", "kinds"), [(20, 1), (50, 3), (100, 3), (400, 8)])
def test_a_clean_run_is_silent(tmp_path, n, kinds):
    assert kinds_of(planted.clean_run(n, n, kinds), tmp_path) == []


def test_the_rest_is_counted():
    assert shown_first(["a", "b", "c"], 2) == (["a", "b"], 1)
