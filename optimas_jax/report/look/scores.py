"""Rules on scores: examples that got worse, as a whole and by kind."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np

from optimas_jax.core.stats import mean_interval
from optimas_jax.report.look.examples import Row, above_zero, change, groups_of
from optimas_jax.report.look.finding import Claim, Finding, plain
from optimas_jax.report.look.texts.sorts import has_number, text_of
from optimas_jax.report.page.text import counted, interval
from optimas_jax.report.run_files import RunFiles


@dataclasses.dataclass(frozen=True)
class Kind:
    """Examples of one kind: its name as a sentence begins with it, and their indices."""

    name: str
    indices: np.ndarray


_FEWEST = 4  # examples of a kind
_FALL = 0.2  # share of a kind's score from which on a fall is worth a line, even if its own examples do not prove it
_PERMUTATIONS = 4_000


def whole_lost(run: RunFiles) -> list[Claim]:
    """The examples got worse as a whole: more than chance would make them."""
    differences = change(run.examples)
    if not len(differences):
        return []

    def finding() -> Finding:
        mean, bounds = mean_interval(differences)
        worse, better = int((differences < 0).sum()), int((differences > 0).sum())
        sentence = (
            f"{counted(worse, 'example')} of {len(differences)} got worse and {better} better: the score fell by "
            f"{-mean:.3f}, 95 % interval of the change {interval(bounds)}{_most_of(run, differences)}."
        )
        return Finding("worse", sentence, "flips", 1)

    return [Claim(*above_zero(-differences), finding)]


def kinds_lost(run: RunFiles) -> list[Claim]:
    """A kind of examples lost, by a paired test."""
    differences = change(run.examples)

    def finding(kind: Kind) -> Finding:
        _, bounds = mean_interval(differences[kind.indices])
        sentence = f"{kind.name} lost: {_before_after(run, kind)}, 95 % interval of the change {interval(bounds)}."
        return Finding("kind_lost", sentence, "kinds", 2)

    return [
        Claim(
            *above_zero(-differences[kind.indices]),
            partial(finding, kind) if differences[kind.indices].mean() < 0 else None,
            kind.name,
            frozenset(kind.indices.tolist()),
        )
        for kind in _kinds(run)
    ]


def kinds_left_behind(run: RunFiles) -> list[Claim]:
    """A kind fell while the others gained: its examples may be too few for a test of their own, but not for a test
    against all others."""
    differences = change(run.examples)

    def test(kind: Kind) -> Claim:
        """Claim that a kind fell, by a test against all other examples."""
        rest = np.setdiff1d(np.arange(len(differences)), kind.indices)
        of_kind, others = differences[kind.indices], differences[rest]

        def finding() -> Finding:
            sentence = (
                f"{kind.name} fell, {_before_after(run, kind)}, while the other {len(others)} rose by "
                f"{others.mean():.3f}: too few to say that it lost, enough to say that it did worse than they."
            )
            return Finding("kind_lost", sentence, "kinds", 2)

        before = np.mean([run.examples[index]["before"]["score"] for index in kind.indices])
        fell = (
            of_kind.mean() <= -_FALL * before
            and of_kind.mean() < 0 < others.mean()
            and (of_kind < 0).sum() > (of_kind > 0).sum()
        )
        about = kind.name, frozenset(kind.indices.tolist())
        p_value = _below(differences, kind.indices) if fell else 1.0
        return Claim(p_value, 1 / _PERMUTATIONS, finding if fell else None, *about)

    kinds = _kinds(run) if differences.any() else ()
    return [test(kind) for kind in kinds if len(differences) - len(kind.indices) >= _FEWEST]


def _below(differences: np.ndarray, indices: np.ndarray) -> float:
    """One-sided p-value that the mean of some examples is below the mean of the others: Welch's t by permutation (fixed
    seed), because the spreads of kinds differ."""
    rng = np.random.default_rng(0)
    order = np.concatenate([indices, np.setdiff1d(np.arange(len(differences)), indices)])
    seen, count = _welch(differences[order][None], len(indices))[0], 0
    for _ in range(_PERMUTATIONS // 500):
        drawn = rng.permuted(np.tile(differences, (500, 1)), axis=1)
        count += int((_welch(drawn, len(indices)) <= seen + 1e-9).sum())
    return (count + 1) / (_PERMUTATIONS + 1)


def _welch(values: np.ndarray, size: int) -> np.ndarray:
    """[rows] mean of the first ``size`` of [rows, n] values minus the mean of the rest, in standard errors."""
    first, rest = values[:, :size], values[:, size:]
    error = np.sqrt(first.var(1, ddof=1) / size + rest.var(1, ddof=1) / rest.shape[1])
    return (first.mean(1) - rest.mean(1)) / np.maximum(error, 1e-9)


def _kinds(run: RunFiles) -> list[Kind]:
    """Kinds of examples: the kinds of the benchmark or, where it has none, examples with and without a number in the
    gold answer. Empty where there are not several kinds; kinds with too few examples are left out."""
    groups = groups_of(run.examples, lambda row: f"The kind {plain(row['kind'])}" if row["kind"] else "")
    if len(groups) < 2:
        groups = groups_of(run.examples, _gold_sort)
    return [Kind(name, indices) for name, indices in groups.items() if len(indices) >= _FEWEST and len(groups) > 1]


def _gold_sort(row: Row) -> str:
    gold = [text_of(value) for value in row["gold"].values()]
    if not gold:
        return ""
    return f"The sort of examples with {'a' if any(map(has_number, gold)) else 'no'} number in the gold answer"


def _before_after(run: RunFiles, kind: Kind) -> str:
    sides = [np.array([run.examples[index][side]["score"] for index in kind.indices]) for side in ("before", "after")]
    change = sides[1] - sides[0]
    return (
        f"{sides[0].mean():.3f} to {sides[1].mean():.3f} on {counted(len(change), 'example')}, "
        f"{(change < 0).sum()} worse, {(change > 0).sum()} better"
    )


def _most_of(run: RunFiles, differences: np.ndarray) -> str:
    """Clause that names the kind of most of the worse examples; "" where there is no such kind."""
    groups = groups_of(run.examples, lambda row: row["kind"])
    worse = {name: int((differences[indices] < 0).sum()) for name, indices in groups.items()}
    name = max(worse, key=lambda name: worse[name], default="")
    most = len(groups) > 1 and 2 * worse[name] > (differences < 0).sum()
    return f"; {worse[name]} of the worse are of the kind {plain(name)}" if most else ""
