"""HotpotQA (Yang et al., 2018) with the five-component system of the paper (Table 5).

    question -> question_rewriter -> keyword_extractor -> context_retriever(k) -> hint_generator -> answer_generator

The metric is answer F1 as the official evaluation script defines it. As in the paper's system, components after the
rewriter read the rewritten question, not the original one.

Data comes from one named source, and never silently from another:

    embedded   generated questions about countries (``benchmarks.countries``), no download
    hotpotqa   ``hotpotqa/hotpot_qa`` from the hub
    a path     HotpotQA's official JSON, or JSONL of the same fields
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks import countries
from optimas_jax.benchmarks.countries import Article
from optimas_jax.benchmarks.data import (
    ANY,
    SPLITS,
    TEXT,
    DataConfig,
    DataError,
    Dataset,
    deal,
    fields_of,
    hub_rows,
    read_rows,
    repetitions,
    shorten,
    text_or_none,
)
from optimas_jax.benchmarks.metrics import exact_match, token_f1
from optimas_jax.benchmarks.parts import tuned_by_weights
from optimas_jax.core.component import Component, RunContext
from optimas_jax.core.schema import PositiveInt
from optimas_jax.core.system import System
from optimas_jax.core.types import Example
from optimas_jax.core.values import Grid, Hyperparameters, LoraSpace, Value
from optimas_jax.llm.component import LanguageModel, llm_component

METRIC = "f1"
OTHER_METRICS = {"exact match": lambda outputs, gold: exact_match(outputs["answer"], gold["answer"])}
SOURCES = ("embedded", "hotpotqa")
OFFLINE = ("embedded",)
_PROMPTED = ("question_rewriter", "keyword_extractor", "hint_generator", "answer_generator")
HUB = ("hotpotqa/hotpot_qa", "distractor", "validation")


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """The system before optimisation.

    Attributes:
      language_model: the model of the LLM components.
      k_grid: numbers of retrieved passages that the search may choose from.
      k: number of retrieved passages before optimisation.
      weights: names of LLM components whose LoRA weights are tuned instead of their prompts, separated by commas.
    """

    language_model: LanguageModel
    k_grid: tuple[PositiveInt, ...] = (1, 5, 10, 25)
    k: PositiveInt = 1
    weights: str = ""


def load(config: DataConfig) -> Dataset:
    """Reads or generates the data; the chance level of free-text answers is 0.

    Raises:
      DataError: for a missing file, a broken line, a row without a field, or fewer rows than asked for.
    """
    if config.source == "embedded" and not config.path:
        known, mix = countries.load_countries(), config.mix or dict.fromkeys(countries.KINDS, 1.0)
        splits = {
            split: countries.questions(known, split, size, mix, config.seed)
            for split, size in config.sizes.items()
            if size or split in SPLITS
        }
        return Dataset(splits, origin="embedded questions", corpus=countries.articles(known))
    rows = read_rows(Path(config.path), parse_row) if config.path else hub_rows(*HUB, parse_row)
    articles = {
        article.title: Article(
            article.title, shorten(article.text, config.max_chars) if config.max_chars else article.text
        )
        for _, of_row in rows
        for article in of_row
    }
    if not articles:
        raise DataError("no row has a paragraph in its context: there is nothing to retrieve from")
    examples = [example for example, _ in rows]
    origin = (config.path or HUB[0]) + repetitions(examples)
    return Dataset(deal(examples, config), origin=origin, corpus=tuple(articles.values()))


def parse_row(item: Any, where: str) -> tuple[Example, tuple[Article, ...]]:
    """A question and its articles, from any of three shapes: official JSON (``_id``, context as pairs), the hub's
    columns (context as two lists), or a list of {title, sentences}."""
    if isinstance(item, Mapping):
        item = {**item, "id": item.get("id", item.get("_id"))}
    row = fields_of(item, where, {"id": TEXT, "question": TEXT, "answer": TEXT, "context": ANY})
    context = row["context"]
    try:
        if isinstance(context, Mapping):
            pairs = list(zip(context["title"], context["sentences"], strict=True))
        elif context and isinstance(context[0], Mapping):
            pairs = [(paragraph["title"], paragraph["sentences"]) for paragraph in context]
        else:
            pairs = [(title, sentences) for title, sentences in context]
        articles = tuple(_article(title, sentences) for title, sentences in pairs)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: context is not a list of titles with sentences ({error!r:.200})") from error
    kind = text_or_none(row, "type", where)
    return Example(row["id"], {"question": row["question"]}, {"answer": row["answer"]}, "", kind), articles


def _article(title: Any, sentences: Any) -> Article:
    """Raises ``TypeError`` unless these are a text and a list of texts."""
    if not isinstance(title, str) or not isinstance(sentences, list | tuple):
        raise TypeError(f"got {title!r:.40} with {sentences!r:.40}")
    return Article(title, "".join(sentences).strip())


def build_search(articles: Sequence[Article]) -> Callable[[str, int], tuple[str, ...]]:
    """BM25 over titles and texts: ``search(query, k)`` gives the k best articles as ``Title: text``, best first. Equal
    scores keep corpus order. A query without any word of the corpus has no results.

    Raises:
      DataError: the articles have no word that can be searched for.
    """
    import bm25s  # both imports are slow, and a configuration needs neither
    import numpy as np

    texts = [f"{article.title}: {article.text}" for article in articles]
    index = bm25s.BM25()
    words_of: Any = bm25s.tokenize(texts, stopwords="en", show_progress=False)
    if not any(words_of.ids):
        raise DataError(f"the {len(texts)} articles have no word that can be searched for, but stop words at most")
    index.index(words_of, show_progress=False)
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


def build(dataset: Dataset, settings: SystemConfig) -> System:
    """The five-component system of the paper, searching the data set's articles.

    Raises:
      ValueError: if ``settings.weights`` names anything other than LLM components.
    """
    tuned = tuned_by_weights(settings.weights, _PROMPTED)

    def llm(name: str, **parts: Any) -> Component:
        space = LoraSpace() if name in tuned else None
        return llm_component(name=name, language_model=settings.language_model, stop=("\n",), space=space, **parts)

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
        _retriever(dataset.corpus, settings),
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
    return System(components=components, input_fields=("question",), output_fields=("answer",), metric=answer_f1)


def _retriever(corpus: Sequence[Article], settings: SystemConfig) -> Component:
    """The component that searches the corpus; its number of passages k is tuned."""
    search = build_search(corpus)

    async def retrieve(inputs: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        assert isinstance(value, Hyperparameters)
        return {"passages": search(inputs["keywords"], value["k"])}

    return Component(
        name="context_retriever",
        description="Retrieve the passages that match the keywords.",
        inputs=("keywords",),
        outputs=("passages",),
        run=retrieve,
        space=Grid({"k": settings.k_grid}),
        default=Hyperparameters({"k": settings.k}),
    )


def answer_f1(outputs: Mapping[str, Any], gold: Mapping[str, Any]) -> float:
    """F1 of the answer (official script)."""
    return token_f1(outputs["answer"], gold["answer"])


def kinds(examples: Iterable[Example]) -> tuple[str, ...]:
    """Kinds of the examples, in order of first appearance."""
    return tuple(dict.fromkeys(example.kind for example in examples if example.kind))
