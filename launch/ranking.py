"""Measures how well few labels estimate the gains of proposals: labels alone, or with random numbers, likelihood or the
local reward on the other inputs.

python launch/ranking.py FOLDER [FOLDER ...] [--components=hint_generator,...] [--inputs=32] [--labels=4]
    [--proposals=8]

Each run folder has a finished search with local rewards. The last local reward is used (after --stage=refresh the
refreshed one), under the configuration that the search ended with, on inputs that it was not trained on. Prints the
mean squared error of the estimated gains relative to the error of labels alone, and the regret of taking the proposal
with the highest estimate, with intervals over the folders, which are runs of several seeds. All figures are written to
a ranking-*.json of each folder. The same command again pays nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from optimas_jax.parallel.large_pages import use_large_pages

if __name__ == "__main__":
    use_large_pages()
# Otherwise transformers reports that torch is absent, which is not needed here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
from absl import app, flags

from optimas_jax.core.stats import two_level_interval
from optimas_jax.core.types import StopRun, derive_seed, digest
from optimas_jax.core.values import LoraSpace
from optimas_jax.loop.journal import BEST, config_of, load_best
from optimas_jax.loop.measurements import LABELS, RANKING_RULES, measure_ranking
from optimas_jax.loop.stages import check_folders, groups_so_far, last_reward, measuring, open_run
from optimas_jax.report.commands import exit_code, parse_flags
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.split import part_of

_COMPONENTS = flags.DEFINE_list("components", [], "Names, separated by commas; default: all but those scored at once.")
_INPUTS = flags.DEFINE_integer("inputs", 32, "Inputs that proposals are tried on.", lower_bound=4)
_LABELS = flags.DEFINE_integer("labels", 4, "Inputs whose global rewards are known.", lower_bound=1)
_PROPOSALS = flags.DEFINE_integer("proposals", 8, "Proposals asked for, most of them by demonstrations.", lower_bound=2)


def measure(folder: Path, progress: ConsoleProgress) -> dict[str, Any]:
    """Rankings of one run folder by component."""
    config = config_of(folder)
    more = dataclasses.replace(config.optimize, demo_sets=_PROPOSALS.value * 3 // 4, instructions=2, best_of=0)
    with open_run(config, folder, progress) as run, measuring(run, "ranking"):
        host, shares = run.host, config.offline.shares
        asking = dataclasses.replace(run, config=dataclasses.replace(config, optimize=more))
        configuration = load_best(folder / BEST)
        reward = last_reward(run, configuration)
        listed = [name for name in host.components if not isinstance(host.system.by_name[name].space, LoraSpace)]
        names = _COMPONENTS.value or [name for name in listed if not host.system.scores_at_once(name)]
        unknown = set(names) - set(listed)
        if unknown:
            raise StopRun(f"no component without weights is named {', '.join(sorted(unknown))}: {', '.join(listed)}")
        examples = [example for example in host.splits["train"] if part_of(example.id, shares) == "report"]
        random.Random(derive_seed(host.seed, "ranking")).shuffle(examples)
        if min(len(examples), _INPUTS.value) <= _LABELS.value:
            raise StopRun(
                f"{folder} has {len(examples)} inputs without training, and --labels={_LABELS.value} of --inputs="
                f"{_INPUTS.value} leave none to estimate on: lower --labels, or raise config.data.train"
            )
        if len(examples) < _INPUTS.value:
            progress.line(f"  {len(examples)} inputs are there, fewer than --inputs={_INPUTS.value}")
        rows = {}
        for name in names:
            groups, inputs = groups_so_far(run), examples[: _INPUTS.value]
            row = measure_ranking(asking, configuration, reward, groups, inputs, name, _LABELS.value)
            if row is not None:
                rows[name] = dataclasses.asdict(row)
            else:
                progress.line(f"  {name} is left out: fewer than two proposals change its outputs")
        if not rows:
            raise StopRun(f"no component of {folder} has two proposals that change its outputs")
        sizes = {"inputs": _INPUTS.value, "labels": _LABELS.value, "proposals": _PROPOSALS.value}
        what = {"reward": reward, "asked": [*names], **sizes}
        host.folder.write(f"ranking-{digest(what)}.json", {**what, "components": rows})
    return rows


def report(runs: list[dict[str, Any]]) -> None:
    """Prints a table in Markdown: by component and over all components, for each rule the error relative to labels
    alone, and the regret."""
    names = [name for name in runs[0] if all(name in rows for rows in runs)]
    if not names:
        raise StopRun("the folders have no component in common whose proposals could be ranked")
    print("| component | rule | error / error of labels alone | regret | regret of labels alone minus this |")
    print("| --- | --- | --- | ---: | --- |")
    for label, members in [*((name, [name]) for name in names), ("all", names)]:
        for rule in RANKING_RULES:
            error, regret = (
                {
                    which: np.array([np.mean([rows[n][field][which] for n in members]) for rows in runs])
                    for which in RANKING_RULES
                }
                for field in ("error", "regret")
            )
            has_error = error[LABELS] > 0  # runs in which labels alone make an error, so that there is a ratio
            ratio = error[rule][has_error] / error[LABELS][has_error]
            less = _mean(regret[LABELS] - regret[rule])
            print(f"| {label} | {rule} | {_mean(ratio)} | {regret[rule].mean():.3f} | {less} |")


def _mean(values: np.ndarray) -> str:
    """Mean, and its interval over several runs."""
    if len(values) < 2:
        return f"{values.mean():.3f}" if len(values) else "no error"
    mean, (low, high) = two_level_interval(values[:, None])
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def main(argv: list[str]) -> int:
    if len(argv) < 2:
        raise app.UsageError("name at least one run folder")
    logging.disable(logging.INFO)  # libraries log too much; progress has its own lines
    return exit_code(partial(compare, [Path(folder) for folder in argv[1:]]))


def compare(folders: Sequence[Path]) -> None:
    """Measures every folder, and prints a table of all of them."""
    check_folders(folders)
    report([measure(folder, ConsoleProgress()) for folder in folders])


if __name__ == "__main__":
    app.run(main, flags_parser=partial(parse_flags, flags))
