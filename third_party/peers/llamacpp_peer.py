"""llama.cpp on the GGUF file itself: shared prefix evaluated once, requests decoded together, greedy.

It computes with the quantised weights (and quantised activations), so its tokens are its own; the work is the same.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from typing import Any

import common
import llama_cpp as ll
import numpy as np

from optimas_jax.bench.serve import Run, serve
from optimas_jax.bench.work import Work, from_json

SIZES = (1, 2, 4, 8, 16, 32, 64)
BATCH = 512  # tokens of one call, llama.cpp's default
Token = tuple[int, int, int, bool]  # id, position, sequence, whether its logits are wanted


class Context:
    """A model and a cache for some sequences."""

    def __init__(self, path: str, sequences: int, tokens: int):
        self.model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        params = ll.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = tokens, sequences, True
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = common.cores()
        self.context = ll.llama_init_from_model(self.model, params)
        self.memory = ll.llama_get_memory(self.context)
        self.vocabulary = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.batch = ll.llama_batch_init(BATCH, 0, 1)

    def close(self) -> None:
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.context)
        ll.llama_model_free(self.model)

    def evaluate(self, tokens: Sequence[Token]) -> Iterator[tuple[int, int]]:
        """(sequence, most likely next token) of every token whose logits are wanted."""
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            self.batch.n_tokens = len(part)
            for place, (token, position, sequence, wanted) in enumerate(part):
                self.batch.token[place], self.batch.pos[place] = token, position
                self.batch.n_seq_id[place], self.batch.seq_id[place][0] = 1, sequence
                self.batch.logits[place] = wanted
            code = ll.llama_decode(self.context, self.batch)
            if code:
                raise RuntimeError(f"llama_decode returned {code}")
            for place, (_, _, sequence, wanted) in enumerate(part):
                if wanted:
                    logits = ll.llama_get_logits_ith(self.context, place)
                    address = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
                    yield sequence, int(np.ctypeslib.as_array(address, (self.vocabulary,)).argmax())

    def generate(self, prompts: Sequence[Sequence[int]], shared: int, new_tokens: int) -> list[list[int]]:
        """All prompts at once."""
        ll.llama_memory_clear(self.memory, False)
        list(self.evaluate([(token, place, 0, False) for place, token in enumerate(prompts[0][:shared])]))
        for sequence in range(1, len(prompts) if shared else 0):
            ll.llama_memory_seq_cp(self.memory, 0, sequence, 0, shared)
        own = [
            (token, place, sequence, place == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for place, token in list(enumerate(prompt))[shared:]
        ]
        out: list[list[int]] = [[] for _ in prompts]
        for sequence, token in self.evaluate(own):
            out[sequence].append(token)
        for step in range(new_tokens - 1):
            last = [(row[-1], len(prompts[sequence]) + step, sequence, True) for sequence, row in enumerate(out)]
            for sequence, token in self.evaluate(last):
                out[sequence].append(token)
        return out


def prepare(data: dict[str, Any]) -> tuple[Run, str]:
    work: Work = from_json(data)
    case = work.case
    if not work.gguf:
        raise ValueError(f"llama.cpp needs a GGUF file; {work.model} is none")
    some = sorted(work.prompts, key=len)[-SIZES[-1] :]
    longest = len(some[-1]) + case.new_tokens

    def context(size: int) -> Context:
        return Context(work.gguf, size, max(BATCH, case.prefix + size * (longest - case.prefix)))

    def seconds(size: int) -> float:
        made = context(size)
        start = time.perf_counter()
        made.generate(some[:size], case.prefix, case.new_tokens)
        took = time.perf_counter() - start
        made.close()
        return took

    most = min(case.together, len(work.prompts))
    size = common.best_size([size for size in SIZES if size <= most], seconds)
    chosen = context(size)

    def run(repeat: int) -> dict[str, Any]:
        prompts = work.prompts_of(repeat)
        start = time.perf_counter()
        rows = []
        for first in range(0, len(prompts), size):
            rows += chosen.generate(prompts[first : first + size], case.prefix, case.new_tokens)
        return {"seconds": time.perf_counter() - start, "output": [token for row in rows for token in row]}

    return run, f"{size} at once"


if __name__ == "__main__":
    serve(prepare)
