"""What LoRA rank does the reward model need, and in how many of its last layers?

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/rank.py --jobs=2

30 points of 6 minutes each on two cores, 2 at a time.
"""

from optimas_jax.sweep.points import combinations


def points():
    """Overrides of every point."""
    return combinations(
        {
            "reward.heads": ["trained"],
            "reward.lora.rank": [2, 8, 32],
            "reward.lora.last_layers": [4, 16],
            "seed": range(5),
        }
    )
