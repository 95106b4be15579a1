"""Roofline: the least number of operations of a piece of work, and its least seconds at measured rates.

Counted are matrix products and attention over the pairs of tokens that see each other, with two operations for a
multiply-add. Not counted are norms, activations, softmax, the optimiser, and padding.
"""

from __future__ import annotations

from collections.abc import Sequence

from optimas_jax.bench.work import Work
from optimas_jax.learn.token_group import TokenGroup
from optimas_jax.models.config import BackboneConfig
from optimas_jax.parallel.speed import Rates

_BYTES = 4  # of a float32


def layer_weights(config: BackboneConfig) -> int:
    """Number of entries of the seven matrices of a layer, which is the number of multiply-adds for one token."""
    q_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return config.embed_dim * (2 * q_dim + 2 * kv_dim + 3 * config.mlp_dim)


def forward_flops(config: BackboneConfig, tokens: int, pairs: int) -> float:
    """Operations of a forward pass of ``tokens`` tokens and ``pairs`` visible (query, key) pairs, without the
    projection to the vocabulary."""
    attention = 4 * config.num_heads * config.head_dim * pairs  # q k^T and the weighted sum of values
    return config.num_layers * (2.0 * layer_weights(config) * tokens + attention)


def train_flops(config: BackboneConfig, tokens: int, pairs: int, rank: int) -> float:
    """Operations of a training step with LoRA on all matrices of all layers.

    Forward pass, dx, attention's backward pass (four products for the two of the forward pass), and x A, dy B^T, dA,
    dB. No gradients of frozen weights, and no dx below q, k and v of the first layer.
    """
    q_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    products = 2.0 * tokens * (config.num_layers * layer_weights(config) - config.embed_dim * (q_dim + 2 * kv_dim))
    attention = 8.0 * config.num_layers * config.num_heads * config.head_dim * pairs
    ins_and_outs = 2 * (config.embed_dim + q_dim) + 2 * (config.embed_dim + kv_dim)
    ins_and_outs += 3 * (config.embed_dim + config.mlp_dim)
    adapters = 4.0 * tokens * rank * ins_and_outs * config.num_layers
    return forward_flops(config, tokens, pairs) + products + attention + adapters


def packed_size(groups: Sequence[TokenGroup]) -> tuple[int, int]:
    """Number of tokens of the groups, each prefix counted once, and number of visible (query, key) pairs."""
    pairs = 0
    for group in groups:
        prefix = len(group.prefix_ids)
        pairs += _causal(prefix) + sum(len(ids) * prefix + _causal(len(ids)) for ids in group.candidate_ids)
    return sum(group.length for group in groups), pairs


def _causal(tokens: int) -> int:
    return tokens * (tokens + 1) // 2


def generate_seconds(
    config: BackboneConfig,
    prompts: Sequence[tuple[int, ...]],
    shared: int,
    new_tokens: int,
    rates: Rates,
    samples: int = 1,
) -> float:
    """Least time for ``samples`` answers to each prompt, all in one batch.

    The shared prefix and the rest of every prompt are prefilled once. Each further step samples one token for all
    answers, and takes the larger of its time for arithmetic and its time for memory traffic (weights and caches once).
    """
    rest = [len(prompt) - shared for prompt in prompts]
    pairs = _causal(shared) + sum(tokens * shared + _causal(tokens) for tokens in rest)
    head = config.embed_dim * config.vocab_size
    prefill = forward_flops(config, shared + sum(rest), pairs) + 2.0 * head * len(prompts)
    seconds = prefill / rates.flops
    weights = config.num_layers * layer_weights(config) + head
    for step in range(1, new_tokens):  # the first new token comes from the prefill
        rows, pairs = samples * len(prompts), samples * sum(len(prompt) + step for prompt in prompts)
        flops = forward_flops(config, rows, pairs) + 2.0 * head * rows
        cached = sum(len(prompt) + samples * step for prompt in prompts)
        cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * cached
        seconds += max(flops / rates.flops, _BYTES * (weights + cache) / rates.bandwidth)
    return seconds


def policy_seconds(config: BackboneConfig, work: Work, rates: Rates, repeat: int = 0) -> dict[str, float]:
    """Least time of each phase of an update: sampling, two forward passes over the answers (policy and reference), and
    one training step per epoch; the projection to the vocabulary is counted for sampled tokens only."""
    case, prompts = work.case, work.prompts_of(repeat)
    answers = ((0,) * case.new_tokens,) * case.candidates
    tokens, pairs = packed_size([TokenGroup(prompt, answers, (0.0,) * case.candidates, 0) for prompt in prompts])
    head = 2.0 * config.embed_dim * config.vocab_size * len(prompts) * case.candidates * case.new_tokens
    return {
        "rollout": generate_seconds(config, prompts, case.prefix, case.new_tokens, rates, case.candidates),
        "statistics": 2 * (forward_flops(config, tokens, pairs) + head) / rates.flops,
        "update": case.epochs * (train_flops(config, tokens, pairs, case.rank) + 2 * head) / rates.flops,
    }


def needed_seconds(config: BackboneConfig, work: Work, rates: Rates, repeat: int = 0) -> float:
    """Least time of a repeat at the measured rates."""
    case = work.case
    if case.task == "generate":
        prompts = work.prompts_of(repeat)
        parts = [prompts[start : start + case.together] for start in range(0, len(prompts), case.together)]
        return sum(generate_seconds(config, part, case.prefix, case.new_tokens, rates) for part in parts)
    if case.is_policy:
        return sum(policy_seconds(config, work, rates, repeat).values())
    tokens, pairs = packed_size(work.groups_of(repeat))
    if case.task == "train":
        return train_flops(config, tokens, pairs, case.rank) / rates.flops
    return forward_flops(config, tokens, pairs) / rates.flops
