"""How many groups with different rewards does a component need before the search?

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/groups.py --jobs=2

20 points of 6 minutes each on two cores, 2 at a time.
"""


def points():
    """Overrides of every point."""
    for groups, calls in ((0, 48), (12, 48), (24, 144), (48, 432)):
        for seed in range(5):
            yield {"offline.groups": groups, "offline.calls": calls, "seed": seed}
