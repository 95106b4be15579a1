"""What a run's tables and its last line say, from results written by hand."""

import io

import pytest
from rich.console import Console

from optimas_jax.report.tables import label_table


def shown(table):
    sink = io.StringIO()
    Console(file=sink, width=200).print(table)
    return sink.getvalue()


@pytest.mark.parametrize(("score", "said"), [("local", "used"), ("random", "random numbers in its place")])
def test_the_table_of_labels_names_the_control(score, said):
    judged = {"labelled_runs": 12, "effective_runs": 12.5, "local_reward": True}
    text = shown(label_table({"writer": judged, "tuner": {**judged, "local_reward": False}}, score))
    [writer] = [line for line in text.splitlines() if "writer" in line]
    [tuner] = [line for line in text.splitlines() if "tuner" in line]
    assert said in writer and ("used" in writer) == (score == "local")
    assert "not needed: every trial is labelled" in tuner
