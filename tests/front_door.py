"""The front door as tests use it: without a model, quiet."""

import pytest

import optimas_jax as oj
from optimas_jax.core.types import StopRun
from optimas_jax.report.console import ConsoleProgress

ROWS = [{"question": f"q{i}", "wanted": str(i)} for i in range(6)]
MANY = [{"question": f"q{i}", "wanted": str(i)} for i in range(36)]
SETTINGS = {"reward.model": "random:0", "optimize.iterations": 1, "offline.groups": 0, "optimize.score": "off"}


def evaluate(folder, program, metric=lambda outputs: 1.0, rows=ROWS):
    return oj.evaluate(program, metric, rows, workdir=folder)


def optimize(folder, program, metric=lambda outputs: 1.0, rows=MANY):
    """In a fifth of a second, for programs without prompts."""
    model, quiet = oj.LanguageModel("random:0", max_tokens=4), ConsoleProgress(quiet=True)
    return oj.optimize(program, metric, rows, model=model, workdir=folder, config=SETTINGS, progress=quiet)


def said(call):
    """What a call raises, as its type's name and the message."""
    with pytest.raises((ValueError, StopRun)) as caught:
        call()
    return f"{type(caught.value).__name__}: {caught.value}"


def calling(*components, **settings):
    """An ``async`` program that calls components one after the other."""

    async def program(question):
        return {"all": [await one(question) for one in components]}

    return oj.program(program, components=components, **settings)


@oj.component
def search(question):
    """Finds."""
    return [question]
