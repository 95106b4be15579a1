"""Amazon, PubMedQA and STaRK-Prime: rows, structure and data flow, grading, chance."""

import asyncio
import itertools
import json
import random
import runpy
import statistics

import pytest
from fakes import ScriptedCompleter
from runs import ROOT

from optimas_jax.benchmarks import amazon, pubmedqa, stark_prime
from optimas_jax.benchmarks.data import DataConfig, DataError, Dataset, deal, numbered, shorten
from optimas_jax.benchmarks.modules import BENCHMARKS, BenchmarkError, find_benchmark
from optimas_jax.core.types import Example
from optimas_jax.core.values import BASE, Choice, Hyperparameters, LoraSpace
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import parse_config

MODEL = LanguageModel("m", style="text")
DATA = next((p / "shared" / "data" for p in ROOT.parents if (p / "shared" / "data").is_dir()), None)
CONFIGS = ("amazon", "pubmedqa", "stark_prime", "hotpotqa")
AMAZON = {"id": "e-0", "sequence": "kettle\nred kettle", "choices": ["lamp", "tea"], "answer": 1, "split": "train"}
PUBMED = {"id": "t-0", "question": "Does it help?", "context": ["We tried.", "It did."], "answer": "yes"}
STARK = {
    "id": 7,
    "question": "Which drug?",
    "answer_ids": [3, 99],
    "candidate_ids": [1, 2, 3],
    "candidate_scores": [0.5, 0.25, 0],
    "text_info": ["- name: A\n- type: drug", "B", "C"],
    "relation_info": ["a", "b", "c"],
}


def run(system, inputs, gold, answers, configuration=None):
    completer = ScriptedCompleter(lambda request: answers[request.role])
    example = Example("e", inputs, gold, "test")
    configuration = configuration or system.default_configuration()
    return asyncio.run(system.using(completer).run(configuration, example, 0)), completer.requests


def empty(**gold):
    return Dataset({"train": (Example("e", {}, gold, "train"),)})


# Common reading and dealing


def examples(count, split=""):
    return [Example(f"{split}{number}", {"q": f"{split}{number}"}, {}, split) for number in range(count)]


def test_official_test_rows_are_dealt_to_test_only():
    rows = [*examples(5, "test"), *examples(9, "train"), *examples(3)]
    splits = deal(rows, DataConfig(train=5, val=3, test=4, splits="official"))
    assert {name: len(dealt) for name, dealt in splits.items()} == {"train": 5, "val": 3, "test": 4}
    assert all(example.id.startswith("test") == (name == "test") for name, dealt in splits.items() for example in dealt)
    with pytest.raises(DataError, match=r"5 different examples of the official test set, 6 asked .*config\.data\.test"):
        deal(rows, DataConfig(train=5, val=3, test=6, splits="official"))
    with pytest.raises(DataError, match=r"9 different examples outside the official test set, 13 asked"):
        deal(rows, DataConfig(train=10, val=3, test=4, splits="official"))


def test_texts_are_cut_at_a_space_and_numbered():
    assert shorten("one  two\nthree", 0) == "one two three"
    assert shorten("one two three", 8) == "one two ..."
    assert shorten("one two", 7) == "one two"
    assert shorten("onetwothree", 4) == "onet ..."
    assert numbered(["a b", "c"], 0, 2) == "0. a ...\n1. c"


def test_a_data_set_that_lacks_a_split_or_repeats_an_id_is_refused():
    [one] = examples(1)
    with pytest.raises(DataError, match="no examples to val, test"):
        Dataset({"train": (one,)}).check()
    with pytest.raises(DataError, match="1 ids stand for several examples"):
        Dataset({"train": (one,), "val": (one,), "test": (one,)}).check()


