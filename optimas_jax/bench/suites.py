"""The cases of every suite. Every request gets 32 new tokens."""

from __future__ import annotations

from optimas_jax.bench.work import Case, Task

_SHARED = "M=4, prefix 192, candidates 64"
_LONG = "M=8, prefix 384, candidates 32"


def _groups(
    suite: str, name: str, task: Task, per_repeat: int, candidates: int, prefix: int, tokens: int, rank: int = 32
) -> Case:
    return Case(suite, name, task, 64, per_repeat, candidates, prefix, (tokens, tokens), rank)


def _requests(suite: str, name: str, count: int, prefix: int, tokens: tuple[int, int], together: int = 64) -> Case:
    return Case(suite, name, "generate", count, count, prefix=prefix, tokens=tokens, together=together)


def _policy(task: Task) -> Case:
    name = "2 prompts of 192, 8 answers of 32, 2 epochs"
    return Case(task, name, task, 10, 2, candidates=8, tokens=(192, 192), rank=16, epochs=2)


LRF_SCORE = (
    _groups("lrf_score", _SHARED, "score", 8, 4, 192, 64),
    _groups("lrf_score", _LONG, "score", 4, 8, 384, 32),
)
# Fewer groups per repeat than for scoring: a peer computes 6 (M = 4) or 28 (M = 8) pairs of two whole sequences each.
LRF_TRAIN = (
    _groups("lrf_train", _SHARED, "train", 4, 4, 192, 64),
    _groups("lrf_train", _LONG, "train", 2, 8, 384, 32),
    _groups("lrf_train", "M=2, 256 tokens each, nothing shared", "train", 8, 2, 1, 255),  # except one token
)
GENERATE = (
    _requests("generate", "64 requests, 128 shared + 64 to 192", 64, 128, (64, 192)),
    _requests("generate", "one at a time, prompts of 128", 8, 0, (128, 128), together=1),
)
PPO = (_policy("ppo"),)
GRPO = (_policy("grpo"),)
# Groups have a prefix of 192 and candidates of 64 tokens; prompts of a batch are 128 tokens, nothing shared.
CURVES = (
    *(_groups("curves", f"score, M={m}", "score", 4, m, 192, 64) for m in (1, 2, 4, 8, 16)),
    *(
        _groups("curves", f"score, {n} tokens", "score", max(1, 1024 // n), 1, n - 64, 64)
        for n in (128, 256, 512, 1024, 2048)
    ),
    *(_requests("curves", f"generate, batch {n}", n, 0, (128, 128)) for n in (1, 2, 4, 8, 16, 32, 64)),
    *(_groups("curves", f"train, M=4, rank {r}", "train", 2, 4, 192, 64, r) for r in (4, 8, 16, 32, 64)),
)
SUITES = {
    "lrf_score": LRF_SCORE,
    "lrf_train": LRF_TRAIN,
    "generate": GENERATE,
    "ppo": PPO,
    "grpo": GRPO,
    "curves": CURVES,
}
