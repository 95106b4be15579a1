"""All ordered pairs of a group of candidates, or two sampled candidates as in the paper?

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/pairs.py --jobs=2

10 points of 6 minutes each on two cores, 2 at a time.
"""

from optimas_jax.sweep.points import combinations


def points():
    """Overrides of every point."""
    return combinations({"optimize.pairs": ["two", "all"], "seed": range(5)})
