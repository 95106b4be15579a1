"""A system of the user's own, from its file, through a whole run."""

import dataclasses
import json

import pytest
from fakes import ScriptedCompleter
from rich.console import Console
from runs import ROOT

from optimas_jax.benchmarks.modules import find_benchmark
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import OfflineConfig, OptimizeConfig, parse_config
from optimas_jax.loop.stages import run_stages
from optimas_jax.models.config import LoraConfig
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.search.confirm import confirm

FILE = str(ROOT / "configs" / "own_system.py")
OWN_SYSTEM = find_benchmark(FILE)
SORTS = {thing: sort for sort, things in OWN_SYSTEM.THINGS.items() for thing in things.split()}


def answer(request):
    """Knows every thing, but says its sort in one word only when it is shown how."""
    *demos, block = request.messages[-1].content.split("\n\n")
    fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
    if request.role == "sorter":
        sort = SORTS[fields["Thing"]]
        return (
            sort if len(demos) > 1 or (request.temperature > 0 and request.seed % 2) else f"I think that it is a {sort}"
        )
    return "It is of use." if request.role == "describer" else "Say one word."


def config():
    base = parse_config({**OWN_SYSTEM.get_config().to_dict(), "benchmark": FILE})
    model = LanguageModel("scripted", style="text")
    return dataclasses.replace(
        base,
        system=dataclasses.replace(base.system, language_model=model),
        proposer=model,
        reward=RewardConfig("random:0", lora=LoraConfig(rank=4, alpha=8.0), epochs=1),
        data=dataclasses.replace(base.data, train=8, val=6, test=6),
        offline=OfflineConfig(inputs=8, calls=32),
        optimize=OptimizeConfig(components="sorter", iterations=1, inputs=4, instructions=1, demo_sets=1, gate_top=2),
    )


def run(folder):
    model = ScriptedCompleter(answer)
    with (folder.parent / "log").open("a") as log:
        run_stages(config(), folder, "all", ConsoleProgress(Console(file=log)), model)
    return model.requests, json.loads((folder / "results.json").read_text())


def test_what_its_gate_let_pass_is_confirmed_on_examples_of_its_own():
    shipped = parse_config({**OWN_SYSTEM.get_config().to_dict(), "benchmark": FILE})
    splits = OWN_SYSTEM.load(shipped.data).splits
    assert sum(map(len, splits.values())) == len(SORTS) == 42
    before = [0.0] * len(splits["confirm"])
    assert confirm(before, [[*before[:3], *[1.0] * len(before[3:])]]).verdict == "confirmed"  # a gain on all but three


def test_it_is_improved_and_resumes_like_any_other(tmp_path):
    requests, results = run(tmp_path / "run")
    assert (results["benchmark"], results["metric"], results["data"]) == ("own_system", "exact match", "42 words")
    assert results["chance"] == pytest.approx(1 / 3)
    assert results["baseline"]["mean"] == 0.0
    assert results["optimized"]["mean"] == 1.0
    assert (results["confirmed"]["verdict"], results["confirmed"]["n"]) == ("confirmed", 8)
    assert requests
    again, same = run(tmp_path / "run")
    assert not again
    assert same["optimized"] == results["optimized"]