@pytest.mark.parametrize(
    ("module", "row", "changes", "message"),
    [
        (amazon, AMAZON, {"answer": 2}, "answer 2 of 2 choices"),
        (amazon, AMAZON, {"answer": True}, "field answer is True, expected a whole number"),
        (amazon, AMAZON, {"choices": "lamp"}, "field choices is 'lamp', expected a list of texts"),
        (amazon, AMAZON, {"sequence": None}, r"lacks sequence \(a row needs id, sequence, choices, answer\)"),
        (pubmedqa, PUBMED, {"answer": "perhaps"}, "field answer is 'perhaps', expected one of yes, no, maybe"),
        (pubmedqa, PUBMED, {"context": []}, r"field context is \[\], expected a list of texts"),
        (stark_prime, STARK, {"candidate_scores": [1, 2]}, "candidates differ in number"),
        (stark_prime, STARK, {"candidate_ids": [1, 1, 2]}, "listed twice"),
        (stark_prime, STARK, {"answer_ids": ["3"]}, "expected a list of whole numbers"),
    ],
)
def test_a_row_of_the_wrong_shape_is_named_with_file_line_and_field(tmp_path, module, row, changes, message):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(one) for one in (row, {**row, **changes})), encoding="utf-8")
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: .*{message}"):
        module.load(DataConfig(path=str(file), train=1, val=1, test=1))


@pytest.mark.parametrize("name", ["amazon", "pubmedqa", "stark_prime"])
@pytest.mark.skipif(DATA is None, reason="no real rows on this machine")
def test_real_rows_are_read(name):
    data = BENCHMARKS[name].load(DataConfig(path=str(DATA / name / "dev.jsonl"), train=150, val=50, test=90)).check()
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 150, "val": 50, "test": 90}
    assert 0.2 < data.chance[BENCHMARKS[name].METRIC] < 0.7
    short = BENCHMARKS[name].load(
        DataConfig(path=str(DATA / name / "dev.jsonl"), train=9, val=5, test=9, max_chars=60, max_items=3)
    )
    assert max(len(str(v)) for rows in short.splits.values() for e in rows for v in e.inputs.values()) < 600


@pytest.mark.parametrize("name", ["amazon", "pubmedqa", "stark_prime"])
def test_generated_rows_are_seeded_and_as_many_as_asked_for(name):
    load, config = BENCHMARKS[name].load, DataConfig("synthetic", train=6, val=3, test=5)
    assert load(config).splits == load(config).check().splits
    assert load(config).splits != load(DataConfig("synthetic", train=6, val=3, test=5, seed=1)).splits
    assert len(load(config).splits["test"]) == 5


@pytest.mark.parametrize("name", CONFIGS)
def test_every_variant_is_a_configuration(name):
    get_config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]
    sizes = {"amazon": (335, 60, 99), "pubmedqa": (475, 25, 500), "stark_prime": (495, 51, 96)}
    for variant in ("local", "smoke", "paper"):
        config = parse_config(get_config(variant).to_dict())
        assert (config.benchmark, config.variant) == (name, variant)
        if variant == "paper" and name in sizes:
            assert (config.data.train, config.data.val, config.data.test) == sizes[name]
    with pytest.raises(ValueError, match=r"unknown variant 'nope' .*known"):
        get_config("nope")


# Amazon


def test_amazon_data_flow():
    settings = amazon.SystemConfig(MODEL, LanguageModel("decider", style="text"))
    system = amazon.build(empty(), settings)
    answers = {"session_analyzer": "wants tea", "candidate_profiler": "1 fits", "next_item_decider": " 1. tea"}
    inputs = {"sequence": "kettle", "choices": "0. lamp\n1. tea"}
    trace, requests = run(system, inputs, {"answer": "1"}, answers)
    assert trace.score == 1.0
    assert [request.model for request in requests] == ["m", "m", "decider"]
    assert "0. lamp\n1. tea" in requests[2].messages[-1].content  # the decider sees the options
    assert [isinstance(system.by_name[name].space, LoraSpace) for name in system.order] == [True, True, False]
    assert system.default_configuration()["session_analyzer"] == BASE
    with pytest.raises(ValueError, match="weights of next_item_decider: there is no such"):
        amazon.build(empty(), amazon.SystemConfig(MODEL, MODEL, weights="next_item_decider"))


