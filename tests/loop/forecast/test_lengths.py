"""Lengths of answers that a local model gives to requests of a rehearsal."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from pathlib import Path

import pytest
from fakes import request
from runs import get_config

from optimas_jax.checkpoints.export import export
from optimas_jax.checkpoints.sources import resolve
from optimas_jax.core.progress import Progress
from optimas_jax.core.running import event_loop
from optimas_jax.engine.pool import Engines
from optimas_jax.engine.speed import EngineSpeed
from optimas_jax.llm.base import CompletionRequest
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.loop.config import parse_config
from optimas_jax.loop.forecast.imagined import World, imagined_tokens
from optimas_jax.loop.forecast.lengths import FirstRequests, measure_lengths
from optimas_jax.loop.forecast.plan import EXPECTED, plan_run
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.report.console import ConsoleProgress

RANDOM = "random:0"
QUIET: Progress = ConsoleProgress(quiet=True)
FAST = EngineSpeed(prompt=(0.0, 0.0), prompts=0.0, step=((0.0, 0.0),) * 4)


def asked(text: str, role: str = "answer", **changes: object) -> CompletionRequest:
    settings = {"model": RANDOM, "max_tokens": 40, "temperature": 1.0, "role": role, "stop": ("e",), **changes}
    return dataclasses.replace(request(text), **settings)  # type: ignore[arg-type]


def seen(*requests: CompletionRequest) -> FirstRequests:
    first = FirstRequests()
    for one in requests:
        first.see(one)
    return first


def measured(first: FirstRequests, model: str = RANDOM, speed: EngineSpeed | None = FAST):
    return measure_lengths(first, [model], lambda one: 10, {model: speed} if speed else {}, QUIET)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in a folder, as the hub has them."""
    export(resolve(RANDOM), tmp_path / "model")
    return tmp_path / "model"


def test_lengths_are_those_of_the_model_s_answers() -> None:
    requests = [asked(f"Say {number}.", "answer" if number % 2 else "judge") for number in range(6)]
    lengths, unknown = measured(seen(*requests))
    assert unknown == ()
    completer = LocalCompleter(RANDOM, lambda: Engines(MeshConfig(1), QUIET).sampler(RANDOM))
    for role, own in (("judge", requests[::2]), ("answer", requests[1::2])):
        answers = [event_loop.run(completer.complete(one)) for one in own]
        assert lengths[RANDOM, role] == tuple(answer.completion_tokens for answer in answers)
    completer.close()
    assert min(map(min, lengths.values())) < 40  # a stop text ended some


def test_a_rehearsal_s_answers_have_measured_lengths_where_there_are_any() -> None:
    world = dataclasses.replace(EXPECTED, lengths={("here", "answer"): (10, 30)})
    drawn = [imagined_tokens(asked(f"{number}", model="here"), world) for number in range(40)]
    assert set(drawn) == {10, 30} and 10 < drawn.count(10) < 30
    assert {imagined_tokens(asked(f"{number}", model="here", max_tokens=20), world) for number in range(40)} == {10, 20}
    assert imagined_tokens(asked("x", model="here", role="judge"), world) == 24
    assert imagined_tokens(asked("x", model="there"), world) == 24
    assert imagined_tokens(asked("x", model="there", max_tokens=4000), world) == 240
    assert imagined_tokens(asked("x"), World(0, 0, 0, 0, 0, lengths={(RANDOM, "answer"): (4,)})) == 40


def test_eight_requests_of_a_role_are_asked_and_none_with_an_adapter() -> None:
    requests = [asked(f"{number}", role) for number in range(20) for role in ("a", "b")]
    first = seen(*requests, asked("x", "c", adapter="y"))
    assert [one.role for one in first.of(RANDOM)] == ["a"] * 8 + ["b"] * 8
    assert first.of("another") == []


def test_models_that_are_not_here_or_take_long_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def why(model: str = RANDOM, speed: EngineSpeed | None = FAST) -> str:
        lengths, [sentence] = measured(seen(asked("x", model=model)), model, speed)
        assert lengths == {} and sentence.startswith(f"lengths of answers of {model} are assumed: ")
        return sentence.partition("assumed: ")[2]

    assert why("hf:org/model-1M") == "it is not on this machine, or a model of the hub, which may have changed"
    assert (
        why(speed=EngineSpeed(prompt=(1.0, 1.0), prompts=0.0, step=((2.0, 2.0),) * 4))
        == "a few answers would take 90 s"
    )
    assert why(speed=None) == "its speed is not known"
    monkeypatch.setattr("optimas_jax.engine.speed.free_memory", lambda device: 1000)
    assert "are free, half of which may be taken" in why()
    assert measured(FirstRequests()) == ({}, ())


def test_a_request_that_the_model_refuses_leaves_others_measured() -> None:
    lengths, [sentence] = measured(seen(asked("word " * 3000, "long"), asked("x", "short")))
    assert list(lengths) == [(RANDOM, "short")] and "assumed: long: " in sentence and "model's context" in sentence


def test_a_model_without_weights_is_loaded_once_and_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()
    loads, load = [], Engines.load
    monkeypatch.setattr(Engines, "load", lambda self, spec: loads.append(spec) or load(self, spec))
    requests = [asked(f"{number}", model=str(folder)) for number in range(8)]
    lengths, [sentence] = measured(seen(*requests), str(folder))
    assert lengths == {} and str(folder) in sentence and loads == [str(folder)]


def test_nothing_of_the_model_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    made, before = [], set(threading.enumerate())  # some of other tests
    sampler = Engines.sampler
    monkeypatch.setattr(Engines, "sampler", lambda self, spec: made.append(weakref.ref(self)) or sampler(self, spec))
    measured(seen(asked("x")))
    gc.collect()
    assert len(made) == 1 and made[0]() is None
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("local-engine")]


def test_a_plan_has_the_lengths_of_a_model_s_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimas_jax.loop.forecast.rates._of_this_machine", lambda config: FAST)
    settings = get_config("smoke").to_dict()
    settings["system"]["language_model"]["model"] = str(folder)
    settings["optimize"].update(score="off", iterations=0)
    host = plan_run(parse_config(settings)).host
    (folder / "model.safetensors").unlink()
    assumed = plan_run(parse_config(settings)).host
    tokens = [plan.steps["evaluate"].expected.completion_tokens for plan in (host, assumed)]
    assert tokens[0] / tokens[1] == pytest.approx(1 / 0.6, rel=0.1)  # the model's answers go on to their limits
    sentences = [[line for line in plan.unknown if "lengths of answers" in line] for plan in (host, assumed)]
    assert sentences[0] == [] and len(sentences[1]) == 1
