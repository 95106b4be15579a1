"""TRL's GRPOTrainer with PEFT's LoRA: answers sampled, log-probabilities under policy and reference, epochs over them.

At learning rate 0, so that every repeat samples from the same policy. TRL's own defaults that cost time here are off:
gradient checkpointing, bfloat16, logging, saving. Prompts are handed over as tokens, where TRL would tokenise texts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import common
import datasets
import torch
import transformers
import trl
from trl_peer import Clock

from optimas_jax.bench.serve import Run, serve
from optimas_jax.bench.work import Work, from_json, score


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [score(ids) for ids in completion_ids]


def prepare(data: dict[str, Any]) -> tuple[Run, str]:
    datasets.disable_progress_bars()
    work: Work = from_json(data)
    case = work.case
    tokenizer = transformers.AutoTokenizer.from_pretrained(work.folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    folder = tempfile.mkdtemp()

    def update(prompts: Sequence[tuple[int, ...]], size: int) -> dict[str, Any]:
        episodes = len(prompts) * case.candidates
        settings = trl.GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=episodes // size,
            steps_per_generation=episodes // size,
            num_iterations=case.epochs,
            max_steps=case.epochs,
            num_generations=case.candidates,
            max_completion_length=case.new_tokens,
            generation_kwargs={"min_new_tokens": case.new_tokens},
            temperature=1.0,
            beta=0.04,
            learning_rate=0.0,
            lr_scheduler_type="constant",
            shuffle_dataset=False,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        clock, phases, entropies = Clock(), common.Phases(), []
        trainer = trl.GRPOTrainer(
            model=transformers.AutoModelForCausalLM.from_pretrained(
                work.folder, dtype=torch.float32, attn_implementation="sdpa"
            ),
            reward_funcs=reward,
            args=settings,
            train_dataset=datasets.Dataset.from_dict({"prompt": [str(place) for place in range(len(prompts))]}),
            processing_class=tokenizer,
            peft_config=common.lora(case.rank, "CAUSAL_LM"),
            callbacks=[clock],
        )
        logprobs = trainer._get_per_token_logps_and_entropies

        def read(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return phases.time("statistics", logprobs, *args, **kwargs)
            made = logprobs(*args, **kwargs)
            entropies.append(made[1].mean().item())
            return made

        generate = trainer._generate_single_turn
        trainer._tokenize_prompts = lambda names: ([list(prompts[int(name)]) for name in names], None, {})
        trainer._generate_single_turn = lambda *args: phases.time("rollout", generate, *args)
        trainer._get_per_token_logps_and_entropies = read
        torch.set_num_threads(common.cores())  # whatever the libraries have set on the way
        trainer.train()
        return {
            "seconds": clock.seconds,
            "phases": phases.with_rest("update", clock.seconds),
            "output": [sum(entropies) / len(entropies)],
        }

    # A first one allocates; then the size whose update is fastest, on the answers of one prompt.
    few = work.prompts_of(0)[:1]
    update(few, case.candidates)
    sizes = [size for size in (2, 4, 8, 16) if case.candidates % size == 0]
    size = min(sizes, key=lambda size: update(few, size)["seconds"])
    return lambda repeat: update(work.prompts_of(repeat), size), f"batches of {size} answers"


if __name__ == "__main__":
    serve(prepare)
