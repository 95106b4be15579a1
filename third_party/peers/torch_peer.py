"""transformers on torch: scoring every candidate with its prefix as a sequence, and batched ``generate``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import common
import torch
import transformers

from optimas_jax.bench.serve import Run, serve
from optimas_jax.bench.work import Work, from_json

SIZES = (1, 2, 4, 8, 16, 32)


def prepare(data: dict[str, Any]) -> tuple[Run, str]:
    torch.set_num_threads(common.cores())
    work = from_json(data)
    return {"score": _score, "generate": _generate}[work.case.task](work)


def _pad(rows: Sequence[Sequence[int]], side: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Ids and mask; no mask for rows of one length, for then attention may take its plain causal path."""
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for place, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[place, where], mask[place, where] = torch.tensor(row), 1
    return ids, None if bool(mask.all()) else mask


def _score(work: Work) -> tuple[Run, str]:
    """The hidden state of each sequence's last token times the head: no vocabulary projection, no gradient."""
    model = transformers.AutoModel.from_pretrained(work.folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    head = torch.tensor(work.head)

    def scores(rows: Sequence[Sequence[int]], size: int) -> list[float]:
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        out = torch.empty(len(rows))
        for start in range(0, len(rows), size):
            members = order[start : start + size]
            ids, mask = _pad([rows[index] for index in members], "right")
            hidden = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            last = torch.tensor([len(rows[index]) - 1 for index in members])
            out[members] = hidden[torch.arange(len(members)), last] @ head
        return out.tolist()

    some = [row for group in work.groups for row in common.sequences(group)][: SIZES[-1]]

    @torch.inference_mode()
    def seconds(size: int) -> float:
        start = time.perf_counter()
        scores(some[:size], size)
        return time.perf_counter() - start

    size = common.best_size([size for size in SIZES if size <= len(some)], seconds)

    @torch.inference_mode()
    def run(repeat: int) -> dict[str, Any]:
        groups = work.groups_of(repeat)
        start = time.perf_counter()
        output = scores([row for group in groups for row in common.sequences(group)], size)
        return {"seconds": time.perf_counter() - start, "output": output}

    return run, f"batches of {size}"


def _generate(work: Work) -> tuple[Run, str]:
    """Greedy, left-padded, sorted by length, never stopping early; the cache that is faster."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        work.folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    model.generation_config = transformers.GenerationConfig(eos_token_id=None, pad_token_id=0)

    def tokens(prompts: Sequence[Sequence[int]], size: int, cache: str) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        out: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(prompts), size):
            members = order[start : start + size]
            ids, mask = _pad([prompts[index] for index in members], "left")
            mask = torch.ones_like(ids) if mask is None else mask
            made = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=work.case.new_tokens,
                cache_implementation=cache,
            )
            for index, row in zip(members, made[:, ids.shape[1] :].tolist(), strict=True):
                out[index] = row
        return out

    some = sorted(work.prompts, key=len)[-SIZES[-1] :]

    def seconds(size: int, cache: str = "dynamic") -> float:
        start = time.perf_counter()
        tokens(some[:size], size, cache)
        return time.perf_counter() - start

    most = min(work.case.together, len(work.prompts))
    size = common.best_size([size for size in SIZES if size <= most], seconds)
    seconds(size, "static")  # the first call allocates
    cache = min(("dynamic", "static"), key=lambda cache: seconds(size, cache))

    def run(repeat: int) -> dict[str, Any]:
        prompts = work.prompts_of(repeat)
        start = time.perf_counter()
        rows = tokens(prompts, size, cache)
        return {"seconds": time.perf_counter() - start, "output": [token for row in rows for token in row]}

    return run, f"batches of {size}, {cache} cache"


if __name__ == "__main__":
    serve(prepare)
