"""PPO of TRL 1.12, the last release that has it, with PEFT's LoRA: answers sampled, log-probabilities under policy and
reference and values of the critic, epochs over them.

At learning rate 0, so that every repeat samples from the same policy. The critic has to be a network of its own; its
layers are frozen, so that they cost one forward pass and no gradient. The reward model is a function of the tokens and
costs nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / ".trl-ppo"))  # before the environment's own, which has no PPO

import common
import datasets
import torch
import transformers
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from optimas_jax.bench.serve import Run, serve
from optimas_jax.bench.work import Work, from_json


class EvenTokens(torch.nn.Module):
    """A reward model in the form that TRL reads: at every place, the share of even tokens so far."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.score = torch.nn.Identity()

    def backbone(self, input_ids: torch.Tensor, **_: Any) -> Any:
        places = torch.arange(1, input_ids.shape[1] + 1)
        share = (input_ids % 2 == 0).float().cumsum(1) / places
        return types.SimpleNamespace(hidden_states=[share[..., None]])


def prepare(data: dict[str, Any]) -> tuple[Run, str]:
    datasets.disable_progress_bars()
    work: Work = from_json(data)
    case = work.case
    tokenizer = transformers.AutoTokenizer.from_pretrained(work.folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    folder = tempfile.mkdtemp()
    generation, forward, get_reward = ppo_trainer.batch_generation, ppo_trainer.forward, ppo_trainer.get_reward

    def update(prompts: Sequence[tuple[int, ...]], size: int) -> dict[str, Any]:
        episodes = len(prompts) * case.candidates
        settings = PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=episodes // size,
            local_rollout_forward_batch_size=size,
            num_mini_batches=1,
            num_ppo_epochs=case.epochs,
            total_episodes=episodes,
            response_length=case.new_tokens,
            num_sample_generations=0,
            temperature=1.0,
            learning_rate=0.0,
            lr_scheduler_type="constant",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        rows = datasets.Dataset.from_dict({"input_ids": [list(p) for p in prompts for _ in range(case.candidates)]})
        critic = transformers.AutoModelForSequenceClassification.from_pretrained(
            work.folder, num_labels=1, dtype=torch.float32, attn_implementation="sdpa"
        ).requires_grad_(False)
        critic.score.requires_grad_(True)
        phases, logged = common.Phases(), {}

        def no_grad(function: Any) -> Any:
            def call(*args: Any) -> Any:
                return function(*args) if torch.is_grad_enabled() else phases.time("statistics", function, *args)

            return call

        ppo_trainer.batch_generation = lambda *args: phases.time("rollout", generation, *args)
        ppo_trainer.forward, ppo_trainer.get_reward = no_grad(forward), no_grad(get_reward)
        trainer = PPOTrainer(
            args=settings,
            processing_class=tokenizer,
            model=transformers.AutoModelForCausalLM.from_pretrained(
                work.folder, dtype=torch.float32, attn_implementation="sdpa"
            ),
            ref_model=None,
            reward_model=EvenTokens(),
            value_model=critic,
            train_dataset=rows,
            eval_dataset=rows,
            peft_config=common.lora(case.rank, "CAUSAL_LM"),
        )
        trainer.log = lambda metrics, *_: logged.update(metrics)
        torch.set_num_threads(common.cores())  # whatever the libraries have set on the way
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "phases": phases.with_rest("update", seconds),
            "output": [logged["policy/entropy_avg"]],
        }

    # A first one allocates; then the size whose update is fastest, on the answers of one prompt.
    few = work.prompts_of(0)[:1]
    update(few, case.candidates)
    sizes = [size for size in (2, 4, 8, 16) if case.candidates % size == 0]
    size = min(sizes, key=lambda size: update(few, size)["seconds"])
    return lambda repeat: update(work.prompts_of(repeat), size), f"batches of {size} answers"


if __name__ == "__main__":
    serve(prepare)
