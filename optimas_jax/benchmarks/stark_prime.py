"""STaRK-Prime (Wu et al., 2024): which of five biomedical entities answers a question? The paper's three components
(Table 5).

    question, relation_info ─► relation_scorer ─► relation_scores ─┐
    question, text_info ─────► text_scorer ─────► text_scores ─────┼─► aggregator ─► final_scores
    similarities ──────────────────────────────────────────────────┘

Two prompted scorers in parallel give each candidate a score from 0 to 1, by its relations and by its text. The
aggregator adds them up, weighted, to the similarity of question and entity: ``final = w_r r + w_t t + s``. Its weights
are hyper-parameters. The metric is MRR (paper, Table 2); Hit@1 (appendix C) is reported beside it. Both have a high
chance level, because there are five candidates and at least one is right: the mean over random orders is reported.

Rows come from a file: candidates, similarities and texts are computed from STaRK's knowledge base, which the hub has
only as pickles, and pickles are not opened here.

Where this differs from the paper or its released code, and why:

- Candidates are as in the rows. The released code adds a right entity to the five and keeps its low similarity, because
  of which retrieval had missed it. For such rows chance is above 0, and scores must be compared with it.
- Scores are not rounded before ranking; rounding caused ties.
- The two scorers run concurrently and their order has no effect. In the released code it depended on the hash seed, and
  so did which of them was credited.
- Scores are parsed as JSON, or else as plain numbers, one for each candidate, and clipped to [0, 1]. If that fails they
  are 0, as in the released code, and the other terms decide.
- Weights start at 0.1 each and are searched on {0.1, 1.0}, as in the paper, over all inputs.
- ``config.data.max_chars`` cuts the texts of a candidate; the released code cuts at 1,024 characters.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks.data import (
    INTEGER,
    INTEGERS,
    NUMBERS,
    TEXT,
    TEXTS,
    DataConfig,
    DataError,
    Dataset,
    deal,
    fields_of,
    is_number,
    numbered,
    official_split,
    read_rows,
    repetitions,
)
from optimas_jax.benchmarks.metrics import hit_at, reciprocal_rank
from optimas_jax.benchmarks.parts import stops
from optimas_jax.core.component import Component, RunContext
from optimas_jax.core.running.event_loop import off_loop
from optimas_jax.core.schema import NonNegativeFloat
from optimas_jax.core.system import System
from optimas_jax.core.text.json_text import find_json
from optimas_jax.core.types import Example
from optimas_jax.core.values import Grid, Hyperparameters, Value
from optimas_jax.llm.component import LanguageModel, llm_component
from optimas_jax.llm.forms.loose import NOTHING, loose_json
from optimas_jax.llm.forms.reasoning import split_thoughts

METRIC = "MRR"
SOURCES = ("stark", "synthetic")
OFFLINE = ("synthetic",)
_KEY = re.compile(r"[^\d]{0,20}(\d{1,4})")  # key of an object: "2", "entity 2"
_LATEST = 5  # last lines, or last pieces of JSON, of an answer that are read
# A number that is no part of a word, of a longer number or of a label ("2:"), maybe with a percent sign, or as a
# fraction ("8/10").
_DIGITS = (  # matched by a lookahead and then as a whole, because possessive groups are broken before Python 3.11.5
    r"(?=(?P<number>[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?))(?P=number)(?!\w)"
    r"(?:\s?(%)|\s?/\s?(\d{1,4})(?!\d))?"
)
_NUMBER = re.compile(rf"(?<![\w.]){_DIGITS}(?!\s*+:)")
# A line for one candidate: its number, its score, and maybe a reason, without digits.
_LABELLED = re.compile(
    rf"\W{{0,9}}(?:\w{{1,20}}\s)?(\d{{1,4}}+)\s?[.):|=*-]{{1,4}}[^\d\n+-]{{0,80}}{_DIGITS}(?:\W[^\d\n]{{0,300}})?$"
)
WEIGHTS = ("relation_weight", "text_weight")


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """The system before optimisation.

    Attributes:
      language_model: the model of the two scorers.
      weight_grid: values that each weight of the aggregator may have; the first is the initial value.
    """

    language_model: LanguageModel
    weight_grid: tuple[NonNegativeFloat, ...] = (0.1, 1.0)


@dataclasses.dataclass(frozen=True)
class Question:
    """One row: a question and its candidates."""

    id: str
    question: str
    texts: tuple[str, ...]
    relations: tuple[str, ...]
    similarities: tuple[float, ...]
    relevant: tuple[bool, ...]
    split: str = ""


def load(config: DataConfig) -> Dataset:
    """Reads or generates the questions.

    Raises:
      DataError: without a file of rows, for a row of another shape, or for fewer rows than asked for.
    """
    if config.path:
        rows, origin = read_rows(Path(config.path), parse_row), config.path
    elif config.source == "synthetic":
        rows, origin = synthetic(sum(config.sizes.values()), config.seed), "made-up entities"
    else:
        raise DataError(
            "STaRK-Prime's candidates are made from its knowledge base, which the hub has only as pickles: set "
            "--config.data.path to a file of rows with id, question, answer_ids, candidate_ids, candidate_scores, "
            "text_info and relation_info"
        )
    examples = [_example(row, config) for row in rows]
    splits = deal(examples, config)
    relevant = [example.gold["relevant"] for example in splits["test"]]
    chance = {
        METRIC: sum(random_reciprocal_rank(len(row), sum(row)) for row in relevant) / len(relevant),
        "Hit@1": sum(sum(row) / len(row) for row in relevant) / len(relevant),
    }
    return Dataset(splits, chance, origin + repetitions(examples))


def _example(row: Question, config: DataConfig) -> Example:
    inputs = {
        "question": row.question,
        "relation_info": numbered(row.relations, 1, config.max_chars),
        "text_info": numbered(row.texts, 1, config.max_chars),
        "similarities": row.similarities,
    }
    return Example(row.id, inputs, {"relevant": row.relevant}, row.split)


def parse_row(item: Any, where: str) -> Question:
    """A row with ``id``, ``question``, ``answer_ids``, and for each candidate ``candidate_ids``, ``candidate_scores``,
    ``text_info`` and ``relation_info``."""
    kinds = {
        "id": INTEGER,
        "question": TEXT,
        "answer_ids": INTEGERS,
        "candidate_ids": INTEGERS,
        "candidate_scores": NUMBERS,
        "text_info": TEXTS,
        "relation_info": TEXTS,
    }
    row = fields_of(item, where, kinds)
    sizes = {name: len(row[name]) for name in ("candidate_ids", "candidate_scores", "text_info", "relation_info")}
    if len(set(sizes.values())) > 1:
        raise DataError(f"{where}: candidates differ in number: {sizes}")
    if len(set(row["candidate_ids"])) < len(row["candidate_ids"]):
        raise DataError(f"{where}: a candidate is listed twice in candidate_ids {row['candidate_ids']!s:.200}")
    answers = frozenset(row["answer_ids"])
    return Question(
        id=str(row["id"]),
        question=row["question"],
        texts=tuple(row["text_info"]),
        relations=tuple(row["relation_info"]),
        similarities=tuple(float(score) for score in row["candidate_scores"]),
        relevant=tuple(candidate in answers for candidate in row["candidate_ids"]),
        split=official_split(row, where),
    )


def random_reciprocal_rank(candidates: int, relevant: int) -> float:
    """Mean of 1 / rank of the first relevant item over all orders: sum over ranks r of P(first at r) / r, where P(first
    at r) = C(candidates - r, relevant - 1) / C(candidates, relevant). Each P is computed from the previous one."""
    if relevant == 0:
        return 0.0
    mean, first_here = 0.0, relevant / candidates
    for rank in range(1, candidates - relevant + 2):
        mean += first_here / rank
        if rank < candidates:
            first_here *= (candidates - rank - relevant + 1) / (candidates - rank)
    return mean


def synthetic(count: int, seed: int) -> list[Question]:
    """Made-up entities for tests without data; the right one has the target that the question names."""
    rng = random.Random(f"{seed}/synthetic")
    rows = []
    for number in range(count):
        genes = [f"G{gene}" for gene in rng.sample(range(1000), 5)]
        right = rng.randrange(5)
        rows.append(
            Question(
                id=f"made-{number:04d}",
                question=f"Which drug {number} targets {genes[right]}?",
                texts=tuple(f"name: D{index}, type: drug" for index in range(5)),
                relations=tuple(f"name: D{index}, target: {gene}" for index, gene in enumerate(genes)),
                similarities=tuple(round(rng.random(), 2) for _ in genes),
                relevant=tuple(index == right for index in range(5)),
            )
        )
    return rows


def build(dataset: Dataset, settings: SystemConfig) -> System:
    """The three-component system of the paper."""
    model = settings.language_model
    number = len(next(iter(dataset.splits["train"])).gold["relevant"])

    def scorer(name: str, by: str, info: str, output: str) -> Component:
        return llm_component(
            name=name,
            description=f"Score each entity from 0 to 1: how well do its {by} fit the question?",
            inputs=(info, "question"),
            output=output,
            instruction=f"Score each of the {number} entities by its {by}: 1 if it answers the question, 0 if not. "
            f"Write the {number} scores in order, separated by commas.",
            language_model=model,
            stop=stops(model, "\n"),
        )

    return System(
        components=(
            scorer("relation_scorer", "relations", "relation_info", "relation_scores"),
            scorer("text_scorer", "properties", "text_info", "text_scores"),
            Component(
                name="aggregator",
                description="Combine the scores of relations and text with the similarities to final scores.",
                inputs=("relation_scores", "text_scores", "similarities"),
                outputs=("final_scores",),
                run=aggregate,
                space=Grid(dict.fromkeys(WEIGHTS, settings.weight_grid)),
                default=Hyperparameters(dict.fromkeys(WEIGHTS, settings.weight_grid[0])),
            ),
        ),
        input_fields=("question", "relation_info", "text_info", "similarities"),
        output_fields=("final_scores",),
        metric=mean_reciprocal_rank,
    )


async def aggregate(inputs: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
    """final = relation_weight r + text_weight t + similarity."""
    assert isinstance(value, Hyperparameters)
    similarities = inputs["similarities"]
    relations, texts = [
        await off_loop(functools.partial(read_scores, inputs[name], len(similarities)), len(inputs[name]))
        for name in ("relation_scores", "text_scores")
    ]
    return {
        "final_scores": tuple(
            value["relation_weight"] * r + value["text_weight"] * t + s
            for r, t, s in zip(relations, texts, similarities, strict=True)
        )
    }


def read_scores(text: str, count: int) -> tuple[float, ...]:
    """Scores in a model's answer, each clipped to [0, 1]: all 0 if it has no ``count`` scores (``find_scores``)."""
    return find_scores(text, count) or (0.0,) * count


