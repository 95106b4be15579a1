"""Values that can be listed: grids of hyper-parameters and named models.

Up to ``GRID_LIMIT`` values are all tried. Of more values, TPE (Bergstra et al., 2011; by ``optuna``) chooses.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optimas_jax.core.types import StopRun
from optimas_jax.core.values import Choice, Grid, Hyperparameters, Models, PerInstance, Value, other_values

GRID_LIMIT = 32  # most values that are all tried
_AT_ONCE = 4  # points that TPE suggests before it gets their scores, so that they are scored in shared batches
_MODEL = "model"  # the setting of a grid that names a model

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
    """All other values; of more than ``GRID_LIMIT`` the values that TPE scored in ``trials`` points.

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
        proposals: list[Value] = [Choice(point["name"]) for point, _ in tried]
    else:
        tried = maximise(
            space.settings, lambda points: gains([Hyperparameters(point) for point in points]), trials=trials, seed=seed
        )
        proposals = [Hyperparameters(point) for point, _ in tried]
    return [value for value in proposals if value != current]


def per_instance_value(space: Grid | Models, current: Value, reward: str, mode: str) -> PerInstance | None:
    """A ``PerInstance`` value over all models, with the other settings of ``current``; None if the space has fewer than
    two models."""
    values = model_values(space, current)
    return PerInstance(tuple(values), reward, mode=mode) if len(values) > 1 else None  # type: ignore[arg-type]


def model_values(space: Grid | Models, current: Value) -> list[Value]:
    """One value per model, with the other settings of ``current``; empty if the space has no models."""
    if isinstance(space, Models):
        return list(space.values())
    if _MODEL not in space.settings:
        return []
    settings = current.settings if isinstance(current, Hyperparameters) else next(space.values()).settings
    return [Hyperparameters({**settings, _MODEL: name}) for name in space.settings[_MODEL]]


def maximise(
    options: Mapping[str, Sequence[Any]], scores: Scores, *, trials: int, seed: int
) -> list[tuple[Point, float]]:
    """Searches a product of options for the point with the highest score.

    Args:
      options: allowed values of each coordinate: numbers, words or booleans.
      scores: computes the scores of points; higher is better.
      trials: most points to score, repetitions included. A product of at most as many points is scored whole, in order.

    Returns:
      The different points that were scored, with their scores, in the order of scoring.
    """
    if math.prod(map(len, options.values())) <= trials:
        points = [dict(zip(options, point, strict=True)) for point in itertools.product(*options.values())]
        return list(zip(points, scores(points), strict=True))
    optuna = _optuna()
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    )
    scored: dict[tuple, tuple[Point, float]] = {}
    for start in range(0, trials, _AT_ONCE):
        suggestions = [study.ask() for _ in range(min(_AT_ONCE, trials - start))]
        points = [
            {name: trial.suggest_categorical(name, list(allowed)) for name, allowed in options.items()}
            for trial in suggestions
        ]
        fresh = {tuple(point.values()): point for point in points if tuple(point.values()) not in scored}
        for (key, point), score in zip(fresh.items(), scores(list(fresh.values())) if fresh else (), strict=True):
            scored[key] = (point, score)
        for trial, point in zip(suggestions, points, strict=True):
            study.tell(trial, scored[tuple(point.values())][1])
    return list(scored.values())


def check_tpe(why: str) -> None:
    """Raises ``StopRun`` if TPE is needed, for the reason given, and not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise StopRun(f"{why}, by TPE, which needs optuna: pip install 'optimas_jax[tpe]'")


def _optuna() -> Any:
    check_tpe("more points are searched than may be tried")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # by default it writes a line for every point
    return optuna
