"""How should the next component be chosen?

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/pick.py --jobs=2

15 points of 6 minutes each on two cores, 2 at a time.
"""

from optimas_jax.sweep.points import combinations


def points():
    """Overrides of every point."""
    return combinations({"optimize.pick": ["uniform", "gap", "bandit"], "seed": range(5)})
