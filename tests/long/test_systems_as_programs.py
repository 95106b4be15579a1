"""The five systems as programs: one tape, one set of groups, one result."""

import contextlib
import json
import runpy
import sqlite3
from types import SimpleNamespace

import pytest
from as_program import as_program
from runs import ROOT

from optimas_jax.benchmarks.modules import BENCHMARKS
from optimas_jax.loop.config import parse_config
from optimas_jax.loop.stages import run_stages
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.data import load_groups

pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("rollouts", [1, 3])
def test_a_system_as_a_program_is_the_same_run(tmp_path, name, rollouts):
    file = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))
    data = file["get_config"]("smoke").to_dict()
    data["collect"] |= {"rollouts": rollouts, "temperature": 1.0}
    graph = BENCHMARKS[name]
    program = SimpleNamespace(**{part: getattr(graph, part) for part in dir(graph) if not part.startswith("__")})
    program.build = lambda data, settings: as_program(graph.build(data, settings))
    found = []
    for form, benchmark in (("graph", graph), ("program", program)):
        folder = tmp_path / form
        run_stages(parse_config(data), folder, "all", ConsoleProgress(quiet=True), benchmark=benchmark)
        with contextlib.closing(sqlite3.connect(folder / "tape.sqlite")) as tape:
            keys = sorted(key for (key,) in tape.execute("select key from effects"))
        results = json.loads((folder / "results.json").read_text())
        parts = {part: results[part] for part in ("baseline", "optimized", "gain", "accepted", "confirmed")}
        found.append((keys, load_groups(folder / "groups" / "offline"), parts))
    assert found[0] == found[1]
