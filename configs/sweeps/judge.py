"""Does a language model as judge rank outputs as well as a trained local reward (paper, Table 4), and at what cost?

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/judge.py --jobs=2

10 points of 6 minutes each on two cores, 2 at a time.
"""

from optimas_jax.sweep.points import combinations


def points():
    """Overrides of every point."""
    return combinations({"optimize.score": ["local", "judge"], "seed": range(5)})