def test_amazon_csv_rows_are_read_as_the_others():
    row = {"question": "Choose.\nProduct Sequence:\nkettle\nred kettle", "choices": "['lamp', 'tea']", "answer": "1"}
    assert amazon.parse_csv_row(row, "here", "e-0", "train") == amazon.parse_row(AMAZON, "here")
    with pytest.raises(DataError, match=r"here: choices is not a list"):
        amazon.parse_csv_row({**row, "choices": "__import__('os')"}, "here", "e-0", "train")


def test_amazon_chance_is_one_in_the_number_of_options(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{**AMAZON, "id": str(n), "sequence": f"p{n}", "choices": ["a", "b", "c", "d"]} for n in range(4)]
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert amazon.load(DataConfig(path=str(file), train=1, val=1, test=2)).chance == {"accuracy": 0.25}


# PubMedQA


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("The known evidence cannot decide. But still.\nAnswer: yes", "yes"),
        ("Answer: no\n\nAnswer: maybe.\n", "maybe"),
        ("**Answer:** *No*", "no"),
        ("yes", "yes"),
        ("The final answer is: Maybe", "maybe"),
        ("The known evidence", ""),
        ("Answer: yes\nI hope that this helps", ""),
        ("Answer: yes/maybe", ""),
        ("```\nAnswer: yes\n```", "yes"),
        ('{"answer": "yes"}', "yes"),
        ('```json\n{\n "reason": "no effect", "answer": "Maybe"\n}\n```', "maybe"),
        ("{'answer': 'No.'}", "no"),
        ('{"reason": "yes"}', ""),
        ("Answer: yes</invoke>", "yes"),
        ("<answer>yes</answer>", "yes"),
        ("yes,", "yes"),
        ("### Answer - **yes**", "yes"),
        ("$\\boxed{\\text{Yes}}$", "yes"),
        ("Final  answer :\tNO!", "no"),
        (f"answer{' ' * 20_000}x", ""),
        ("Answer: no significant effect", ""),
        ("diagnosis", ""),
        ("yesno", ""),
        ("", ""),
    ],
)
def test_only_a_label_on_the_last_line_is_an_answer(text, label):
    assert pubmedqa.final_answer(text) == label
    assert pubmedqa.accuracy({"answer": text}, {"answer": "yes"}) == float(label == "yes")


def test_no_answer_counts_unless_its_last_line_is_a_label():
    rng = random.Random(0)
    parts = ["yes", "no", "maybe", "known", "Answer: ", "\n", " ", ".", "not", "diagnosis", "YES", "*", "or"]
    for _ in range(1000):
        text = "".join(rng.choices(parts, k=rng.randrange(7)))
        last = ([line for line in text.split("\n") if line.strip()] or [""])[-1].replace("*", "").strip().lower()
        said = last[len("answer:") :].strip() if last.startswith("answer:") else last
        bare = said[:-1].strip() if said.endswith(".") else said
        assert pubmedqa.final_answer(text) == (bare if bare in pubmedqa.LABELS else "")


def test_pubmedqa_asks_the_models_that_the_selectors_name():
    system = pubmedqa.build(empty(), pubmedqa.SystemConfig(MODEL, ("one", "two")))
    assert system.order == ("context_model_selector", "context_analyst", "solver_model_selector", "problem_solver")
    answers = {"context_analyst": "It helps.", "problem_solver": "Yes."}
    inputs = {"context": "We tried.", "question": "Does it help?"}
    configuration = system.default_configuration().replace("solver_model_selector", Choice("two"))
    trace, requests = run(system, inputs, {"answer": "yes"}, answers, configuration)
    assert trace.score == 1.0
    assert [request.model for request in requests] == ["one", "two"]
    assert "We tried." not in requests[1].messages[-1].content  # the solver reads the summary


