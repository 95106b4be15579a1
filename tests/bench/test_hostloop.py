"""The suite ``hostloop`` on small rounds."""

import sys

import pytest

from optimas_jax.bench import callers, calls, hostloop
from optimas_jax.bench.peer import Side

SERVER = [sys.executable, "-m", "optimas_jax.bench.calls"]


def test_latencies_have_the_same_mean_and_are_the_same_every_time():
    drawn = calls.draw_latencies("log-normal", 2000, 0.5)
    assert drawn == calls.draw_latencies("log-normal", 2000, 0.5) and len(set(drawn)) == 2000
    assert sum(drawn) / 2000 == pytest.approx(0.5) and max(drawn) > 2.5
    assert calls.draw_latencies("constant", 3, 0.5) == [0.5] * 3


@pytest.mark.parametrize(
    ("latencies", "concurrency", "seconds"), [([0.5] * 2000, 500, 2.0), ([3, 1, 1, 1], 2, 3), ([1, 1, 3], 2, 4)]
)
def test_the_ideal_starts_a_call_whenever_a_place_is_free(latencies, concurrency, seconds):
    assert calls.ideal_seconds(latencies, concurrency) == seconds


def test_a_call_is_known_by_its_prompt():
    text = f"{calls.instruction(3)} {calls.question(14)}"
    assert calls.call_number(text.encode()) == 314


@pytest.mark.parametrize("over_http", [False, True])
def test_both_sides_make_all_calls(over_http):
    work = {"latencies": [0.0] * 200, "concurrency": 20, "url": ""}
    if not over_http:
        assert callers.prepare_ours(work)[0](0)["seconds"] > 0  # it counts its calls
        return
    with Side("server", SERVER) as server:
        work |= {"url": server.ask({"latencies": work["latencies"]})["url"]}
        for prepare in (callers.prepare_ours, callers.prepare_bare):
            assert prepare(work)[0](0)["seconds"] > 0


def test_a_row_compares_with_the_ideal_and_with_the_bare_client():
    case = hostloop.CASES[1]
    seconds = {"ours": [2.5, 4.0, 2.0], "peer": [5.0, 4.0, 6.0]}
    cpu = {"ours": [0.5, 0.75, 1.0], "peer": [4.0, 4.0, 4.0]}
    row = hostloop.row_of(case, 2.0, seconds, cpu, {"ours": 100.0, "peer": 80.0})
    assert (row.ours, row.peer, row.ratio, row.roofline_fraction) == (800.0, 400.0, 2.0, 0.8)
    ours = "1.25 times the ideal 2.00 s, 0.75 s of processors"
    assert row.notes == {"ours": ours, "peer": "4.00 s of processors"}
    alone = hostloop.row_of(case, 2.0, {"ours": [2.0]}, {"ours": [1.0]}, {"ours": 100.0})
    assert (alone.peer, alone.peer_name, alone.ratio) == (None, None, None)
