"""Reward heads trained with adapters by gradient steps (paper), or fitted in closed form beside likelihood?

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/heads.py --jobs=2

10 points of 6 minutes each on two cores, 2 at a time.
"""

from optimas_jax.sweep.points import combinations


def points():
    """Overrides of every point."""
    return combinations({"reward.heads": ["trained", "fitted"], "seed": range(5)})