def test_pubmedqa_hub_rows_are_read_as_the_others():
    hub = {"pubid": 12, "question": "Does it help?", "context": {"contexts": ["We tried.", "It did."]}}
    row = pubmedqa.parse_row({**hub, "final_decision": "yes", "long_answer": "secret"}, "here")
    assert row.inputs == pubmedqa.parse_row(PUBMED, "here").inputs
    assert (row.id, row.gold) == ("12", {"answer": "yes"})


def test_the_official_split_has_half_of_every_class():
    rows = [Example(str(n), {"q": n}, {"answer": pubmedqa.LABELS[n % 3]}, "") for n in range(60)]
    test = [row for row in pubmedqa.with_official_split(rows) if row.split == "test"]
    assert [sum(row.gold["answer"] == label for row in test) for label in pubmedqa.LABELS] == [10, 10, 10]


# STaRK-Prime


def test_stark_data_flow():
    data = Dataset({"train": (Example("e", {}, {"relevant": (True,) * 3}, "train"),)})
    system = stark_prime.build(data, stark_prime.SystemConfig(MODEL))
    assert system.parents["text_scorer"] == system.parents["relation_scorer"] == ()
    row = stark_prime.parse_row(STARK, "here")
    inputs = {"question": "q", "relation_info": "r", "text_info": "t", "similarities": row.similarities}
    answers = {"relation_scorer": "0, 0, 1", "text_scorer": '{"1": 0, "2": 0.5, "3": 1}'}
    trace, _ = run(system, inputs, {"relevant": row.relevant}, answers)
    assert trace.outputs["final_scores"] == pytest.approx((0.5, 0.3, 0.2))
    assert trace.score == pytest.approx(1 / 3)
    heavy = Hyperparameters({"relation_weight": 1.0, "text_weight": 0.1})
    trace, _ = run(
        system,
        inputs,
        {"relevant": row.relevant},
        answers,
        system.default_configuration().replace("aggregator", heavy),
    )
    assert trace.score == 1.0


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("0.9, 0.1, 1", (0.9, 0.1, 1.0)),
        ("[0.9, 0.1, 1]", (0.9, 0.1, 1.0)),
        ('{"1": 0.9, "3": 1, "2": 0.1}', (0.9, 0.1, 1.0)),
        ("1: 0.9\n2: 0.1\n3: 1", (0.9, 0.1, 1.0)),
        ("7, 0, 0.5", (1.0, 0.0, 0.5)),
        ('```json\n{"1": 0.9, "2": 0.1, "3": 1}\n```', (0.9, 0.1, 1.0)),
        ("{'1': 0.9, '2': 0.1, '3': 1}", (0.9, 0.1, 1.0)),
        ('{"1": 0.9, "2": 0.1, "3": 1,}', (0.9, 0.1, 1.0)),
        ('{"scores": [0.9, 0.1, 1]}', (0.9, 0.1, 1.0)),
        ('{"reason": "x", "scores": {"1": 0.9, "2": 0.1, "3": 1}}', (0.9, 0.1, 1.0)),
        ('[{"id": 7, "score": 0.9}, {"id": 8, "score": 0.1}, {"id": 9, "score": 1}]', (0.9, 0.1, 1.0)),
        ('"[0.9, 0.1, 1]"', (0.9, 0.1, 1.0)),
        ('["0.9", "0.1", "1"]', (0.9, 0.1, 1.0)),
        ("1. 0.9\n2. 0.1\n3. 1", (0.9, 0.1, 1.0)),
        ("Entity 1: **0.9**\nEntity 2: **0.1**\nEntity 3: **1**", (0.9, 0.1, 1.0)),
        ("Here are the 3 scores: 0.9, 0.1, 1", (0.9, 0.1, 1.0)),
        ("First [0.5, 0.5, 0.5], but better [0.9, 0.1, 1].", (0.9, 0.1, 1.0)),
        ("<think>0.5, 0.5, 0.5</think>0.9, 0.1, 1", (0.9, 0.1, 1.0)),
        ("The 2nd of 3 is bad.\n0.9, 0.1, 1", (0.9, 0.1, 1.0)),
        ("90%, 10%, 100%", (0.9, 0.1, 1.0)),
        ("9e-1, 1e-1, 1e0", (0.9, 0.1, 1.0)),
        ("9/10, 1/10, 10/10", (0.9, 0.1, 1.0)),
        ('{"entity 1": 0.9, "entity 2": 0.1, "entity 3": 1}', (0.9, 0.1, 1.0)),
        ("| 1 | 0.9 |\n| 2 | 0.1 |\n| 3 | 1 |", (0.9, 0.1, 1.0)),
        ("1. 0.9 (good)\n2. 0.1 (bad)\n3. 1 - the best", (0.9, 0.1, 1.0)),
        ("-0.9, 0.1, +1", (0.0, 0.1, 1.0)),
        ("[0.9, 0.1]", (0.0, 0.0, 0.0)),
        ('{"1": 0.9, "2": 0.1}', (0.0, 0.0, 0.0)),
        ("0.9, 0.1", (0.0, 0.0, 0.0)),
        ('{"1": 0.9, "2": true, "3": 1}', (0.0, 0.0, 0.0)),
        ("[NaN, 1, 1]", (0.0, 0.0, 0.0)),
        (f"[{10**400}, -{10**400}, 1]", (1.0, 0.0, 1.0)),
        ("[" * 5000, (0.0, 0.0, 0.0)),
        ("none of them", (0.0, 0.0, 0.0)),
        ("", (0.0, 0.0, 0.0)),
        ("3", (0.0, 0.0, 0.0)),
    ],
)
def test_scores_are_read_or_count_nothing(text, scores):
    assert stark_prime.read_scores(text, 3) == scores


