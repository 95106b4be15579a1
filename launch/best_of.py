"""Best-of-N on examples that no search has seen: what choosing among N outputs of a component brings, by local reward,
by random numbers, by likelihood, and by majority (the output that agrees most with the others).

python launch/best_of.py FOLDER [FOLDER ...] [--components=hint_generator,answer_generator] [--samples=8]
    [--split=test [--split=confirm]]

Each run folder has a finished search with local rewards. The last local reward is used (after --stage=refresh the
refreshed one), under the configuration that the search ended with. Prints mean scores by folder, and the difference
between the local reward and every other rule with its interval: over folders, which are runs of several seeds, and
examples, or over the examples of a single folder. The scores are written to a best_of-*.json of each folder. The same
command again pays nothing.
"""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from optimas_jax.parallel.large_pages import use_large_pages

if __name__ == "__main__":
    use_large_pages()
# Otherwise transformers reports that torch is absent, which is not needed here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
from absl import app, flags

from optimas_jax.core.stats import interval
from optimas_jax.core.types import StopRun, digest
from optimas_jax.core.values import PromptSpace
from optimas_jax.loop.journal import BEST, config_of, load_best
from optimas_jax.loop.measurements import CHOICE_RULES, LOCAL, ONE, measure_choices
from optimas_jax.loop.stages import check_folders, groups_so_far, last_reward, measuring, open_run
from optimas_jax.loop.steps.choosing import not_to_choose
from optimas_jax.report.commands import exit_code, parse_flags
from optimas_jax.report.console import ConsoleProgress

_COMPONENTS = flags.DEFINE_list("components", [], "Names, separated by commas; default: every component with a prompt.")
_SAMPLES = flags.DEFINE_integer("samples", 8, "N: outputs to choose among.", lower_bound=2)
_SPLITS = flags.DEFINE_multi_enum("split", ["test"], ["test", "confirm"], "Examples to measure on; several add up.")

ALLOWED = "local reward, where a search would let it choose"
Scores = dict[str, dict[str, list[float]]]  # by component and rule


def check(folders: Sequence[Path]) -> None:
    """Raises ``StopRun`` for folders that cannot be measured or compared, before anything is paid."""
    check_folders(folders)
    if len(set(_SPLITS.value)) < len(_SPLITS.value):
        raise StopRun(f"--split is {', '.join(_SPLITS.value)}: name each once")
    sizes = {folder: [getattr(config_of(folder).data, split) for split in _SPLITS.value] for folder in folders}
    for folder, size in sizes.items():
        if 0 in size or size != sizes[folders[0]]:
            numbers = ", ".join(f"{split} {count}" for split, count in zip(_SPLITS.value, size, strict=True))
            raise StopRun(
                f"{folder} has examples {numbers}; needed are some in each split, and as many as {folders[0]} has"
            )


def measure(folder: Path, progress: ConsoleProgress) -> Scores:
    """Scores of one run folder's components by rule, example by example."""
    config = config_of(folder)
    with open_run(config, folder, progress) as run, measuring(run, "best_of"):
        configuration = load_best(folder / BEST)
        reward = last_reward(run, configuration)
        prompts = [n for n in run.host.components if isinstance(run.host.system.by_name[n].space, PromptSpace)]
        unknown = set(_COMPONENTS.value) - set(prompts)
        if unknown:
            raise StopRun(f"no component with a prompt is named {', '.join(sorted(unknown))}: {', '.join(prompts)}")
        scores = {
            name: measure_choices(
                run.host,
                configuration,
                name,
                reward,
                [example for split in _SPLITS.value for example in run.host.splits[split]],
                samples=_SAMPLES.value,
                temperature=config.collect.temperature,
            )
            for name in _COMPONENTS.value or prompts
        }
        evidence, names = groups_so_far(run), [*scores]
        refused = not_to_choose(run.host, run.device, config, configuration, reward, evidence, names)
        for name, by_rule in scores.items():
            by_rule[ALLOWED] = by_rule[ONE if name in refused else LOCAL]
        for name, why in refused.items():
            progress.line(f"  {name} would not choose by its local reward: {why}")
        what = {"reward": reward, "components": [*scores], "splits": _SPLITS.value, "samples": _SAMPLES.value}
        run.host.folder.write(f"best_of-{digest(what)}.json", {**what, "refused": refused, "scores": scores})
    return scores


def table(name: str, folders: list[Scores]) -> str:
    """Markdown of one component: mean score of each folder by rule, and the lead of the local reward over each rule."""
    rules = (*CHOICE_RULES, ALLOWED)
    means = {rule: [statistics.fmean(scores[name][rule]) for scores in folders] for rule in rules}
    lines = [
        f"{name}:",
        "",
        "| rule | mean score by run | mean | local reward ahead by |",
        "| --- | --- | ---: | --- |",
    ]
    for rule, row in means.items():
        ahead = ""
        if rule != LOCAL:
            mean, (low, high) = interval([np.subtract(scores[name][LOCAL], scores[name][rule]) for scores in folders])
            ahead = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        lines.append(
            f"| {rule} | {', '.join(f'{score:.3f}' for score in row)} | {statistics.fmean(row):.3f} | {ahead} |"
        )
    return "\n".join([*lines, ""])


def main(argv: list[str]) -> int:
    if len(argv) < 2:
        raise app.UsageError("name at least one run folder")
    logging.disable(logging.INFO)  # libraries log too much; progress has its own lines
    return exit_code(partial(compare, [Path(folder) for folder in argv[1:]]))


def compare(folders: Sequence[Path]) -> None:
    """Measures every folder, and prints a table for each component."""
    check(folders)
    measured = [measure(folder, ConsoleProgress()) for folder in folders]
    for name in dict.fromkeys(name for scores in measured for name in scores):
        print(table(name, [scores for scores in measured if name in scores]))


if __name__ == "__main__":
    app.run(main, flags_parser=partial(parse_flags, flags))
