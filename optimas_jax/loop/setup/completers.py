"""Builds the completer of a run, and validates models, keys and prices before any request is sent.

Imports no array library, so that an error comes at once."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.core.schema import ConfigError
from optimas_jax.core.selection import LIKELIHOOD, OWN_REWARD
from optimas_jax.llm.accounts.prices import Price, parse_prices, price_of
from optimas_jax.llm.base import Completer
from optimas_jax.llm.clients.anthropic import AnthropicCompleter
from optimas_jax.llm.clients.errors import SETTINGS
from optimas_jax.llm.clients.openai import OpenAICompleter
from optimas_jax.llm.clients.remote import ServerConfig
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.llm.providers import RoutedCompleter, check_models
from optimas_jax.llm.specs import KEYS, LOCAL, provider, served
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.journal import ADAPTERS, TAPE

_OTHER_FILES = 128  # open files of a run beside its connections


def check_completers(config: RunConfig, workdir: Path, choices: Sequence[str] = (), *, keys: bool = True) -> None:
    """Checks the provider, key and price of every model that a run may ask.

    Args:
      workdir: the run folder. If it has a tape already, keys may be missing: the tape may have every answer.
      choices: models that components may choose from, where the system is known (``llm.providers.models_named``).
      keys: whether keys are needed, if there is no tape.

    Raises:
      ConfigError: names the model, the variable or the setting, and a remedy.
    """
    named = language_models(config)
    specs = answering(config, choices)
    try:
        check_models(specs, _servers(config), keys=keys and not (workdir / TAPE).is_file())
        prices = own_prices(config)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for model in named:
        if provider(model.model) == "anthropic" and model.style == "text":
            raise ConfigError(
                f"{model.model} answers turns of a conversation, and its style is 'text': set style = chat, for "
                "example --config.system.language_model.style=chat"
            )
    _check_weights(config)
    _check_connections(config, specs)
    unknown = [spec for spec in served(specs) if price_of(spec, prices) is None]
    if unknown and config.budget.usd:
        raise ConfigError(
            f"config.budget.usd is {config.budget.usd}, and no price of {', '.join(unknown)} is known: set "
            f"config.prices to {unknown[0]}=PROMPT/COMPLETION, in US dollars per million tokens"
        )


def _check_connections(config: RunConfig, specs: Sequence[str]) -> None:
    """Raises ``ConfigError`` if requests to a server would wait for a connection, or connections for a file."""
    names = sorted({provider(spec) for spec in specs} - {""})
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if names and files != resource.RLIM_INFINITY and config.concurrency + _OTHER_FILES > files:
        raise ConfigError(
            f"config.concurrency is {config.concurrency}, and this process may open {files} files, of which each "
            f"connection is one: run ulimit -n {config.concurrency + _OTHER_FILES} before it, or set "
            f"config.concurrency to at most {files - _OTHER_FILES}"
        )
    for name in names:
        connections = _servers(config)[name].connections
        if connections and connections < config.concurrency:
            setting = f"{SETTINGS[name]}.connections"
            raise ConfigError(
                f"{setting} is {connections}, and config.concurrency is {config.concurrency}: of so many calls, most "
                f"would wait for a connection. Leave {setting} at 0, which follows the concurrency, or set "
                f"config.concurrency to at most {connections}"
            )


def _check_weights(config: RunConfig) -> None:
    """Checks that trained models are local, and that the server of a tuned model loads adapters.

    Raises:
      ConfigError: names the setting, and a remedy.
    """
    for setting, model in (("reward", config.reward.model), ("policy", config.policy.model)):
        if model and provider(model):
            raise ConfigError(
                f"config.{setting}.model is {model!r}, which answers requests and cannot be trained here: give "
                + " or ".join((*(f"{kind}:NAME" for kind in LOCAL), "a path"))
            )
    language_model, weights = getattr(config.system, "language_model", None), getattr(config.system, "weights", "")
    if language_model is None or not weights or not provider(language_model.model):
        return
    model = language_model.model
    if provider(model) == "anthropic" or not config.server.base_url:
        raise ConfigError(
            f"config.system.weights is {weights!r} and {model} answers, which loads no adapters: name a local model, "
            "or set config.server.base_url to the address of a server of your own"
        )
    if not config.policy.model:
        raise ConfigError(
            f"config.system.weights is {weights!r} and {model} answers: set config.policy.model "
            "to the spec of the weights behind it, which are tuned here"
        )


def answering(config: RunConfig, choices: Sequence[str] = ()) -> list[str]:
    """Models that may be asked: of the system, of proposers, and ``choices``; some more than once. ``models`` of a
    system's settings, where it has that field, are specs."""
    models = [model.model for model in language_models(config)]
    return [*models, *getattr(config.system, "models", ()), *_api_models((config.system, config.proposer)), *choices]


def loaded_here(config: RunConfig, choices: Sequence[str] = ()) -> tuple[str, ...]:
    """Local models that a run loads, each once: for answers, for local rewards, and for tuning."""
    specs = [spec for spec in answering(config, choices) if not provider(spec)]
    rewards = [config.reward.model] if loads_reward_model(config) else []
    tuned = [config.policy.model] if config.policy.model else []
    return tuple(dict.fromkeys((*specs, *rewards, *tuned)))


def loads_reward_model(config: RunConfig) -> bool:
    """Whether ``optimize.score`` is a local reward or likelihood."""
    return config.optimize.score in ("local", LIKELIHOOD, OWN_REWARD)


def without_price(config: RunConfig, choices: Sequence[str] = ()) -> list[str]:
    """Models without a known price, whose dollars are not counted."""
    specs = served(answering(config, choices))
    return [spec for spec in specs if price_of(spec, own_prices(config)) is None]


def make_completer(
    config: RunConfig, workdir: Path, say: Callable[[str], None], load: Callable[[str], Any]
) -> RoutedCompleter:
    """The completer of a run. No client is made and no model loaded before its first request.

    Args:
      workdir: the run folder; requests may name its adapters.
      say: callback for messages to the user.
      load: returns the engine (``engine.sampler.Sampler``) of a local model.
    """
    prices, adapters = own_prices(config), workdir / ADAPTERS
    remote: dict[str, Completer] = {
        "openai": OpenAICompleter(config.server, adapters, prices=prices, say=say),
        "anthropic": AnthropicCompleter(config.anthropic, prices=prices, say=say),
    }
    return RoutedCompleter(remote, lambda spec: LocalCompleter(spec, lambda: load(spec), adapters))


def own_prices(config: RunConfig) -> dict[str, Price]:
    """``config.prices``; raises ``ValueError`` if it cannot be read."""
    return parse_prices(config.prices)


def _servers(config: RunConfig) -> dict[str, ServerConfig]:
    return {"openai": config.server, "anthropic": config.anthropic}


def language_models(config: RunConfig) -> list[LanguageModel]:
    """All language models of a configuration."""
    return [leaf for leaf in _leaves((config.system, config.proposer)) if isinstance(leaf, LanguageModel)]


def _leaves(value: Any) -> Iterator[Any]:
    """A configuration and all values in it, nested ones included."""
    yield value
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)


def _api_models(config: Any) -> list[str]:
    """Texts in a configuration that name a model of an API, in language models or lists of choices."""
    return [leaf for leaf in _leaves(config) if isinstance(leaf, str) and leaf.partition(":")[0] in KEYS]
