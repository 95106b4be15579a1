"""HotpotQA (Yang et al., 2018) with the five-component system of the paper (Table 5).

    question -> question_rewriter -> keyword_extractor -> context_retriever(k) -> hint_generator -> answer_generator

The metric is answer F1 as the official evaluation script defines it. As in the paper's system, components behind the
rewriter see the rewritten question, not the question itself.

Data comes from one named source, never silently from another:

    embedded   generated questions about countries (``benchmarks.countries``), no download
    hotpotqa   the rows of ``path`` (HotpotQA's official JSON, or JSONL of the same fields), or without a path
               ``hotpotqa/hotpot_qa`` from the hub
"""

from __future__ import annotations

import collections
import dataclasses
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from optimas_jax.benchmarks import countries
from optimas_jax.benchmarks.countries import Article
from optimas_jax.core.metrics import token_f1
from optimas_jax.core.system import Component, RunContext, System
from optimas_jax.core.types import Example
from optimas_jax.core.values import Grid, Hyperparameters, LoraSpace, Value
from optimas_jax.llm.component import LanguageModel, llm_component

METRIC = "f1"
CHANCE = 0.0  # free-text answers: no guess scores


class DataError(ValueError):
    """Rows that cannot be used; says where and why."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where questions come from.

    Attributes:
      source: ``embedded`` or ``hotpotqa``.
      path: file of HotpotQA rows; empty for the hub's.
      train, val, test: number of questions per split.
      mix: shares of the kinds of embedded questions.
      seed: deals questions to splits; apart from the run's seed, so that runs compare on the same data.
    """

    source: Literal["embedded", "hotpotqa"]
    path: str = ""
    train: int = 64
    val: int = 32
    test: int = 100
    mix: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"one-hop": 1.0})
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples by split, and the articles that the retriever searches."""

    splits: Mapping[str, tuple[Example, ...]]
    articles: tuple[Article, ...]


def load(config: DataConfig) -> Dataset:
    """Reads or generates the data.

    Raises:
      DataError: for a missing file, a broken line, a row without a field, or fewer rows than asked for.
    """
    sizes = {"train": config.train, "val": config.val, "test": config.test}
    if config.source == "embedded":
        if config.path:
            raise DataError(
                f"config.data.path is {config.path!r}, which embedded questions do not read: use hotpotqa.py:local"
            )
        known = countries.load_countries()
        splits = {
            split: countries.questions(known, split, size, config.mix, config.seed) for split, size in sizes.items()
        }
        return Dataset(splits, countries.articles(known))
    if config.source != "hotpotqa":
        raise DataError(f"unknown data source {config.source!r}; known: embedded, hotpotqa")
    return _split_rows(read_rows(Path(config.path)) if config.path else _hub_rows(), sizes, config.seed)


@dataclasses.dataclass(frozen=True)
class _Row:
    id: str
    question: str
    answer: str
    kind: str
    articles: tuple[Article, ...]


def read_rows(path: Path) -> list[_Row]:
    """Rows of a ``.jsonl`` file, or of a ``.json`` file in the official format (one array)."""
    if not path.is_file():
        raise DataError(f"no file {str(path)!r}: set --config.data.path to HotpotQA rows (official JSON, or JSONL)")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error})") from error
    if path.suffix == ".json":
        try:
            items = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
        if not isinstance(items, list):
            raise DataError(f"{path} holds {type(items).__name__}, expected an array of questions")
        return [_parse_row(item, f"{path}, item {index}") for index, item in enumerate(items)]
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                item = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
            rows.append(_parse_row(item, f"{path}, line {number}"))
    return rows


def _hub_rows() -> list[_Row]:
    import datasets

    try:
        data = datasets.load_dataset("hotpotqa/hotpot_qa", "distractor", split="validation")
    except Exception as error:  # the hub client raises many kinds; all mean that the rows did not arrive
        raise DataError(
            f"could not get hotpotqa/hotpot_qa from the hub ({type(error).__name__}: {error}). For rows of your "
            "own use --config.data.path=FILE"
        ) from error
    return [_parse_row(item, f"hub row {index}") for index, item in enumerate(data)]


def _parse_row(item: Any, where: str) -> _Row:
    """One row in any of three shapes: official JSON (``_id``, context as pairs), the hub's columns (context as two
    lists), or a list of {title, sentences}."""
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: expected an object, got {type(item).__name__}")
    values = {"id": item.get("id", item.get("_id")), **{key: item.get(key) for key in ("question", "answer")}}
    missing = [name for name, value in values.items() if not isinstance(value, str) or not value]
    if missing or "context" not in item:
        raise DataError(
            f"{where}: lacks {', '.join(missing or ['context'])} (a row needs id, question, answer, context)"
        )
    context = item["context"]
    try:
        if isinstance(context, Mapping):
            pairs = list(zip(context["title"], context["sentences"], strict=True))
        elif context and isinstance(context[0], Mapping):
            pairs = [(paragraph["title"], paragraph["sentences"]) for paragraph in context]
        else:
            pairs = [(title, sentences) for title, sentences in context]
        articles = tuple(Article(title, "".join(sentences).strip()) for title, sentences in pairs)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: context is not a list of titles with sentences ({error!r})") from error
    return _Row(values["id"], values["question"], values["answer"], str(item.get("type") or ""), articles)


def _split_rows(rows: Sequence[_Row], sizes: Mapping[str, int], seed: int) -> Dataset:
    """Deals rows to the splits by a seeded shuffle; equal questions count once."""
    unique = list({row.question: row for row in rows}.values())
    if len(unique) < sum(sizes.values()):
        raise DataError(
            f"{len(unique)} different questions, {sum(sizes.values())} asked for ({dict(sizes)}): lower "
            "config.data.train, val or test"
        )
    repeated = [name for name, count in collections.Counter(row.id for row in unique).items() if count > 1]
    if repeated:
        raise DataError(f"{len(repeated)} ids stand for several questions, the first is {repeated[0]!r}")
    if not any(row.articles for row in unique):
        raise DataError("no row has a paragraph in its context: there is nothing to retrieve from")
    unique.sort(key=lambda row: row.id)
    random.Random(f"{seed}/rows").shuffle(unique)
    splits, start = {}, 0
    for split, size in sizes.items():
        splits[split] = tuple(
            Example(row.id, {"question": row.question}, {"answer": row.answer}, split, row.kind)
            for row in unique[start : start + size]
        )
        start += size
    articles = {article.title: article for row in rows for article in row.articles}
    return Dataset(splits, tuple(articles.values()))


def build_search(articles: Sequence[Article]) -> Callable[[str, int], tuple[str, ...]]:
    """BM25 over titles and texts: ``search(query, k)`` gives the k best articles as ``Title: text``, best first.
    Equal scores keep corpus order. A query without a single word of the corpus finds nothing."""
    import bm25s  # both are slow to import, and a configuration needs neither
    import numpy as np

    texts = [f"{article.title}: {article.text}" for article in articles]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    known_words = index.vocab_dict

    def search(query: str, k: int) -> tuple[str, ...]:
        words = bm25s.tokenize(query, stopwords="en", return_ids=False, show_progress=False)[0]
        known = [word for word in map(str, words) if word in known_words]
        if not known:
            return ()
        scores = index.get_scores(known)
        best = np.argsort(-scores, kind="stable")[:k]
        return tuple(texts[position] for position in best)

    return search


def build(
    articles: Sequence[Article], language_model: LanguageModel, k_grid: Sequence[int], k: int, weights: str = ""
) -> System:
    """The five-component system of the paper.

    Args:
      articles: corpus of the retriever.
      language_model: answers for the four LLM components.
      k_grid: allowed numbers of retrieved articles.
      k: number before optimisation.
      weights: LLM components that are tuned by LoRA weights instead of prompts, separated by commas.

    Raises:
      ValueError: if ``weights`` names something else.
    """
    search = build_search(articles)

    async def retrieve(inputs: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        assert isinstance(value, Hyperparameters)
        return {"passages": search(inputs["keywords"], value["k"])}

    tuned = [name.strip() for name in weights.split(",") if name.strip()]

    def llm(name: str, **parts: Any) -> Component:
        space = LoraSpace() if name in tuned else None
        return llm_component(name=name, language_model=language_model, stop=("\n",), space=space, **parts)

    components = (
        llm(
            name="question_rewriter",
            description="Rewrite the question so that it is clear and complete.",
            inputs=("question",),
            output="rewritten_question",
            instruction="Repeat the question, clear and complete.",
            max_tokens=24,
        ),
        llm(
            name="keyword_extractor",
            description="Extract the keywords to search an encyclopedia with.",
            inputs=("rewritten_question",),
            output="keywords",
            instruction="Extract the keywords of the question.",
            max_tokens=16,
        ),
        Component(
            name="context_retriever",
            description="Retrieve the passages that match the keywords.",
            inputs=("keywords",),
            outputs=("passages",),
            run=retrieve,
            space=Grid({"k": tuple(k_grid)}),
            default=Hyperparameters({"k": k}),
        ),
        llm(
            name="hint_generator",
            description="Find the facts in the passages that help to answer the question.",
            inputs=("passages", "rewritten_question"),
            output="hint",
            instruction="Copy the sentence of the passages that answers the question.",
            max_tokens=32,
        ),
        llm(
            name="answer_generator",
            description="Answer the question with a short phrase, using the hint.",
            inputs=("hint", "rewritten_question"),
            output="answer",
            instruction="Answer the question with a short phrase.",
            max_tokens=16,
        ),
    )
    unknown = set(tuned) - {component.name for component in components if isinstance(component.space, LoraSpace)}
    if unknown:
        raise ValueError(f"weights of {', '.join(sorted(unknown))}: there is no such LLM component")
    return System(components=components, input_fields=("question",), output_fields=("answer",), metric=answer_f1)


def answer_f1(outputs: Mapping[str, Any], gold: Mapping[str, Any]) -> float:
    """F1 of the answer (official script)."""
    return token_f1(outputs["answer"], gold["answer"])


def kinds(examples: Iterable[Example]) -> tuple[str, ...]:
    """Kinds that occur, in order of first appearance."""
    return tuple(dict.fromkeys(example.kind for example in examples if example.kind))
