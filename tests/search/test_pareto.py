"""The Pareto set of random points: nothing in it is dominated, and everything that is not dominated is in it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from optimas_jax.core.cost import Cost
from optimas_jax.core.objective import MEASURES, Objective
from optimas_jax.core.types import Outcome, Trace
from optimas_jax.search.pareto import Estimate, Point, dominated, dominates, point_of, rows_of, tell_exceeded

few = st.integers(0, 3).map(float)


def made(score: float, *costs: float) -> Point:
    measured = dict(zip(MEASURES, costs, strict=False))
    exact = {name: Estimate(cost, (cost, cost)) for name, cost in measured.items()}
    return Point(0, "", "", Estimate(score, (score, score)), Estimate(score, (score, score)), exact)


points = st.integers(2, 3).flatmap(lambda n: st.lists(st.tuples(few, *[few] * n), min_size=1, max_size=9))


@settings(max_examples=200, deadline=None)
@given(points)
def test_no_point_of_the_set_is_dominated_and_every_other_one_is(rows) -> None:
    every = [made(*row) for row in rows]
    inside = [point for point, out in zip(every, dominated(every), strict=True) if not out]
    assert inside
    for (score, *costs), out in zip(rows, dominated(every), strict=True):
        better = [
            other[0] >= score
            and all(x <= y for x, y in zip(other[1:], costs, strict=True))
            and (other[0] > score or any(x < y for x, y in zip(other[1:], costs, strict=True)))
            for other in rows
        ]
        assert out == any(better)
    assert not any(dominates(one, other) for one in inside for other in inside)
    for point, out in zip(every, dominated(every), strict=True):
        assert not out or any(dominates(one, point) for one in inside)  # by one of the set


def test_points_of_runs_and_their_limits() -> None:
    traces = [
        Trace("e", 0, (), {}, Outcome.OK, score, cost=Cost(tokens, 0.25, seconds), penalty=0.5)
        for score, tokens, seconds in ((1.0, 100, 2.0), (0.0, 300, 4.0))
    ]
    objective = Objective(max_tokens=150, max_dollars=0.25)
    point = point_of(traces, "digest", objective, changes=2, component="writer")
    assert (point.score.mean, point.reward.mean) == (0.5, 0.0)
    assert {name: cost.mean for name, cost in point.costs.items()} == {"dollars": 0.25, "tokens": 200, "seconds": 3.0}
    assert point.exceeds == ("tokens",)
    assert tell_exceeded(point, objective) == ["exceeds max_tokens: 200 tokens a run [100, 300], and the limit is 150"]
    [row] = rows_of([point], kept=2)
    assert row["kept"] and not row["dominated"] and row["seconds"]["mean"] == 3.0
    shared = point_of(traces, "digest", None, seconds=False)
    assert "seconds" not in shared.costs and rows_of([shared], 0)[0]["seconds"] is None
