"""PubMedQA (Jin et al., 2019), the expert-labelled questions, with the paper's four components (Table 5).

    context, question ─► context_model_selector ─► context_model ─► context_analyst ─► summary
    context, question, summary ─► solver_model_selector ─► solver_model ─► problem_solver ─► answer

Each selector chooses the model of the next component: one of ``SystemConfig.models``, the same for all inputs before
optimisation. The metric is accuracy over yes, no and maybe, graded on the final answer line; macro-F1,
the official script's second metric, is reported beside it. Chance is the most frequent class.

Without a path, data are the 1,000 labelled rows of ``qiaojin/PubMedQA`` on the hub. The hub does not carry the
official split, so its test set is made again by the authors' recipe (pubmedqa/pubmedqa: preprocess/split_dataset.py),
which gives the 500 ids of their ``data/test_ground_truth.json``.

Where this differs from the paper or its released code, and why:

- Only the answer's last line is graded, and it must contain a label and nothing else (``final_answer``). The released
  code took the first yes, no or maybe anywhere, also within a word: "The known evidence ... Answer: yes" was a no.
- All three classes are kept. The paper says that ambiguous rows are dropped; its released data have all 55 of them in
  both files.
- Rows are shuffled before they are split into train and validation; the released code took the end of the file.
- Prompts are shorter, and in the variants for small models ``config.data.max_chars`` cuts long abstracts.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks.data import (
    TEXT,
    TEXTS,
    DataConfig,
    DataError,
    Dataset,
    deal,
    fields_of,
    hub_rows,
    most_frequent,
    official_split,
    read_rows,
    repetitions,
    shorten,
)
from optimas_jax.benchmarks.metrics import macro_f1
from optimas_jax.benchmarks.parts import stops
from optimas_jax.core.system import System
from optimas_jax.core.text.json_text import shown
from optimas_jax.core.types import Example
from optimas_jax.core.values import Models
from optimas_jax.llm.component import LanguageModel, llm_component, model_selector
from optimas_jax.llm.forms.loose import loose_json

METRIC = "accuracy"
SOURCES = ("pubmedqa", "synthetic")
OFFLINE = ("synthetic",)
HUB = ("qiaojin/PubMedQA", "pqa_labeled", "train")
LABELS = ("yes", "no", "maybe")
_LABEL = re.compile(r"[-#> ]{0,5}(?:the )?(?:final )?(?:answer(?: is)? ?[:=-]?)? ?(yes|no|maybe) ?[.,;!]?")
_MARKS = re.compile(r"\\(?:boxed|text)|[*_`\"'()\[\]{}$]")  # marks of Markdown and LaTeX
_TAG = re.compile(r"</?[A-Za-z][\w:-]{0,30}>")


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """The system before optimisation.

    Attributes:
      language_model: settings of requests; its ``model`` is not used.
      models: models that the two selectors choose from; the first is the initial choice.
    """

    language_model: LanguageModel
    models: tuple[str, ...]


def load(config: DataConfig) -> Dataset:
    """Reads or generates the questions.

    Raises:
      DataError: for a missing file, a row of another shape, or fewer rows than asked for.
    """
    if config.path:
        rows, origin = read_rows(Path(config.path), parse_row), config.path
    elif config.source == "synthetic":
        rows, origin = synthetic(sum(config.sizes.values()), config.seed), "made-up abstracts"
    else:
        rows, origin = with_official_split(hub_rows(*HUB, parse_row)), HUB[0]
    shortened = [
        dataclasses.replace(row, inputs={**row.inputs, "context": shorten(row.inputs["context"], config.max_chars)})
        for row in rows
    ]
    splits = deal(shortened, config)
    golds = [example.gold["answer"] for example in splits["test"]]
    guesses = [most_frequent(splits, "answer")] * len(golds)
    hits = sum(map(operator.eq, guesses, golds))
    chance = {METRIC: hits / len(golds), "macro-F1": macro_f1(guesses, golds)}
    return Dataset(splits, chance, origin + repetitions(shortened))


def parse_row(item: Any, where: str) -> Example:
    """A row with ``id``, ``question``, ``context`` (one text a section) and ``answer``, or with the hub's columns
    (``pubid``, ``context.contexts``, ``final_decision``). The abstract's conclusion is never read."""
    if isinstance(item, Mapping) and "final_decision" in item:
        context = item.get("context")
        sections = context.get("contexts") if isinstance(context, Mapping) else None
        item = {
            "id": str(pubid) if isinstance(pubid := item.get("pubid"), int) else pubid,
            "question": item.get("question"),
            "context": sections,
            "answer": item["final_decision"],
        }
    row = fields_of(item, where, {"id": TEXT, "question": TEXT, "context": TEXTS, "answer": TEXT})
    if row["answer"] not in LABELS:
        raise DataError(f"{where}: field answer is {shown(row['answer'])}, expected one of {', '.join(LABELS)}")
    inputs = {"context": " ".join(row["context"]), "question": row["question"]}
    return Example(row["id"], inputs, {"answer": row["answer"]}, official_split(row, where))


