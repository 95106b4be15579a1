"""What do local rewards bring: learned ones against random numbers, likelihood, the labels alone (``off``), and the
global reward itself (the oracle, the most that they can bring; its runs of the system are not charged)?

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/local_rewards.py --jobs=2

25 points at 100,000 tokens of search each, 49 minutes in all on two cores.
"""

from optimas_jax.sweep.points import combinations


def points():
    """Overrides of every point."""
    return combinations(
        {
            "optimize.score": ["local", "random", "likelihood", "oracle", "off"],
            "optimize.iterations": [1000],  # the budget ends the search
            "optimize.max_tokens": [100_000],
            "seed": range(5),
        }
    )
