"""Lengths of answers that a local model gives to requests of a rehearsal."""

from __future__ import annotations

import dataclasses

import pytest
from fakes import request

from optimas_jax.core.progress import Progress
from optimas_jax.core.running import event_loop
from optimas_jax.engine.pool import Engines
from optimas_jax.engine.speed import EngineSpeed
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.loop.forecast.imagined import World, imagined_tokens
from optimas_jax.loop.forecast.lengths import FirstRequests, measure_lengths
from optimas_jax.loop.forecast.plan import EXPECTED
from optimas_jax.loop.forecast.rates import Waits
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.report.console import ConsoleProgress

RANDOM = "random:0"
QUIET: Progress = ConsoleProgress(quiet=True)


def asked(text: str, role: str = "answer", **changes: object) -> CompletionRequest:
    settings = {"model": RANDOM, "max_tokens": 40, "temperature": 1.0, "role": role, "stop": ("e",), **changes}
    return dataclasses.replace(request(text), **settings)  # type: ignore[arg-type]


def seen(*requests: CompletionRequest) -> FirstRequests:
    first = FirstRequests()
    for one in requests:
        first.see(one)
    return first


def measured(first: FirstRequests, model: str = RANDOM, speeds: dict[str, EngineSpeed] | None = None):
    return measure_lengths(first, [model], lambda one: 10, Waits(speeds or {}), QUIET)


def test_a_length_is_the_mean_share_of_the_limit_that_the_model_s_answers_have() -> None:
    requests = [
        asked(f"Say {number}.", "answer" if number % 2 else "judge", max_tokens=20 + number) for number in range(6)
    ]
    lengths, unknown = measured(seen(*requests))
    assert unknown == ()
    completer = LocalCompleter(RANDOM, lambda: Engines(MeshConfig(1), QUIET).sampler(RANDOM))
    for role, own in (("judge", requests[::2]), ("answer", requests[1::2])):
        answers = [event_loop.run(completer.complete(one)) for one in own]
        shares = [answer.completion_tokens / one.max_tokens for answer, one in zip(answers, own, strict=True)]
        assert lengths[RANDOM, role] == pytest.approx(sum(shares) / 3)
    completer.close()
    assert len(set(lengths.values())) == 2 and min(lengths.values()) < 1.0  # a stop text ended some


def test_a_rehearsal_s_answers_have_measured_lengths_where_there_are_any() -> None:
    world = dataclasses.replace(EXPECTED, lengths={("here", "answer"): 0.1})
    assert imagined_tokens(asked("x", model="here"), world) == 4
    assert imagined_tokens(asked("x", model="here", role="judge"), world) == 24
    assert imagined_tokens(asked("x", model="there"), world) == 24
    assert imagined_tokens(asked("x", model="there", max_tokens=4000), world) == 240
    assert imagined_tokens(asked("x"), World(0, 0, 0, 0, lengths={(RANDOM, "answer"): 0.1})) == 40


def test_eight_requests_of_a_role_are_asked_and_none_with_an_adapter() -> None:
    first = seen(
        *[asked(f"{number}", role) for number in range(20) for role in ("a", "b")], asked("x", "c", adapter="y")
    )
    assert [one.role for one in first.of(RANDOM)] == ["a"] * 8 + ["b"] * 8
    assert first.of("another") == []


def test_models_that_are_not_here_or_take_long_are_not_asked() -> None:
    away = "hf:org/model-1M"
    assert measured(seen(asked("x", model=away)), away) == (
        {},
        (f"lengths of answers of {away} are assumed: its weights are not on this machine",),
    )
    slow = EngineSpeed(prompt=1.0, step=((2.0, 2.0),) * 3)
    lengths, unknown = measured(seen(asked("x")), speeds={RANDOM: slow})
    assert (lengths, unknown) == ({}, (f"lengths of answers of {RANDOM} are assumed: a few answers would take 90 s",))
    assert measured(FirstRequests()) == ({}, ())


def test_a_request_that_the_model_refuses_leaves_lengths_assumed() -> None:
    lengths, unknown = measured(seen(asked("word " * 3000)))
    assert lengths == {} and "exceed the model's context" in unknown[0]
