"""Made-up answers of a rehearsal are like true ones where the rest of the system reads them."""

from __future__ import annotations

import asyncio

import pytest
from fakes import ScriptedCompleter

from optimas_jax.benchmarks import hotpotqa
from optimas_jax.benchmarks.data import DataConfig
from optimas_jax.core.component import RunContext
from optimas_jax.core.system import System
from optimas_jax.core.types import Example, derive_seed
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.forecast.imagined import ImaginedSystem, World, made_up
from optimas_jax.loop.forecast.plan import EXPECTED, LOW


def test_a_made_up_text_has_words_of_another_its_length_and_a_mark() -> None:
    assert made_up("Which river is longest?", "3fa9c1", 21) == "Which river is 3fa9c1"
    assert made_up("a\nb", "3fa9c1", 15) == "a b a b  3fa9c1"
    assert made_up("", "3fa9c1", 24) == "imagined imagined 3fa9c1"
    assert made_up("anything", "3fa9c1", 3) == " 3fa9c1"


def imagined(world: World) -> tuple[System, Example]:
    data = hotpotqa.load(DataConfig("embedded", train=4, val=2, test=2, confirm=2))
    system = hotpotqa.build(data, hotpotqa.SystemConfig(LanguageModel("openai:gpt-4o-mini", max_tokens=16)))
    examples = [example for split in data.splits.values() for example in split]
    return ImaginedSystem(system, examples, 0, world).system, data.splits["train"][0]


def test_a_retriever_finds_passages_with_made_up_keywords() -> None:
    system, example = imagined(EXPECTED)
    completer = ScriptedCompleter(lambda request: "")
    system = system.using(completer)
    asyncio.run(system.run(system.default_configuration(), example, 0))
    (hint,) = [request for request in completer.requests if request.role == "hint_generator"]
    passages = hint.messages[-1].content.partition("Passages: ")[2].partition("\nRewritten question:")[0]
    assert any(word in passages for word in example.inputs["question"].strip("?").split())


@pytest.mark.parametrize(
    ("world", "temperature", "expected"), [(LOW, None, (1, 12)), (EXPECTED, None, (5, 17)), (EXPECTED, 1.0, (18, 20))]
)
def test_answers_that_are_drawn_nearly_always_differ(world, temperature, expected) -> None:
    system, example = imagined(world)
    rewriter = system.by_name["question_rewriter"]
    seeds = [derive_seed(0, example.id, rewriter.name), *range(19)]
    contexts = [RunContext(ScriptedCompleter(lambda request: ""), seed, rewriter.name, temperature) for seed in seeds]
    answers = [
        asyncio.run(rewriter.run(example.inputs, rewriter.default, context))["rewritten_question"]
        for context in contexts
    ]
    assert expected[0] <= len(set(answers)) <= expected[1]
