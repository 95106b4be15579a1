"""How many Monte Carlo runs does the global reward of a candidate need (paper, Eq. 3)?

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/monte_carlo.py --jobs=2

15 points, of about 6 minutes each on two cores. With greedy answers all runs are alike: give the system a temperature
with --config.system.language_model.temperature=0.7.
"""

from optimas_jax.sweep.points import combinations


def points():
    """Overrides of every point."""
    return combinations({"collect.rollouts": [1, 2, 4], "seed": range(5)})
