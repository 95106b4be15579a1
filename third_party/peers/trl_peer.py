"""TRL's RewardTrainer with PEFT's LoRA on all ordered pairs of the groups: every pair two whole sequences.

At learning rate 0: the arithmetic of a step is the same, and the losses can be compared exactly. TRL's own defaults
that cost time here are off: gradient checkpointing, bfloat16, logging, saving.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from typing import Any

import common
import datasets
import peft
import torch
import transformers
import trl

from optimas_jax.bench.serve import Run, serve
from optimas_jax.bench.work import Work, from_json
from optimas_jax.learn.token_group import TokenGroup

MOST_TOKENS = 8192  # of a step: activations of longer ones do not fit into memory beside the rest


class Clock(transformers.TrainerCallback):
    """Time from the first step's start to the last one's end: what the trainer does around them is not counted."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.start


def pairs(groups: list[TokenGroup]) -> datasets.Dataset:
    """All ordered pairs of each group."""
    columns: dict[str, list[list[int]]] = {"chosen_ids": [], "rejected_ids": []}
    for group in groups:
        rows = common.sequences(group)
        for i, j in itertools.permutations(range(len(rows)), 2):
            if group.rewards[i] > group.rewards[j]:
                columns["chosen_ids"].append(rows[i])
                columns["rejected_ids"].append(rows[j])
    return datasets.Dataset.from_dict(columns)


def prepare(data: dict[str, Any]) -> tuple[Run, str]:
    datasets.disable_progress_bars()
    work: Work = from_json(data)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        work.folder, num_labels=1, dtype=torch.float32, attn_implementation="sdpa"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(work.folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with torch.no_grad():
        model.score.weight.copy_(torch.tensor(work.head)[None])
    model = peft.get_peft_model(model, common.lora(work.case.rank, "SEQ_CLS", modules_to_save=["score"]))
    folder = tempfile.mkdtemp()

    def train(rows: datasets.Dataset, size: int) -> tuple[float, float]:
        """Seconds and mean loss of one epoch over ``rows``."""
        settings = trl.RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=size,
            num_train_epochs=1,
            learning_rate=0.0,
            lr_scheduler_type="constant",
            max_length=None,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        clock = Clock()
        trainer = trl.RewardTrainer(
            model=model, args=settings, train_dataset=rows, processing_class=tokenizer, callbacks=[clock]
        )
        torch.set_num_threads(common.cores())  # whatever the libraries have set on the way
        loss = trainer.train().training_loss
        return clock.seconds, loss

    per_repeat = pairs(work.groups_of(0))
    longest = max(map(len, per_repeat["chosen_ids"]))
    # Sizes that divide the pairs: no ragged last batch, and the mean over steps is the mean over pairs.
    sizes = [n for n in range(1, 17) if len(per_repeat) % n == 0 and (n == 1 or 2 * n * longest <= MOST_TOKENS)]
    size = common.best_size(sizes, lambda size: train(per_repeat.select(range(size)), size)[0])

    def run(repeat: int) -> dict[str, Any]:
        seconds, loss = train(pairs(work.groups_of(repeat)), size)
        return {"seconds": seconds, "output": [loss]}

    return run, f"batches of {size} pairs"


if __name__ == "__main__":
    serve(prepare)
