"""How strict should the gate be? ``strict`` is the paper's; lower levels of ``paired`` let less pass, ``none``
lets the best proposal pass whatever validation says.

    python launch/sweep.py --config=configs/hotpotqa.py --sweep=configs/sweeps/gate.py --jobs=2

25 points of 6 minutes each on two cores, 2 at a time. ``--config=configs/hotpotqa.py:tiny`` takes less.
"""


def points():
    """Overrides of every point."""
    for kind, level in (("none", 0.5), ("strict", 0.5), ("paired", 0.5), ("paired", 0.2), ("paired", 0.05)):
        for seed in range(5):
            yield {"optimize.gate.kind": kind, "optimize.gate.level": level, "seed": seed}
