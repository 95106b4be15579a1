"""Metrics, as the benchmarks define them."""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence


def normalize_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (hotpotqa/hotpot: hotpot_evaluate_v1.py)."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, gold: str) -> float:
    """1 if both are the same after normalisation, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(gold))


def token_f1(prediction: str, gold: str) -> float:
    """F1 of the bags of normalised tokens; ``yes``, ``no`` and ``noanswer`` match as a whole or not at all
    (hotpotqa/hotpot: hotpot_evaluate_v1.py, ``f1_score``)."""
    prediction, gold = normalize_answer(prediction), normalize_answer(gold)
    if prediction != gold and ({prediction, gold} & {"yes", "no", "noanswer"}):
        return 0.0
    predicted, wanted = prediction.split(), gold.split()
    common = sum((collections.Counter(predicted) & collections.Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def first_character(generation: str, gold: str) -> float:
    """1 if the answer, after leading spaces, begins with the number of the right option
    (KL4805/ShoppingMMLU: skill_wise_eval/metrics.py, ``accuracy``)."""
    return float(generation.strip(" ")[:1] == gold)


def reciprocal_rank(scores: Sequence[float], relevant: Sequence[bool]) -> float:
    """1 / rank of the best-placed relevant item when items are ordered by score, highest first; equal scores keep
    their order. 0 if none is relevant (snap-stanford/stark: MRR; snap-stanford/optimas: examples/metrics/mrr.py)."""
    ranks = [rank for rank, index in enumerate(_ranking(scores), start=1) if relevant[index]]
    return 1 / ranks[0] if ranks else 0.0


def hit_at(k: int, scores: Sequence[float], relevant: Sequence[bool]) -> float:
    """1 if one of the k items with the highest scores is relevant, else 0 (snap-stanford/stark: Hit@k)."""
    return float(any(relevant[index] for index in _ranking(scores)[:k]))


def _ranking(scores: Sequence[float]) -> list[int]:
    """Indices by score, highest first; equal scores keep their order."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def macro_f1(predictions: Sequence[str], golds: Sequence[str]) -> float:
    """Mean over classes of their F1; classes are all labels that occur on either side, and one without a hit counts 0
    (pubmedqa/pubmedqa: evaluation.py, scikit-learn's ``f1_score`` with ``average="macro"``)."""
    hits = collections.Counter(gold for label, gold in zip(predictions, golds, strict=True) if label == gold)
    sizes = collections.Counter(predictions) + collections.Counter(golds)
    return sum(2 * hits[label] / size for label, size in sizes.items()) / len(sizes)
