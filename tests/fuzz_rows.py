"""Rows, configurations and prices for fuzzing."""

from __future__ import annotations

import json
import random
import runpy
from pathlib import Path
from typing import Any

from fuzzing import TEXTS, Watch, as_bytes, bend, broken, dump
from runs import ROOT

from optimas_jax.benchmarks import amazon, bigcodebench, hotpotqa, pubmedqa, stark_prime
from optimas_jax.benchmarks.data import DataConfig
from optimas_jax.benchmarks.tables import examples_of, read_table
from optimas_jax.llm.accounts.prices import parse_prices, price_of
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import parse_config

_TEST = "import unittest\nclass TestCases(unittest.TestCase):\n    def test_a(self):\n        pass\n"
ROWS: dict[Any, dict[str, Any]] = {
    hotpotqa: {"id": "a", "question": "What is x?", "answer": "y", "type": "bridge", "context": [["T", ["s1", "s2"]]]},
    amazon: {"id": "a", "sequence": "p1\np2", "choices": ["a", "b", "c", "d"], "answer": 1},
    pubmedqa: {"id": "a", "question": "q?", "context": ["c1", "c2"], "answer": "yes"},
    stark_prime: {
        "id": 1,
        "question": "q?",
        "answer_ids": [1],
        "candidate_ids": [1, 2, 3],
        "candidate_scores": [0.1] * 3,
        "text_info": ["t"] * 3,
        "relation_info": ["r"] * 3,
    },
    bigcodebench: {
        "task_id": "t",
        "instruct_prompt": "Do.",
        "code_prompt": "def task_func(x):\n",
        "test": _TEST,
        "canonical_solution": "    return x\n",
        "entry_point": "task_func",
    },
}
_NAMES = {bigcodebench: "task_id"}
_TEXT_OF = {amazon: "sequence", bigcodebench: "instruct_prompt"}
_MODEL = LanguageModel("random:0")
_SETTINGS = {
    hotpotqa: hotpotqa.SystemConfig(_MODEL),
    amazon: amazon.SystemConfig(_MODEL, _MODEL),
    pubmedqa: pubmedqa.SystemConfig(_MODEL, ("random:0", "random:1")),
    stark_prime: stark_prime.SystemConfig(_MODEL),
}


def fuzz_rows(watch: Watch, folder: Path, rng: random.Random, count: int) -> None:
    """Files of four rows, one of them damaged, of every benchmark in turn, and as tables."""
    for number in range(count):
        module = list(ROWS)[number % len(ROWS)]
        rows = [_row(module, index) for index in range(4)]
        lines = [json.dumps(row) for row in rows]
        place = rng.randrange(4)
        lines[place] = rng.choice(TEXTS) if rng.random() < 0.25 else dump(bend(rows[place], rng))
        suffix, text = (".json", f"[{','.join(lines)}]") if rng.random() < 0.15 else (".jsonl", "\n".join(lines))
        data = as_bytes(text)
        if rng.random() < 0.1:
            data = broken(data, rng)
        path = folder / f"rows{suffix}"
        path.write_bytes(data)
        watch.call(lines[place], lambda module=module, path=path: _load(module, path))
        if number % 4 == 0:
            watch.call(lines[place], lambda path=path: _examples(path))
        if number % 4 == 1:
            table = folder / f"table{rng.choice(['.csv', '.parquet', '.json'])}"
            table.write_bytes(broken(b"id,question,answer\n1,a,b\n2,c,d\n", rng))
            watch.call(table.read_bytes(), lambda table=table: _examples(table))


def _row(module: Any, index: int) -> dict[str, Any]:
    row = dict(ROWS[module])
    row[_NAMES.get(module, "id")] = index if module is stark_prime else f"r{index}"
    field = _TEXT_OF.get(module, "question")
    row[field] = f"{row[field]} {index}"
    return row


def _load(module: Any, path: Path) -> None:
    source = "stdlib" if module is bigcodebench else module.SOURCES[0]
    data = module.load(DataConfig(source=source, path=str(path), train=2, val=1, test=1)).check()
    if module in _SETTINGS:
        module.build(data, _SETTINGS[module])


def _examples(path: Path) -> None:
    rows = read_table(path)
    examples_of(rows, list(rows[0])[:1])


def fuzz_configs(watch: Watch, rng: random.Random, count: int) -> None:
    """Configurations with one other value, as a file or a program would give it."""
    good = runpy.run_path(str(ROOT / "configs" / "hotpotqa.py"))["get_config"]("smoke").to_dict()
    for _ in range(count):
        bent = bend(json.loads(json.dumps(good)), rng)
        watch.call(bent, lambda bent=bent: parse_config(bent))


_PRICES = ("openai:x=1/2", ",", "=", "/", "nan", "inf", "-1", "1e400", " ", "anthropic:", "hf:a=1/1", "\x00", "9" * 400)


def fuzz_prices(watch: Watch, rng: random.Random, count: int) -> None:
    """``config.prices``, put together from what stands in it."""
    for _ in range(count):
        text = "".join(rng.choice([*_PRICES, "\ud800", "openai:" + "x" * 400]) for _ in range(rng.randrange(6)))
        watch.call(text, lambda text=text: price_of("openai:x", parse_prices(text)))
