"""Metrics against plain restatements of the official definitions, on 1,000 random and adversarial answers each."""

import collections
import random
import re
import string

import pytest

from optimas_jax.benchmarks.metrics import exact_match, first_character, hit_at, macro_f1, reciprocal_rank, token_f1

TIMES = 1000
WORDS = [
    "a",
    "an",
    "the",
    "yes",
    "no",
    "noanswer",
    "Lima",
    "LIMA",
    "city",
    "theatre",
    "U.S.",
    "1,000",
    "",
    " ",
    "\t",
    "é",
]


def phrases(seed):
    rng = random.Random(seed)
    for _ in range(TIMES):
        prediction = " ".join(rng.choices(WORDS, k=rng.randrange(5)))
        gold = (
            " ".join(rng.choices(WORDS, k=rng.randrange(4)))
            if rng.random() < 0.7
            else prediction + rng.choice(["", ".", " a"])
        )
        yield prediction, gold


def official_normal(text):
    """hotpot_evaluate_v1.py: lower, remove punctuation, remove articles, fix white space."""
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def official_f1(prediction, gold):
    prediction, gold = official_normal(prediction), official_normal(gold)
    for special in ("yes", "no", "noanswer"):
        if special in (prediction, gold) and prediction != gold:
            return 0.0
    common = collections.Counter(prediction.split()) & collections.Counter(gold.split())
    same = sum(common.values())
    if same == 0:
        return 0.0
    precision, recall = same / len(prediction.split()), same / len(gold.split())
    return 2 * precision * recall / (precision + recall)


def test_hotpotqa():
    for prediction, gold in phrases(0):
        assert token_f1(prediction, gold) == pytest.approx(official_f1(prediction, gold))
        assert exact_match(prediction, gold) == float(official_normal(prediction) == official_normal(gold))


def official_choice(generation, truth):
    """Shopping MMLU: the first character behind spaces."""
    generation = generation.lstrip(" ").rstrip(" ")
    if generation == "":
        return 0
    return 1 if generation[0] == truth else 0


def test_shopping_mmlu():
    rng = random.Random(1)
    parts = ["0", "1", "2", "3", "12", " ", "\n", "\t", ".", "(", "Answer: ", "option ", "", "３", "one"]
    for _ in range(TIMES):
        prediction, gold = "".join(rng.choices(parts, k=rng.randrange(4))), rng.choice("0123")
        assert first_character(prediction, gold) == official_choice(prediction, gold)


def rankings(seed):
    rng = random.Random(seed)
    for _ in range(TIMES):
        size = rng.randrange(1, 9)
        scores = [rng.choice([0.0, 0.1, 0.5, 0.5, 1.0, -1.0, 1e9, rng.random()]) for _ in range(size)]
        yield scores, [rng.random() < 0.4 for _ in range(size)]


def test_stark():
    for scores, relevant in rankings(2):
        order = [index for _, index in sorted(zip(scores, range(len(scores)), strict=True), key=lambda pair: -pair[0])]
        first = next((rank for rank, index in enumerate(order) if relevant[index]), None)
        assert reciprocal_rank(scores, relevant) == (0.0 if first is None else 1 / (first + 1))
        for k in (1, 5, 20):
            assert hit_at(k, scores, relevant) == float(any(relevant[index] for index in order[:k]))


def test_pubmedqa_macro_f1():
    """scikit-learn's definition: mean over all labels seen of 2 P R / (P + R), 0 where that is not defined."""
    rng = random.Random(3)
    for _ in range(TIMES):
        size = rng.randrange(1, 12)
        predictions = rng.choices(["yes", "no", "maybe", ""], k=size)
        gold = rng.choices(["yes", "no", "maybe"], k=size)
        values = []
        for label in sorted(set(predictions) | set(gold)):
            right = sum(m == label == g for m, g in zip(predictions, gold, strict=True))
            precision = right / predictions.count(label) if label in predictions else 0.0
            recall = right / gold.count(label) if label in gold else 0.0
            values.append(2 * precision * recall / (precision + recall) if right else 0.0)
        assert macro_f1(predictions, gold) == pytest.approx(sum(values) / len(values))
