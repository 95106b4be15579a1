"""Simulated races, for the tests of ``search.evidence``. Prints its table with

python tests/ranking.py [repetitions] [seed]
"""

import dataclasses
import sys

import numpy as np

from optimas_jax.search.evidence import Evidence, estimate_gains

CORRELATIONS = (0.0, 0.3, 0.6, 0.9, -0.5)
CHUNK = 500


@dataclasses.dataclass(frozen=True)
class Setting:
    """Kind of race.

    Attributes:
      rewards: distribution of a proposal's reward differences: ``normal``, ``heavy`` (t, 3 degrees of freedom) or
        ``binary`` (difference of two 0/1 rewards).
      changed: share of outputs that differ from the current ones; on the others both differences are 0.
      shared: correlation of both differences between the proposals of an input.
      offset: mean local difference of a proposal: ``none``, ``related`` to its true gain by the slope within proposals,
        or ``unrelated``.
      memorised: share of labels that the local reward was trained on; there it equals the reward.
    """

    proposals: int = 12
    inputs: int = 64
    labelled: int = 8
    rewards: str = "normal"
    changed: float = 1.0
    shared: float = 0.0
    offset: str = "none"
    memorised: float = 0.0


@dataclasses.dataclass(frozen=True)
class Figures:
    """Root mean square error and regret of the estimate and of its labelled part; effective runs by labelled run."""

    error: float
    labelled_error: float
    regret: float
    labelled_regret: float
    runs: float

    @property
    def error_ratio(self):
        return self.error / self.labelled_error

    @property
    def regret_ratio(self):
        return self.regret / self.labelled_regret


def races(setting, correlation, repetitions, rng):
    """Evidence of many races, and the true gains [repetitions, P]; their deviation is the labelled part's error."""
    shape = (repetitions, setting.proposals, setting.inputs)
    changed = rng.random(shape) < setting.changed
    unit = np.sqrt(0.5) if setting.rewards == "binary" else 1.0  # standard deviation of a reward difference
    truth = rng.standard_normal(shape[:2]) * unit * np.sqrt(setting.changed / setting.labelled)
    conditional = (truth / setting.changed)[..., None]  # mean where the output changed
    if setting.rewards == "binary":
        chance = np.clip(0.5 + conditional, 0.02, 0.98)
        truth, conditional = (chance[..., 0] - 0.5) * setting.changed, chance - 0.5
        deviation = (rng.random(shape) < chance) * 1.0 - (rng.random(shape) < 0.5) - conditional
    elif setting.rewards == "heavy":
        deviation = rng.standard_t(3, shape) / np.sqrt(3)
    else:
        deviation = _noise(rng, shape, setting.shared)
    local = correlation * deviation / unit + np.sqrt(1 - correlation**2) * _noise(rng, shape, setting.shared)
    if setting.offset == "related":
        local = local + correlation * conditional / unit
    if setting.offset == "unrelated":
        local = local + rng.standard_normal((*shape[:2], 1))
    reward = deviation + conditional
    seen = np.zeros(shape, bool)
    seen[..., : round(setting.memorised * setting.labelled)] = True
    local = np.where(seen, reward, local)
    reward[..., setting.labelled :] = np.nan
    return Evidence(local, reward, changed, seen=seen), truth


def _noise(rng, shape, shared):
    common = rng.standard_normal((shape[0], 1, shape[2]))
    return np.sqrt(1 - shared) * rng.standard_normal(shape) + np.sqrt(shared) * common


def figures(setting, correlation, repetitions, seed):
    """Means over repetitions, by the functions that ship."""
    rng = np.random.default_rng(seed)
    sums = np.zeros(5)
    for start in range(0, repetitions, CHUNK):
        evidence, truth = races(setting, correlation, min(CHUNK, repetitions - start), rng)
        estimate = estimate_gains(evidence)
        paid = np.maximum(evidence.labelled.sum((-1, -2)), 1)
        sums += [
            ((estimate.gain - truth) ** 2).mean(-1).sum(),
            ((estimate.labelled_gain - truth) ** 2).mean(-1).sum(),
            _regret(estimate.gain, truth).sum(),
            _regret(estimate.labelled_gain, truth).sum(),
            (estimate.effective_runs / paid).sum(),
        ]
    error, labelled_error, regret, labelled_regret, runs = sums / repetitions
    return Figures(error**0.5, labelled_error**0.5, regret, labelled_regret, runs)


def _regret(gains, truth):
    chosen = np.take_along_axis(truth, gains.argmax(-1)[:, None], -1)[:, 0]
    return truth.max(-1) - chosen


SETTINGS = {
    "12 proposals, 8 of 64": Setting(),
    "local mean follows the gain": Setting(offset="related"),
    "local mean unrelated": Setting(offset="unrelated"),
    "heavy tails": Setting(rewards="heavy"),
    "0/1 rewards": Setting(rewards="binary"),
    "half of outputs changed": Setting(changed=0.5),
    "a fifth of outputs changed": Setting(changed=0.2),
    "shared current output": Setting(shared=0.5),
    "6 proposals, 4 of 32": Setting(proposals=6, inputs=32, labelled=4),
    "6, 4 of 32, heavy tails": Setting(proposals=6, inputs=32, labelled=4, rewards="heavy"),
    "6, 4 of 32, 0/1 rewards": Setting(proposals=6, inputs=32, labelled=4, rewards="binary"),
    "6, 4 of 32, shared": Setting(proposals=6, inputs=32, labelled=4, shared=0.5),
    "all labels memorised": Setting(memorised=1.0),
    "half of labels memorised": Setting(memorised=0.5),
}


def main(repetitions=10_000, seed=0):
    print("error / regret of the chosen, relative to the labelled part alone; effective runs by labelled run\n")
    print(f"{'':28}" + "".join(f"r = {r:<19}" for r in CORRELATIONS))
    for name, setting in SETTINGS.items():
        cells = [figures(setting, r, repetitions, seed) for r in CORRELATIONS]
        row = "".join(f"{c.error_ratio:6.3f} /{c.regret_ratio:6.3f} x{c.runs:5.2f}  " for c in cells)
        print(f"{name:28}{row}", flush=True)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
