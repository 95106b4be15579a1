"""Do local rewards have to be trained further as the system changes, and when?

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/adaptation.py --jobs=2

20 points of 6 minutes each on two cores, 2 at a time.
"""

from optimas_jax.sweep.points import combinations


def points():
    """Overrides of every point."""
    return combinations({"optimize.adapt": ["never", "after_accept", "every", "on_drift"], "seed": range(5)})