def find_scores(text: str, count: int) -> tuple[float, ...] | None:
    """Scores in a model's answer, each clipped to [0, 1]; None if there are no ``count`` scores.

    Accepted are: a list, or an object with the keys "1" to ``count``, maybe inside a field, in JSON or Python syntax,
    alone or within a text; one line for each candidate with its number; or ``count`` numbers in the whole text, after
    its last colon, or in its last lines.
    """
    text = split_thoughts(text)[1].strip()
    data = loose_json(text)
    pieces = [data] if data is not NOTHING else find_json(text)[-_LATEST:][::-1]
    for piece in pieces:
        if (scores := _scores_in(piece, count)) is not None:
            return scores
    if pieces and data is not NOTHING:
        return None
    lines = [line for line in text.split("\n") if _NUMBER.search(line)]
    labelled = [_LABELLED.match(line) for line in lines[-count:]]
    labels = [match and match[1] for match in labelled]
    if len(labelled) == count and labels == [str(number) for number in range(1, count + 1)]:
        return _clipped([_number(*match.groups()[1:]) for match in labelled if match], count)
    for part in (text, text.rpartition(":")[2], *lines[-_LATEST:][::-1], "\n".join(lines[-count:])):
        numbers = [_number(*match.groups()) for match in itertools.islice(_NUMBER.finditer(part), count + 1)]
        if (scores := _clipped(numbers, count)) is not None:
            return scores
    return None


