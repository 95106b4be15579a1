"""Checks of a search before anything is paid for: which components are tuned, and whether their settings fit."""

from __future__ import annotations

from collections.abc import Sequence

from optimas_jax.core.progress import Progress
from optimas_jax.core.schema import ConfigError
from optimas_jax.core.system import System
from optimas_jax.core.text.json_text import shown
from optimas_jax.core.types import Example
from optimas_jax.core.values import Grid, LoraSpace, Models, PromptSpace, nothing_to_tune
from optimas_jax.loop.config import OptimizeConfig, RunConfig
from optimas_jax.search.gate import looks
from optimas_jax.search.optimisers.choices import GRID_LIMIT, check_tpe
from optimas_jax.search.optimisers.demos import is_labelled
from optimas_jax.search.optimisers.registry import proposer_names, why_no_prompts


def check_search(config: RunConfig, system: System, components: Sequence[str], examples: int | None) -> None:
    """Checks the local rewards and the gate of a search before anything is paid for.

    Args:
      examples: validation examples of the gate; None where an own acceptance replaces it.

    Raises:
      ConfigError: weights would be tuned by local rewards that include likelihood.
      ValueError: no proposal could pass the gate on so few validation ``examples``.
    """
    if not config.optimize.iterations:
        return
    if examples is not None:
        looks(config.optimize.gate, examples)
    paid = [name for name in components if isinstance(system.by_name[name].space, LoraSpace)]
    if paid and config.reward.heads == "fitted" and config.optimize.score == "local":
        raise ConfigError(
            f"the weights of {', '.join(paid)} are tuned by local rewards, and config.reward.heads is 'fitted': "
            "likelihood is part of them, and a policy would be paid for likelier outputs. Set "
            "config.reward.heads=trained"
        )


def tell_unmetered(config: RunConfig, system: System, progress: Progress) -> None:
    """Warns of a limit of dollars or tokens that does not hold for components with model clients of their own."""
    limits = {
        "config.budget.usd": config.budget.usd,
        "config.budget.tokens": config.budget.tokens,
        "config.optimize.max_tokens": config.optimize.max_tokens,
    }
    unmetered = [name for name, component in system.by_name.items() if not component.metered]
    if unmetered and (limited := [name for name, limit in limits.items() if limit]):
        progress.line(
            f"warning: {', '.join(unmetered)} may ask models by clients of their own, whose tokens and "
            f"dollars are not counted: {', '.join(limited)} does not limit them, config.budget.calls does"
        )


def tell_no_labels(config: OptimizeConfig, system: System, examples: Sequence[Example], progress: Progress) -> None:
    """Says that no prompt writes a field of the gold answers, so that these become no demonstrations."""
    gold = dict.fromkeys(name for example in examples for name, value in example.gold.items() if isinstance(value, str))
    prompts = [
        component
        for component in system.by_name.values()
        if isinstance(component.space, PromptSpace) and component.space.max_demos
    ]
    if not (gold and prompts and config.demo_sets and config.iterations):
        return
    if not any(is_labelled(component, example) for component in prompts for example in examples):
        outputs = ", ".join(dict.fromkeys(name for component in prompts for name in component.outputs))
        progress.line(
            f"right answers are not used as demonstrations: no prompt writes {', '.join(gold)} (prompts write "
            f"{outputs}). To use them, name the prompt, or a field of its output, like the column"
        )


def chosen_components(system: System, config: OptimizeConfig, progress: Progress) -> tuple[str, ...]:
    """Names of the components to tune. A component with nothing to tune is an error if it is named; ``all`` leaves it
    out.

    Raises:
      ConfigError: if a name is no tunable component, none is left, or ``order`` names another one.
      StopRun: if a large space needs a library that is not installed.
    """
    every = config.components == "all"
    chosen = system.tunable if every else [name.strip() for name in config.components.split(",")]
    unknown = [name for name in chosen if name not in system.tunable]
    if unknown:
        raise ConfigError(
            f"config.optimize.components names {', '.join(map(repr, unknown))}; tunable are {', '.join(system.tunable)}"
        )
    names = []
    for name in (name for name in system.tunable if name in chosen):
        why = _not_tunable(system, name)
        if why and not every:
            raise ConfigError(f"config.optimize.components names {shown(name)}, {why}: leave it out")
        if why:
            progress.line(f"{name} stays as it is, {why}")
            continue
        names.append(name)
        space = system.by_name[name].space
        if isinstance(space, Grid | Models) and len(space) > GRID_LIMIT:
            check_tpe(f"{name} has {len(space)} values; more than {GRID_LIMIT} are searched")
    _check_prompts([name for name in names if isinstance(system.by_name[name].space, PromptSpace)], config)
    _check_global_search(system, config)
    _check_order(names, config)
    if not names:
        raise ConfigError("config.optimize.components is 'all', and no component has anything to tune")
    if "mipro" in proposer_names(config.proposers):
        check_tpe("config.optimize.proposers names mipro, which searches")
    return tuple(names)


def _check_prompts(names: Sequence[str], config: OptimizeConfig) -> None:
    """Raises ``ConfigError`` if there are prompts to tune and no optimiser that can write one."""
    why = why_no_prompts(proposer_names(config.proposers), config.effort)
    if names and why and config.best_of < 2:
        raise ConfigError(
            f"config.optimize.proposers is {shown(config.proposers)} and would write no prompt for {', '.join(names)}: "
            f"{why}. Raise that in config.optimize, name another optimiser, or leave these out of "
            "config.optimize.components"
        )


def _check_global_search(system: System, config: OptimizeConfig) -> None:
    """Raises ``ConfigError`` if ``global_search`` names a component without listed values."""
    listed = [name for name in system.tunable if isinstance(system.by_name[name].space, Grid | Models)]
    unknown = [name for name in config.searched_globally if name not in listed]
    if unknown:
        raise ConfigError(
            f"config.optimize.global_search names {', '.join(map(repr, unknown))}; components with listed values are "
            f"{', '.join(listed) or 'none'}"
        )


def _check_order(names: Sequence[str], config: OptimizeConfig) -> None:
    """Raises ``ConfigError`` if ``order`` names a component that is not tuned."""
    unknown = [name for name in config.first_components if name not in names]
    if unknown:
        raise ConfigError(
            f"config.optimize.order names {', '.join(map(repr, unknown))}; tuned are {', '.join(names) or 'none'}"
        )


def _not_tunable(system: System, name: str) -> str:
    """Why a component has nothing to tune, or ""."""
    component = system.by_name[name]
    if nothing_to_tune(component.space):
        return f"which has one value to choose from, {component.default!r}, and so nothing to tune"
    return ""
