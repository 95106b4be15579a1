"""Weights of a component that a program calls: tuned as in a graph, saved, and used after loading."""

import dataclasses

import pytest
import weights_run
from rich.console import Console

import optimas_jax as oj
from optimas_jax.core.values import Adapter
from optimas_jax.loop.config import OfflineConfig, OptimizeConfig
from optimas_jax.loop.journal import load_best
from optimas_jax.loop.stages import run_stages
from optimas_jax.programs.declared import DeclarationError
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.search.gate import GateConfig


@pytest.mark.long
def test_weights_of_a_program_s_component_are_tuned_saved_and_loaded(tmp_path):
    write = oj.lora("Write a word.", max_tokens=4)

    async def twice(question):
        """A loop: the component is called once or twice."""
        text = await write(question=question, draft="none")
        return text if len(text) % 2 else await write(question=question, draft=text)

    program = oj.program(twice, components=[write])
    rows = [{"question": f"q{number}"} for number in range(40)]

    def vowels(outputs):
        return sum(letter in "aeiou" for letter in outputs) / max(len(outputs), 1)

    config = weights_run.config(weights="")
    optimize = OptimizeConfig(score="off", iterations=1, inputs=8, gate=GateConfig("none"))
    config = dataclasses.replace(
        config,
        optimize=optimize,
        offline=OfflineConfig(groups=0),
        data=dataclasses.replace(config.data, confirm=0),
        policy=dataclasses.replace(config.policy, updates=2, epochs=1),
    )
    benchmark = oj.benchmark(program, vowels, rows)
    quiet = ConsoleProgress(console=Console(quiet=True))
    run_stages(config, tmp_path / "run", "all", quiet, benchmark=benchmark)
    configuration = load_best(tmp_path / "run" / "best")
    assert isinstance(configuration["write"], Adapter)
    if configuration["write"].digest:
        assert (tmp_path / "run" / "best" / "adapters" / configuration["write"].digest).is_dir()
    best = oj.load(tmp_path / "run" / "best", program)
    assert isinstance(best(question="q0"), str)


def test_an_adapter_needs_an_instruction():
    with pytest.raises(DeclarationError, match="the instruction of a prompt is ''"):
        oj.lora(" ".strip())
