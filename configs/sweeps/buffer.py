"""How many groups of earlier rounds should an adaptation see again?

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/buffer.py --jobs=2

20 points of 6 minutes each on two cores, 2 at a time.
"""

from optimas_jax.sweep.points import combinations


def points():
    """Overrides of every point."""
    return combinations(
        {"reward.heads": ["trained"], "optimize.adapt": ["every"], "optimize.buffer": [0, 8, 32, 128], "seed": range(5)}
    )
