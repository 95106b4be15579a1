"""Rules on scores: examples that got worse, as a whole and by kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimas_jax.core.stats import mean_interval
from optimas_jax.report.format import format_interval
from optimas_jax.report.look.examples import above_zero, change, groups_of
from optimas_jax.report.look.finding import Finding, Tested, counted, plain
from optimas_jax.report.run_files import RunFiles

_FEWEST = 4  # examples of a kind
_PERMUTATIONS = 4_000


def whole_lost(run: RunFiles) -> list[Tested]:
    """The examples got worse as a whole: more than chance would make them."""
    differences = change(run.examples)
    if not len(differences):
        return []
    p_value, least = above_zero(-differences)
    mean, interval = mean_interval(differences)
    worse, better = int((differences < 0).sum()), int((differences > 0).sum())
    sentence = (
        f"{counted(worse, 'example')} of {len(differences)} got worse and {better} better: the score fell by "
        f"{-mean:.3f}, 95 % interval of the change {format_interval(interval)}{_most_of(run, differences)}."
    )
    return [Tested(p_value, least, Finding("worse", sentence, "flips", 1))]


def kinds_lost(run: RunFiles) -> list[Tested]:
    """A kind of examples lost, by a paired test."""
    differences = change(run.examples)
    tests = []
    for name, indices in _kinds(run).items():
        own = differences[indices]
        p_value, least = above_zero(-own)
        mean, interval = mean_interval(own)
        sentence = (
            f"The kind {plain(name)} lost: {_before_after(run, indices)} on {counted(len(indices), 'example')}, "
            f"95 % interval of the change {format_interval(interval)}; {(own < 0).sum()} got worse, "
            f"{(own > 0).sum()} better."
        )
        finding = Finding("kind_lost", sentence, "kinds", 2) if mean < 0 else None
        tests.append(Tested(p_value, least, finding, f"kind {name}"))
    return tests


def kinds_left_behind(run: RunFiles) -> list[Tested]:
    """A kind fell while the others gained: its own examples may be too few for a test of their own, but not for one
    against all others."""
    differences = change(run.examples)
    kinds = _kinds(run)
    tests = []
    for name, indices in kinds.items():
        rest = np.setdiff1d(np.arange(len(differences)), indices)
        if len(rest) < _FEWEST or not differences.any():
            continue
        own, others = differences[indices], differences[rest]
        sentence = (
            f"The kind {plain(name)} fell, {_before_after(run, indices)} on {counted(len(indices), 'example')} "
            f"({(own < 0).sum()} worse, {(own > 0).sum()} better), while the other {len(others)} rose by "
            f"{others.mean():.3f}: too few to say that it lost, enough to say that it did not gain as they did."
        )
        fell = own.mean() < 0 < others.mean() and (own < 0).sum() > (own > 0).sum()
        finding = Finding("kind_lost", sentence, "kinds", 2) if fell else None
        tests.append(Tested(_below(differences, indices), 1 / _PERMUTATIONS, finding, f"kind {name}"))
    return tests


def _below(differences: np.ndarray, indices: np.ndarray) -> float:
    """One-sided p-value that the mean of some examples is below that of the others, by permutation (fixed seed)."""
    rng = np.random.default_rng(0)
    own = differences[indices].sum()
    size, count = len(indices), 0
    for _ in range(_PERMUTATIONS // 1000):
        order = rng.random((1000, len(differences))).argpartition(size - 1, axis=1)[:, :size]
        count += int((differences[order].sum(1) <= own + 1e-9).sum())
    return (count + 1) / (_PERMUTATIONS + 1)


def _kinds(run: RunFiles) -> dict[str, np.ndarray]:
    """Indices of examples by kind, where there are several kinds, and enough examples of each."""
    groups = groups_of(run.examples, lambda row: row["kind"])
    if len(groups) < 2:
        return {}
    return {name: indices for name, indices in groups.items() if len(indices) >= _FEWEST}


def _before_after(run: RunFiles, indices: Sequence[int] | np.ndarray) -> str:
    before, after = (np.mean([run.examples[index][side]["score"] for index in indices]) for side in ("before", "after"))
    return f"{before:.3f} to {after:.3f}"


def _most_of(run: RunFiles, differences: np.ndarray) -> str:
    """Which kind most of the worse examples are of; "" where there is no such kind."""
    worse = {name: int((differences[indices] < 0).sum()) for name, indices in _kinds(run).items()}
    total = int((differences < 0).sum())
    name = max(worse, key=lambda name: worse[name], default="")
    return f"; {worse[name]} of the worse are of the kind {plain(name)}" if name and 2 * worse[name] > total else ""