def _scores_in(data: Any, count: int, depth: int = 0) -> tuple[float, ...] | None:
    if isinstance(data, Mapping):
        named = {int(match[1]): value for key, value in data.items() if (match := _KEY.fullmatch(str(key)))}
        if sorted(named) == [*range(1, count + 1)] and len(data) == count:
            return _clipped([_as_number(named[number]) for number in sorted(named)], count)
        inner = list(data.values())[:_LATEST] if depth < _LATEST else []
        results = (_scores_in(value, count, depth + 1) for value in inner if isinstance(value, Mapping | list))
        return next((scores for scores in results if scores is not None), None)
    if isinstance(data, list):
        scores = [item.get("score") if isinstance(item, Mapping) else item for item in data[: count + 1]]
        return _clipped(list(map(_as_number, scores)), count)
    return None


def _as_number(value: Any) -> float | None:
    """The value if it is a number, or the number that a text holds; None for anything else."""
    if isinstance(value, str) and (match := _NUMBER.fullmatch(value.strip())):
        return _number(*match.groups())
    return value if is_number(value) else None


def _number(digits: str, percent: str | None, out_of: str | None) -> float:
    """The value of a number as ``_NUMBER`` reads it."""
    return float(digits) / (100 if percent else int(out_of or 1) or 1)


def _clipped(numbers: Sequence[float | None], count: int) -> tuple[float, ...] | None:
    """The numbers, clipped to [0, 1]; None if there are not ``count``, or one is missing."""
    if len(numbers) != count or any(number is None or math.isnan(number) for number in numbers):
        return None
    return tuple(float(min(max(number, 0), 1)) for number in numbers if number is not None)


def _is_read(outputs: Mapping[str, Any], example: Example) -> bool:
    """Whether scores can be read from the answer of a scorer."""
    [text] = outputs.values()
    return find_scores(str(text), len(example.gold["relevant"])) is not None


READ = {"relation_scorer": _is_read, "text_scorer": _is_read}


def mean_reciprocal_rank(outputs: Mapping[str, Any], gold: Mapping[str, Any]) -> float:
    """Reciprocal rank of the best-placed right candidate; its mean over questions is the MRR."""
    return reciprocal_rank(outputs["final_scores"], gold["relevant"])


def _hit_at_1(outputs: Mapping[str, Any], gold: Mapping[str, Any]) -> float:
    return hit_at(1, outputs["final_scores"], gold["relevant"])


OTHER_METRICS = {"Hit@1": _hit_at_1}
