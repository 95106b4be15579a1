"""Small runs against stand-ins for the APIs (``api_servers``)."""

import dataclasses
import json

from rich.console import Console
from scripted import scripted_config

from optimas_jax.benchmarks.hotpotqa import SystemConfig
from optimas_jax.llm.attempts import Retries
from optimas_jax.llm.clients.remote import ServerConfig
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import RunConfig
from optimas_jax.loop.stages import run_stages
from optimas_jax.report.console import ConsoleProgress


def paid_config(address) -> RunConfig:
    base = scripted_config()
    model = LanguageModel("openai:gpt-4o-mini", max_tokens=8, temperature=0.6)
    return dataclasses.replace(
        base,
        system=SystemConfig(model, k_grid=(1, 2), k=1),
        proposer=LanguageModel("anthropic:claude-3-haiku-20240307", max_tokens=16),
        data=dataclasses.replace(base.data, train=6, val=4, test=4, confirm=4),
        offline=dataclasses.replace(base.offline, inputs=6, calls=24),
        optimize=dataclasses.replace(base.optimize, components="answer_generator", iterations=1, inputs=3, demo_sets=0),
        server=ServerConfig(f"{address}/v1", retries=Retries(first_wait=0.01)),
        anthropic=ServerConfig(address, retries=Retries(first_wait=0.01)),
    )


def run(config: RunConfig, workdir) -> dict:
    """The results of a run; what it prints goes to a file in its folder."""
    workdir.mkdir(exist_ok=True)
    with (workdir / "printed.txt").open("a") as file:
        run_stages(config, workdir, "all", ConsoleProgress(Console(file=file)))
    return json.loads((workdir / "results.json").read_text())
