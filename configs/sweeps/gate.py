"""How strict should the gate be? ``strict`` is the paper's; lower levels of ``paired`` let less pass.

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/gate.py --jobs=2

20 points of 6 minutes each on two cores, 2 at a time. ``--config=configs/hotpotqa.py:tiny`` takes less.
"""


def points():
    """Overrides of every point."""
    for kind, level in (("strict", 0.5), ("paired", 0.5), ("paired", 0.2), ("paired", 0.05)):
        for seed in range(5):
            yield {"optimize.gate.kind": kind, "optimize.gate.level": level, "seed": seed}
