"""One example of examples/agents, searched: python framework_program.py EXAMPLE ADDRESS FOLDER, in the environment of
its framework. Prints what was found as JSON, in the last line."""

import importlib
import json
import sys
from pathlib import Path

from tool_agents import record  # beside this file

import optimas_jax as oj
from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.types import Example
from optimas_jax.llm.clients.openai import OpenAICompleter
from optimas_jax.llm.clients.remote import ServerConfig
from optimas_jax.report.console import ConsoleProgress

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "agents"))
SETTINGS = {
    "reward.model": "random:0",
    "optimize.iterations": 1,
    "optimize.instructions": 0,
    "optimize.demo_sets": 0,
    "offline.groups": 0,
    "optimize.score": "off",
    "optimize.proposers": "feedback",
    "concurrency": 8,
}


def records(program, rows, address, concurrency):
    """Of the runs on rows."""
    model = OpenAICompleter(ServerConfig(address))
    system = program.system(lambda outputs: 0.0, ("question",), oj.LanguageModel("openai:served")).using(model)
    examples = [Example(f"e{n}", {"question": row["question"]}, {}, "train") for n, row in enumerate(rows)]
    jobs = [Job(system.default_configuration(), one, 0) for one in examples]
    traces = run_many(system, jobs, concurrency=concurrency)
    return [record(trace) for trace in traces], [str(trace.outcome) + trace.feedback for trace in traces]


def main(example, address, folder):
    program, shop = importlib.import_module(example).answer, importlib.import_module("shop")
    alone, outcomes = records(program, shop.ROWS[:16], address, 1)
    together, _ = records(program, shop.ROWS[:16], address, 16)
    result = oj.optimize(
        program,
        shop.grade,
        shop.ROWS,
        model=oj.LanguageModel("openai:served"),
        workdir=folder,
        config={**SETTINGS, "server.base_url": address},
        progress=ConsoleProgress(quiet=True),
    )
    return {
        "outcomes": sorted(set(outcomes)),
        "calls": len(alone[0]),
        "same": alone == together,
        "gain": result.gain,
        "instruction": result.best["clerk"].instruction,
        "loaded": oj.load(folder, program)(question="Hi! What do 2 figs cost?"),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
