"""Optimas in JAX: improves programs of language model calls, tools and models by globally aligned local rewards.

    import optimas_jax as oj

    draft = oj.prompt("Answer the question from the passages.")

    async def rag(question):
        return await draft(question=question, passages=search(question))

    result = oj.optimize(rag, metric, "questions.jsonl", workdir="runs/rag")
    await result.best(question="...")

Names are imported when they are first used: ``import optimas_jax`` loads no array library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimas_jax.api import Evaluation, aoptimize, benchmark, evaluate, optimize, plan
    from optimas_jax.bridges import dspy
    from optimas_jax.bridges.agent import agent
    from optimas_jax.core.component import ComponentFailure
    from optimas_jax.core.folder import events
    from optimas_jax.core.scoring import Score
    from optimas_jax.core.system import System
    from optimas_jax.core.types import Example
    from optimas_jax.core.values import Demo
    from optimas_jax.llm.accounts.ledger import Budget
    from optimas_jax.llm.component import LanguageModel
    from optimas_jax.llm.forms.images import Image
    from optimas_jax.llm.forms.tools import Reply, ToolCall
    from optimas_jax.programs.functions import component
    from optimas_jax.programs.program import program
    from optimas_jax.programs.prompts import choice, prompt, setting
    from optimas_jax.programs.weights import lora
    from optimas_jax.report.trackers.choose import tracker
    from optimas_jax.result import Result, open_run
    from optimas_jax.saved.agents import api_key, base_url, client, proxy
    from optimas_jax.saved.optimized import Optimized, load
    from optimas_jax.saved.rewards import load_reward
    from optimas_jax.search.hooks import Hooks

_HOMES = {
    "optimas_jax.api": ("Evaluation", "aoptimize", "benchmark", "evaluate", "optimize", "plan"),
    "optimas_jax.bridges.agent": ("agent",),
    "optimas_jax.core.scoring": ("Score",),
    "optimas_jax.core.component": ("ComponentFailure",),
    "optimas_jax.core.system": ("System",),
    "optimas_jax.core.types": ("Example",),
    "optimas_jax.core.values": ("Demo",),
    "optimas_jax.llm.component": ("LanguageModel",),
    "optimas_jax.llm.accounts.ledger": ("Budget",),
    "optimas_jax.llm.forms.images": ("Image",),
    "optimas_jax.llm.forms.tools": ("Reply", "ToolCall"),
    "optimas_jax.programs.functions": ("component",),
    "optimas_jax.programs.program": ("program",),
    "optimas_jax.programs.prompts": ("choice", "prompt", "setting"),
    "optimas_jax.programs.weights": ("lora",),
    "optimas_jax.report.trackers.choose": ("tracker",),
    "optimas_jax.result": ("Result", "open_run"),
    "optimas_jax.saved.agents": ("api_key", "base_url", "client", "proxy"),
    "optimas_jax.saved.optimized": ("Optimized", "load"),
    "optimas_jax.saved.rewards": ("load_reward",),
    "optimas_jax.search.hooks": ("Hooks",),
}
_MODULES = {"dspy": "optimas_jax.bridges.dspy", "events": "optimas_jax.core.folder.events"}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [
    "Budget",
    "ComponentFailure",
    "Demo",
    "Evaluation",
    "Example",
    "Hooks",
    "Image",
    "LanguageModel",
    "Optimized",
    "Reply",
    "Result",
    "Score",
    "System",
    "ToolCall",
    "agent",
    "aoptimize",
    "api_key",
    "base_url",
    "benchmark",
    "choice",
    "client",
    "component",
    "dspy",
    "evaluate",
    "events",
    "load",
    "load_reward",
    "lora",
    "open_run",
    "optimize",
    "plan",
    "program",
    "prompt",
    "proxy",
    "setting",
    "tracker",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
