"""Objective of a run: whether its costs can be measured, and what requests it allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optimas_jax.core.component import ComponentFailure
from optimas_jax.core.objective import MEASURES, Objective
from optimas_jax.core.progress import Progress
from optimas_jax.core.schema import ConfigError
from optimas_jax.core.system import System
from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.llm.accounts.prices import Price, price_of
from optimas_jax.llm.base import Completion, CompletionRequest
from optimas_jax.llm.component import models_of
from optimas_jax.llm.providers import models_named
from optimas_jax.llm.specs import is_served, served
from optimas_jax.llm.tapes.taped import TapedCompleter
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.setup.completers import own_prices

_WHERE = "config.optimize.objective"


def check_objective(config: RunConfig, system: System) -> None:
    """Checks that the costs in the objective can be measured.

    Raises:
      ConfigError: a cap of an unknown component, a cost of a component with a model client of its own, or a weight
        beside recorded calls, which have no cost to be weighed.
    """
    objective = config.optimize.objective
    if config.traces and (weighed := [name for name in MEASURES if getattr(objective, name)]):
        raise ConfigError(
            f"{', '.join(f'{_WHERE}.{name} is {getattr(objective, name):g}' for name in weighed)}, and there are "
            "recorded calls (config.traces), whose cost is not known: their labels would be too high beside calls that "
            f"cost something. Set {', '.join(f'{name} = 0' for name in weighed)} (limits, such as max_tokens, may "
            "stay), or leave the traces out"
        )
    if unknown := [name for name in objective.caps if name not in system.by_name]:
        raise ConfigError(
            f"{_WHERE}.prompt_tokens_of names {', '.join(map(repr, unknown))}; components are "
            f"{', '.join(system.by_name)}"
        )
    unmetered = [name for name, component in system.by_name.items() if not component.metered]
    if unmetered and (paid := [name for name in objective.measured if name != "seconds"]):
        raise ConfigError(
            f"{_settings(objective, paid)}, and {', '.join(unmetered)} may ask models by clients of their own, whose "
            f"tokens and dollars are not counted: set {_none(objective, paid)}, or let an optimas_jax.prompt ask the "
            "model"
        )


def check_measurable(config: RunConfig, system: System) -> None:
    """Checks that the models report the costs that the objective needs.

    Raises:
      ConfigError: dollars of a model without a price, or of local models, which have none; seconds of a local engine.
    """
    objective = config.optimize.objective
    specs = tuple(dict.fromkeys((*models_of(system).values(), *models_named(system))))
    local = [spec for spec in specs if not is_served(spec)]
    if "seconds" in objective.measured and local:
        raise ConfigError(
            f"{_settings(objective, ['seconds'])}, and {local[0]} answers in a batch that all runs share: the seconds "
            f"of one run are no measurement. Set {_none(objective, ['seconds'])}, or tokens in their place"
        )
    if "dollars" not in objective.measured:
        return
    unknown = [spec for spec in served(specs) if price_of(spec, own_prices(config)) is None]
    if unknown:
        raise ConfigError(f"{_settings(objective, ['dollars'])}, and {_no_price(unknown[0])}")
    if specs and not served(specs):
        raise ConfigError(
            f"{_settings(objective, ['dollars'])}, and all models are local, which cost none: set tokens in their place"
        )


def tell_noise(config: RunConfig, progress: Progress) -> None:
    """Shows a line that seconds are noisy, where they are part of the objective."""
    if "seconds" in config.optimize.objective.measured:
        progress.line(
            "the objective has seconds, which are noisy: they are those of the hour in which a run asked, with up to "
            f"{config.concurrency} calls beside it (config.concurrency)"
        )


def is_shared(system: System) -> bool:
    """Whether a local engine answers requests; all runs share its batches."""
    return any(not is_served(spec) for spec in (*models_of(system).values(), *models_named(system)))


def _settings(objective: Objective, measures: list[str]) -> str:
    names = [name for measure in measures for name in (measure, f"max_{measure}") if getattr(objective, name)]
    return ", ".join(f"{_WHERE}.{name} is {getattr(objective, name):g}" for name in names)


def _none(objective: Objective, measures: list[str]) -> str:
    names = [name for measure in measures for name in (measure, f"max_{measure}") if getattr(objective, name)]
    return ", ".join(f"{name} = 0" for name in names)


def _no_price(spec: str) -> str:
    return (
        f"no price of {spec} is known: set config.prices to {spec}=PROMPT/COMPLETION, in US dollars per million tokens"
    )


def prompt_size(completer: Any, request: CompletionRequest) -> int:
    """Tokens of a request's prompt; an upper bound where no tokenizer is known (``request.most``)."""
    exact = completer.prompt_tokens(request)
    return request.most().prompt_tokens if exact is None else exact


class ObjectiveCompleter:
    """The completer of a system under an objective: sends no request above a cap, and stops the run where a cost is
    not reported."""

    def __init__(self, inner: TapedCompleter, objective: Objective, system: System, prices: Mapping[str, Price]):
        self._inner, self._objective, self._prices = inner, objective, prices
        self._components = frozenset(system.by_name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def complete(self, request: CompletionRequest) -> Completion:
        """Answers one request; raises what ``TapedCompleter.complete`` raises.

        Raises:
          ComponentFailure: its prompt is above the component's cap.
          StopRun: the price of its model is unknown, or the server does not say what the answer used, and the
            objective needs that. The answer is on the tape.
        """
        if request.role not in self._components:  # a request of the metric, which is no part of a run's cost
            return await self._inner.complete(request)
        cap = self._objective.cap(request.role)
        if cap and (size := prompt_size(self._inner, request)) > cap:
            raise ComponentFailure(Outcome.OVER_BUDGET, f"its prompt has {size:,} tokens, and its cap is {cap:,}")
        completion = await self._inner.complete(request)
        needed = [name for name in self._objective.measured if name != "seconds"]
        if "dollars" in needed and is_served(request.model) and price_of(request.model, self._prices) is None:
            raise StopRun(f"{_settings(self._objective, ['dollars'])}, and {_no_price(request.model)}")
        if needed and completion.estimated:
            raise StopRun(
                f"{_settings(self._objective, needed)}, and the server of {request.model} does not say how many tokens "
                f"an answer used (usage): set {_none(self._objective, needed)}, or ask a server that tells"
            )
        return completion


def under_objective(config: RunConfig, system: System, completer: TapedCompleter) -> Any:
    """The completer of a system under the objective of its run; the completer itself where there is none."""
    objective = config.optimize.objective
    if objective == Objective():
        return completer
    return ObjectiveCompleter(completer, objective, system, own_prices(config))
