"""What a run's tables and its last line say, from results written by hand."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from optimas_jax.report.run import last_line
from optimas_jax.report.tables import label_table


def shown(table):
    sink = io.StringIO()
    Console(file=sink, width=200).print(table)
    return sink.getvalue()


@pytest.mark.parametrize(("score", "said"), [("local", "used"), ("random", "random in its place")])
def test_the_table_of_labels_names_the_control(score, said):
    judged = {"labelled_runs": 12, "effective_runs": 12.5, "local_reward": True}
    text = shown(label_table({"writer": judged, "tuner": {**judged, "local_reward": False}}, score))
    [writer] = [line for line in text.splitlines() if "writer" in line]
    [tuner] = [line for line in text.splitlines() if "tuner" in line]
    assert said in writer and ("used" in writer) == (score == "local")
    assert "not used: ranked by labels alone" in tuner


@pytest.mark.parametrize(
    ("confirmed", "said"),
    [
        ({"n": 64, "verdict": "confirmed"}, "on 64 examples that no gate has seen: confirmed"),
        ({"n": 64, "verdict": "not confirmed"}, "on 64 examples that no gate has seen: not confirmed"),
        (None, "no confirmation"),
    ],
)
def test_the_last_line_tells_whether_the_gain_is_confirmed(confirmed, said):
    results = {
        "gain": {"mean": 0.298},
        "confirmed": confirmed,
        "wall_seconds": 382.2,
        "peak_rss_mb": 4408,
        "paid_calls": 7,
    }
    assert last_line(results, Path("results.json")) == (
        f"gain +0.298 ({said}); 382 s, 4408 MB at most, 7 completions paid for; results.json"
    )
