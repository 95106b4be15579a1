"""What a run does with its devices, in one or several processes: lockstep_program.py --out=FOLDER [--coordinator=...]

Trains and scores a local reward, samples in random order under two adapters, and updates a policy; writes what came
out.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

import numpy as np
import tiny
from absl import app, flags

from optimas_jax.core.types import Outcome
from optimas_jax.engine.pool import make_engines
from optimas_jax.engine.sampler import SampleRequest
from optimas_jax.learn.config import TokenBatch
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.loop.follow import follow, lead
from optimas_jax.models.config import LoraConfig
from optimas_jax.parallel.distributed import join, leave
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.policy.engine import PolicyEngine, Rollout
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.rewards.engine import reward_engine

OUT = flags.DEFINE_string("out", "", "Folder of results.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "")
PROCESSES = flags.DEFINE_integer("num_processes", None, "")
PROCESS = flags.DEFINE_integer("process_id", None, "")
QUIET = ConsoleProgress(quiet=True)
LORA = LoraConfig(rank=4, alpha=8.0, last_layers=1)  # layers below are frozen: their features are kept


def main(_: list[str]) -> None:
    if not COORDINATOR.value:
        work(Path(OUT.value), None)
        return
    link = join(COORDINATOR.value, PROCESSES.value, PROCESS.value)
    if link.index > 0:
        code = follow(link, QUIET)
        leave()
        sys.exit(code)
    leader = lead(link)
    work(Path(OUT.value), leader)
    leader.close(0)
    leave()


def work(folder: Path, leader) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    engines = make_engines(MeshConfig(), QUIET, leader)
    checkpoints, tape = CheckpointStore(folder / "checkpoints"), Tape(folder / "tape.sqlite")
    found = {"processes": len({device.process_index for device in engines.mesh.devices.flat})}
    rng = np.random.default_rng(0)
    groups = [tiny.random_group(rng) for _ in range(12)]
    rewards = reward_engine(RewardConfig("random:0", lora=LORA), ["a"], engines, tape, checkpoints, QUIET)
    start = rewards.trainer._batches.initial(0)
    kept, history = rewards.trainer.learn(start, groups[:8], groups[8:], 2, 0, True)
    rewards.scorer.use("first", kept)
    found["loss"] = [row["loss"] for row in history]
    found["scores"] = [row.tolist() for row in rewards.scorer.score_batch("score", "first", groups)]
    found["logliks"] = [row.tolist() for row in rewards.scorer.score_batch("loglik", "", groups)]
    policies = PolicyEngine(
        PolicyConfig(lora=LORA, batch=TokenBatch(tokens=256), epochs=1, minibatch=2, learning_rate=1e-2),
        *("random:0", engines, folder / "adapters", checkpoints),
    )
    sampler = engines.sampler("random:0")
    prompts = [tuple(range(5, 5 + n)) for n in (20, 33)]
    requests = [SampleRequest(prompt, 6, temperature=1.0, seed=seed) for prompt in prompts for seed in range(4)]
    answers = [sample.ids for sample in sampler.generate(requests)]
    logprobs = [sample.logprobs for sample in sampler.generate(requests)]
    found["generated"] = [list(ids) for ids in answers]
    of_prompt = [slice(0, 4), slice(4, 8)]
    rollout = Rollout(
        tuple(
            TokenGroup(prompt, tuple(answers[part]), tuple(float(ids[0] % 2) for ids in answers[part]), 0)
            for prompt, part in zip(prompts, of_prompt, strict=True)
        ),
        tuple(tuple(p for row in logprobs[part] for p in row) for part in of_prompt),
    )
    update = policies.update(policies.start(""), rollout, seed=0)
    found["update"] = {name: update.metrics[name] for name in ("loss", "entropy", "kl", "grad_norm")}
    completer = LocalCompleter("random:0", lambda: sampler, folder / "adapters")
    wanted = [
        CompletionRequest("random:0", (Message("text", "x" * n),), 8, 1.0, seed=n, adapter=update.adapter * (n % 2))
        for n in range(1, 9)
    ]
    random.shuffle(wanted)  # a host loop has no fixed order

    async def ask(one):
        await asyncio.sleep(random.random())
        return one.seed, await completer.complete(one)

    async def ask_all():
        return await asyncio.gather(*map(ask, wanted))

    texts = asyncio.run(ask_all())
    assert all(completion.outcome in (Outcome.OK, Outcome.TRUNCATED) for _, completion in texts)
    found["texts"] = [completion.text for _, completion in sorted(texts, key=lambda pair: pair[0])]
    completer.close()
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    app.run(main)
