"""How many rounds should a race have? 1 tries every proposal on every input.

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/rounds.py --jobs=2

20 points of 6 minutes each on two cores, 2 at a time.
"""

from optimas_jax.sweep.points import combinations


def points():
    """Overrides of every point."""
    return combinations({"optimize.rounds": [1, 2, 3, 4], "seed": range(5)})
