"""One completer for models of all kinds: routes each request to the provider or local engine that serves its model."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from optimas_jax.core.system import System
from optimas_jax.core.types import StopRun
from optimas_jax.core.values import Grid, Models
from optimas_jax.llm.base import Completer, Completion, CompletionRequest, count_prompt
from optimas_jax.llm.clients.errors import SETTINGS
from optimas_jax.llm.clients.remote import ServerConfig
from optimas_jax.llm.forms.reasoning import separate
from optimas_jax.llm.specs import KEYS, LOCAL, provider, served


class RoutedCompleter:
    """Sends requests to the clients of providers and to local engines, one engine for each model."""

    def __init__(self, remote: Mapping[str, Completer], local: Callable[[str], Completer]):
        """``remote``: by provider. ``local``: makes the completer of a local model; called once for each."""
        self._remote, self._make_local = remote, local
        self._local: dict[str, Completer] = {}
        self._lock = threading.Lock()

    async def complete(self, request: CompletionRequest) -> Completion:
        """Answers one request; raises ``StopRun`` for a model without a provider or engine."""
        try:
            name = provider(request.model)
        except ValueError as error:
            raise StopRun(str(error)) from None
        if name:
            return await self._remote[name].complete(request)
        return separate(request, await self._local_completer(request.model).complete(request))

    def prompt_tokens(self, request: CompletionRequest) -> int | None:
        """Tokens of a request's prompt, where a local model serves it; else None."""
        try:
            served_here = not provider(request.model)
        except ValueError:
            return None
        return count_prompt(self._local_completer(request.model), request) if served_here else None

    def _local_completer(self, model: str) -> Completer:
        with self._lock:
            if model not in self._local:
                self._local[model] = self._make_local(model)
            return self._local[model]


def check_models(specs: Iterable[str], servers: Mapping[str, ServerConfig], *, keys: bool) -> None:
    """Checks that every model can be served, before anything is paid for. Loads no model and sends no request.

    Args:
      servers: by provider.
      keys: whether API keys must be set; a run that replays its tape needs none.

    Raises:
      ValueError: for an unknown provider, a path that does not exist, or a key that is not set; names every variable.
    """
    specs = tuple(specs)
    for spec in specs:
        if not provider(spec) and spec.partition(":")[0] not in LOCAL and not Path(spec).expanduser().exists():
            raise ValueError(
                f"there is no model at {spec!r}: give a path, or one of "
                + ", ".join(f"{kind}:NAME" for kind in (*KEYS, *LOCAL))
            )
    problems = []
    for name, server in servers.items():
        needed = [spec for spec in served(specs) if provider(spec) == name]
        if keys and needed and not server.base_url and not os.environ.get(KEYS[name]):
            problems.append(
                f"{', '.join(needed)} needs a key: set {KEYS[name]}, or {SETTINGS[name]}.base_url to the address of a "
                "server of your own"
            )
    if problems:
        raise ValueError("\n".join(problems))


def models_named(system: System) -> tuple[str, ...]:
    """Models that components may choose from, in model choices and grids. Names that are no model specs, such as routes
    or tools, are left out."""
    names: list[str] = []
    for component in system.components:
        match component.space:
            case Models(choices):
                names += choices
            case Grid(settings):
                names += [value for values in settings.values() for value in values if isinstance(value, str)]
    return tuple(dict.fromkeys(name for name in names if name.partition(":")[0] in (*KEYS, *LOCAL)))
