"""Values that can be listed: grids of hyper-parameters and named models.

Up to ``GRID_LIMIT`` values are all tried. Beyond that TPE (Bergstra et al., 2011; by ``optuna``) decides which.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optimas_jax.core.types import StopRun
from optimas_jax.core.values import Choice, Grid, Hyperparameters, Models, PerInstance, Value, other_values

GRID_LIMIT = 32  # values
_AT_ONCE = 4  # points that TPE names before it sees their scores: they share the batches of what scores them
_MODEL = "model"  # the setting of a grid that names one

Point = dict[str, Any]
Scores = Callable[[Sequence[Point]], Sequence[float]]


def propose_values(
    space: Grid | Models,
    current: Value,
    gains: Callable[[Sequence[Value]], Sequence[float]],
    *,
    trials: int,
    seed: int,
) -> list[Value]:
    """All other values, or beyond ``GRID_LIMIT`` those that TPE came upon in ``trials`` points.

    ``gains`` scores values on training inputs; only TPE calls it.
    """
    if len(space) <= GRID_LIMIT:
        return other_values(space, current)
    if isinstance(space, Models):
        tried = maximise(
            {"name": space.names},
            lambda points: gains([Choice(point["name"]) for point in points]),
            trials=trials,
            seed=seed,
        )
        found: list[Value] = [Choice(point["name"]) for point, _ in tried]
    else:
        tried = maximise(
            space.settings, lambda points: gains([Hyperparameters(point) for point in points]), trials=trials, seed=seed
        )
        found = [Hyperparameters(point) for point, _ in tried]
    return [value for value in found if value != current]


def per_instance_value(space: Grid | Models, current: Value, reward: str, mode: str) -> PerInstance | None:
    """The choice among all models for each input, the other settings as they are; None where the space does not name
    two models."""
    if isinstance(space, Models):
        values = list(space.values())
    elif _MODEL in space.settings:
        settings = current.settings if isinstance(current, Hyperparameters) else next(space.values()).settings
        values = [Hyperparameters({**settings, _MODEL: name}) for name in space.settings[_MODEL]]
    else:
        return None
    return PerInstance(tuple(values), reward, mode=mode) if len(values) > 1 else None  # type: ignore[arg-type]


def maximise(
    options: Mapping[str, Sequence[Any]], scores: Scores, *, trials: int, seed: int
) -> list[tuple[Point, float]]:
    """Looks for the point of a product with the highest score.

    Args:
      options: what each coordinate may be: numbers, words or booleans.
      scores: of points, higher is better.
      trials: points that may be looked at, repetitions included. If the product has no more, all are looked at, in
        order.

    Returns:
      The different points that were scored, with their scores, in the order of looking.
    """
    if math.prod(map(len, options.values())) <= trials:
        points = [dict(zip(options, point, strict=True)) for point in itertools.product(*options.values())]
        return list(zip(points, scores(points), strict=True))
    optuna = _optuna()
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    )
    found: dict[tuple, tuple[Point, float]] = {}
    for start in range(0, trials, _AT_ONCE):
        asked = [study.ask() for _ in range(min(_AT_ONCE, trials - start))]
        points = [
            {name: trial.suggest_categorical(name, list(allowed)) for name, allowed in options.items()}
            for trial in asked
        ]
        fresh = {tuple(point.values()): point for point in points if tuple(point.values()) not in found}
        for (key, point), score in zip(fresh.items(), scores(list(fresh.values())) if fresh else (), strict=True):
            found[key] = (point, score)
        for trial, point in zip(asked, points, strict=True):
            study.tell(trial, found[tuple(point.values())][1])
    return list(found.values())


def check_tpe(why: str) -> None:
    """Raises ``StopRun`` if TPE is needed, for the reason given, and not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise StopRun(f"{why}, by TPE, which needs optuna: pip install 'optimas_jax[tpe]'")


def _optuna() -> Any:
    check_tpe("more points are searched than may be tried")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would write a line for every point
    return optuna