def with_official_split(rows: Sequence[Example]) -> list[Example]:
    """The labelled rows, in the official order, with their split: the second half of each class after the authors'
    seeded shuffle is the test set."""
    rng = random.Random(0)
    test: set[str] = set()
    for label in LABELS:
        names = [row.id for row in rows if row.gold["answer"] == label]
        rng.shuffle(names)
        test.update(names[math.ceil(len(names) / 2) :])
    return [dataclasses.replace(row, split="test" if row.id in test else "train") for row in rows]


def synthetic(count: int, seed: int) -> list[Example]:
    """Made-up abstracts for checks without data."""
    rng = random.Random(f"{seed}/synthetic")
    findings = {"yes": "The effect was large.", "no": "There was no effect.", "maybe": "The effect was unclear."}
    rows = []
    for number in range(count):
        answer = rng.choice(LABELS)
        drug, size = f"compound {number}", rng.randrange(20, 500)
        context = f"We gave {drug} to {size} patients. {findings[answer]}"
        rows.append(
            Example(
                f"made-{number:04d}", {"context": context, "question": f"Does {drug} help?"}, {"answer": answer}, ""
            )
        )
    return rows


def build(dataset: Dataset, settings: SystemConfig) -> System:
    """The system of the paper."""
    model = settings.language_model
    models = Models(settings.models)
    components = (
        model_selector(
            name="context_model_selector",
            description="Choose the model that summarises the abstract best for this question.",
            inputs=("context", "question"),
            output="context_model",
            models=models,
        ),
        llm_component(
            name="context_analyst",
            description="Summarise what the abstract says about the question.",
            inputs=("context", "question"),
            output="summary",
            instruction="Summarise the facts of the context that help to answer the question.",
            language_model=model,
            stop=stops(model, "\n"),
            model_from="context_model",
        ),
        model_selector(
            name="solver_model_selector",
            description="Choose the model that answers this question best from the summary.",
            inputs=("context", "question", "summary"),
            output="solver_model",
            models=models,
        ),
        llm_component(
            name="problem_solver",
            description="Answer the question with yes, no or maybe, from the summary.",
            inputs=("summary", "question"),
            output="answer",
            instruction="Answer the question by the summary. The last line of your answer is 'Answer: yes', "
            "'Answer: no' or 'Answer: maybe'."
            if model.style == "chat"
            else "Answer the question by the summary with yes, no or maybe.",
            language_model=model,
            max_tokens=None if model.style == "chat" else 4,
            stop=stops(model, "\n"),
            model_from="solver_model",
        ),
    )
    return System(components, input_fields=("context", "question"), output_fields=("answer",), metric=accuracy)


def final_answer(text: str) -> str:
    """The label in the last line, or "" if there is none.

    The line is a label, or ``Answer:`` and a label; upper case, quotes, stars, brackets, tags, fences and a mark at the
    end are ignored. A line with other text, such as two labels or a reason, has no label. An answer of JSON has the
    label in a field ``answer``.
    """
    data = loose_json(text)
    if isinstance(data, Mapping):
        fields = {str(name).lower(): value for name, value in data.items()}
        text = next((str(fields[name]) for name in ("answer", "final_answer", "final answer") if name in fields), "")
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith(("```", "~~~"))]
    bare = _MARKS.sub("", _TAG.sub("", lines[-1])).lower() if lines else ""
    match = _LABEL.fullmatch(" ".join(bare.split()))
    return match[1] if match else ""


def accuracy(outputs: Mapping[str, Any], gold: Mapping[str, Any]) -> float:
    """1 if the final answer is the gold label."""
    return float(final_answer(outputs["answer"]) == gold["answer"])


def _macro_f1(outputs: Sequence[Mapping[str, Any]], golds: Sequence[Mapping[str, Any]]) -> float:
    answers = [final_answer(fields["answer"]) if fields else "" for fields in outputs]
    return macro_f1(answers, [gold["answer"] for gold in golds])


READ = {"problem_solver": lambda outputs, example: bool(final_answer(outputs["answer"]))}
SET_METRICS = {"macro-F1": _macro_f1}
