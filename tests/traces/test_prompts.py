"""Prompts that were written elsewhere as a start: DSPy's JSON (``tests/golden/dspy_program.json``), and texts."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import optimas_jax as oj
from optimas_jax.core.values import Demo, Prompt
from optimas_jax.llm.component import LanguageModel
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.saved.export.prompts import to_dspy
from optimas_jax.traces.prompts import prompts_for, read_names, read_written
from optimas_jax.traces.records import TraceError

DSPY = Path(__file__).parents[1] / "golden" / "dspy_program.json"
HINT, SAY = oj.prompt("Give a hint.", name="hint"), oj.prompt("Say it.", name="say")
K = oj.setting(1, choices=(1, 2), name="k")


async def words(question):
    return {"answer": await SAY(question=question, hint=await HINT(question=question * K.value))}


def metric(example, outputs):
    return float(len(outputs["answer"]) % 2)


def components():
    program = oj.program(words, components=[HINT, SAY, K])
    return program.system(metric, ("question",), LanguageModel("m")).components


def test_predictors_are_components_and_their_demonstrations_have_the_components_output():
    found = prompts_for(read_written(str(DSPY)), components(), {})
    assert found == {
        "hint": Prompt(
            "Given the fields `question`, produce the fields `hint`.",
            (Demo({"question": "word 1?"}, {"hint": "a number"}),),
        ),
        "say": Prompt("Answer in one word.", (Demo({"question": "word 1?", "hint": "a number"}, {"say": "1"}),)),
    }


def test_what_was_exported_is_a_start(tmp_path):
    prompts = {"hint": Prompt("a", (Demo({"question": "q"}, {"hint": "h"}),)), "say": Prompt("b")}
    (tmp_path / "out.json").write_text(json.dumps(to_dspy(prompts, {"say": "generate.predict"})))
    written = read_written(str(tmp_path / "out.json"))
    assert prompts_for(written, components(), {"generate.predict": "say"}) == prompts
    with pytest.raises(
        TraceError, match=r"prompts of hint, generate\.predict, and the program has prompts called hint"
    ):
        prompts_for(written, components(), {})
    with pytest.raises(TraceError, match=r"start_names"):
        prompts_for(written, components(), {"generate.predict": "k"})
    with pytest.raises(TraceError, match=r"hint named twice"):
        prompts_for(written, components(), {"generate.predict": "hint"})
    with pytest.raises(TraceError, match=r"draft not among them"):
        prompts_for(written, components(), {"generate.predict": "say", "draft": "say"})


BAD = {
    "no.json": (None, "cannot be read"),
    "damaged.json": ("{", "not JSON"),
    "list.json": ("[1]", r"is \[1\], expected an object of prompts"),
    "empty.json": ("{}", "expected an object of prompts"),
    "metadata.json": ('{"metadata": {}}', "only metadata"),
    "number.json": ('{"say": 3}', "say is 3, expected a text"),
    "nothing.json": ('{"say": {"lm": null}}', "neither instructions nor demos; it has lm"),
    "demos.json": ('{"say": {"instruction": "a", "demos": [1]}}', "a demonstration is 1"),
    "instruction.json": ('{"say": {"signature": {"instructions": 3}}}', "instructions are 3"),
    "program.pkl": ("x", "pickled, which is not read: save the module as .json"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_hold_no_prompts_are_refused_with_the_way_out(tmp_path, name):
    text, message = BAD[name]
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(TraceError, match=message):
        read_written(str(tmp_path / name))


def test_names_are_pairs():
    assert read_names("a=b, c = d") == {"a": "b", "c": "d"}
    with pytest.raises(TraceError, match="NAME=OTHER"):
        read_names("a")


def test_a_search_begins_with_them(tmp_path):
    log = io.StringIO()
    result = oj.optimize(
        oj.program(words, components=[HINT, SAY, K]),
        metric,
        [{"question": f"word {i}?"} for i in range(36)],
        model=oj.LanguageModel("random:0", max_tokens=4),
        workdir=tmp_path,
        start={"say": "Answer in one word."},
        config={"optimize.score": "off", "optimize.iterations": 0, "offline.groups": 0},
        progress=ConsoleProgress(Console(file=log, width=300)),
    )
    assert result.best["say"].instruction == "Answer in one word."
    assert result.best["hint"].instruction == "Give a hint."
    assert "validation score of the prompts that it starts from" in log.getvalue()