@pytest.mark.parametrize(("candidates", "relevant"), [(5, 1), (5, 2), (5, 5), (4, 3), (3, 0)])
def test_chance_is_the_mean_over_all_orders(candidates, relevant):
    row = [rank < relevant for rank in range(candidates)]
    ranks = [order.index(True) + 1 if relevant else 0 for order in itertools.permutations(row)]
    mean = statistics.fmean(1 / rank if rank else 0.0 for rank in ranks)
    assert stark_prime.random_reciprocal_rank(candidates, relevant) == pytest.approx(mean)


def test_without_rows_stark_says_how_to_pass_them():
    with pytest.raises(DataError, match=r"--config\.data\.path"):
        stark_prime.load(DataConfig("stark"))


# Your own system


def test_a_file_is_a_benchmark(tmp_path):
    own_system = find_benchmark(str(ROOT / "configs" / "own_system.py"))
    config = parse_config(own_system.get_config().to_dict())
    data = own_system.load(config.data).check()
    assert {split: len(rows) for split, rows in data.splits.items()} == {
        "train": 12,
        "val": 8,
        "confirm": 8,
        "test": 14,
    }
    system = own_system.build(data, config.system)
    assert system.order == ("describer", "sorter")
    trace, _ = run(system, {"thing": "fig"}, {"sort": "fruit"}, {"describer": "is eaten", "sorter": "Fruit."})
    assert trace.score == 1.0
    file = tmp_path / "half.py"
    file.write_text("METRIC = 'x'\n")
    with pytest.raises(BenchmarkError, match=r"half\.py lacks load, build: a benchmark has METRIC, load, build"):
        find_benchmark(str(file))


def test_the_own_system_is_short():
    lines = (ROOT / "configs" / "own_system.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) < 40
