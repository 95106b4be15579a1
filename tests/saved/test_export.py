"""Results for other software: what DSPy, clients of OpenAI and people read, and classifiers of local rewards."""

import asyncio
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from fakes import ScriptedCompleter
from runs import ROOT

import optimas_jax as oj
from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.core.types import Example, freeze
from optimas_jax.core.values import Adapter, Configuration, Demo, Hyperparameters, PerInstance, Prompt
from optimas_jax.llm.component import LanguageModel
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.saved.export.messages import fill, to_messages
from optimas_jax.saved.export.prompts import ExportError, prompts_of, to_dspy, to_markdown
from optimas_jax.saved.export.reward import export_rewards, text_function
from optimas_jax.saved.folder import read_folder

DEMO = Demo({"question": "a {b}", "hint": "h"}, {"say": "c"}, "q1")
FOUND = Configuration(
    {
        "hint": Prompt("Give {a} hint: ```x```."),
        "say": Prompt("Say it.", (DEMO, Demo({"question": "d", "hint": ""}, {"say": "e"}, recorded="f, line 3"))),
        "k": Hyperparameters({"value": 3}),
    }
)
MODULE = """
import optimas_jax as oj

k = oj.setting(1, choices=(1, 3))
hint = oj.prompt("Give a hint.", max_tokens=5)
say = oj.prompt("Say the word.", max_tokens=5)


async def words(question):
    return {"answer": await say(question=question, hint=await hint(question=question * k.value))}


def letters(example, made):
    return sum(one in "aeiou" for one in made["answer"]) / 10
"""


def test_dspys_json_has_instructions_and_demonstrations_by_predictor():
    prompts, others = prompts_of(FOUND)
    assert others == ["k is value = 3"]
    state = to_dspy(prompts, {"say": "say.predict"})
    assert set(state) == {"hint", "say.predict", "metadata"}
    assert state["hint"]["signature"] == {"instructions": "Give {a} hint: ```x```.", "fields": []}
    assert state["say.predict"]["demos"][0] == {"augmented": True, "question": "a {b}", "hint": "h", "say": "c"}
    with pytest.raises(ExportError, match="no prompt is called draft; there are hint, say"):
        to_dspy(prompts, {"draft": "a"})
    with pytest.raises(ExportError, match="names of their own"):
        to_dspy(prompts, {"say": "hint"})
    with pytest.raises(ExportError, match="no prompt to export: a is the adapter d"):
        prompts_of(Configuration({"a": Adapter("d")}))
    best_of = Configuration({"say": PerInstance((Prompt("Say."),), "r", 4)})
    assert prompts_of(best_of) == ({"say": Prompt("Say.")}, ["say keeps the best of 4 samples"])


def test_markdown_shows_every_text_whatever_marks_it_holds():
    text = to_markdown("Prompts", *prompts_of(FOUND))
    assert "````text\nGive {a} hint: ```x```.\n````" in text
    assert "### Demonstration 2 (from f, line 3)" in text and "**say** (output)" in text and "- k is value = 3" in text


TYPED = oj.prompt("Judge {it}.", output={"good": bool, "why": str}, name="typed")
SHORT = oj.prompt("One {word}.", template="{instruction}\n\n{demos}\nQ {{x}}: {question}\nA:", name="short")
PLAIN = oj.prompt("Say.", name="plain", stop=("\n",))


@pytest.mark.parametrize("style", ["chat", "text"])
def test_filled_messages_are_those_that_the_program_sends(style):
    async def judge(question):
        await TYPED(question=question, passages=["a {b}", 3])
        await PLAIN(question=question, k=2.5)
        await SHORT(question=question)
        return {"answer": ""}

    def answer(request):
        return '{"good": true, "why": "so"}' if request.role == "typed" else "x"

    program = oj.program(judge, components=[TYPED, SHORT, PLAIN])
    system = program.system(lambda: 1.0, ("question",), LanguageModel("m", style=style))
    fields = {"typed": ("question", "passages"), "plain": ("question", "k"), "short": ("question",)}
    named = tuple(with_inputs(one, fields) for one in system.components)
    demo = Demo({"question": "{q}", "k": 1}, {"plain": "{a}"})
    default = system.default_configuration()
    found = default.replace("plain", Prompt("Say {it}.", (demo,)))
    entries = to_messages(dataclasses.replace(system, components=named), found)
    model = ScriptedCompleter(answer)
    question = "What {is} \n it? "
    example = Example("1", freeze({"question": question}), freeze({}), "train")
    asyncio.run(system.using(model).run(found, example, 0))
    sent = {one.role: [(turn.role, turn.content) for turn in one.messages] for one in model.requests}
    given = {"typed": {"passages": ["a {b}", 3]}, "plain": {"k": 2.5}, "short": {}}
    assert set(sent) == set(entries)
    for name, rest in given.items():
        filled = fill(json.loads(json.dumps(entries[name])), {"question": question, **rest})
        expected = [("user" if role == "text" else role, text) for role, text in sent[name]]
        assert [(one["role"], one["content"]) for one in filled] == expected
    assert entries["typed"]["response_format"]["json_schema"]["schema"]["required"] == ["good", "why"]
    assert entries["plain"]["stop"] == ["\n"] and entries["plain"]["model"] == "m"
    with pytest.raises(ExportError, match=r"reads question, k; missing: k, unknown: j"):
        fill(entries["plain"], {"question": "a", "j": 1})
    with pytest.raises(ExportError, match="is an image"):
        fill(entries["plain"], {"question": {"image_url": "u", "sha256": "s"}, "k": 1})
    with pytest.raises(ExportError, match="nothing is known of the fields that 'typed' reads"):
        to_messages(system, found)


def with_inputs(component, fields):
    return dataclasses.replace(component, inputs=fields[component.name])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with trained heads."""
    code = tmp_path_factory.mktemp("code") / "exported_words.py"
    code.write_text(MODULE)
    sys.path.append(str(code.parent))
    import exported_words as module

    folder = tmp_path_factory.mktemp("runs") / "words"
    oj.optimize(
        module.words,
        module.letters,
        [{"question": f"word {i}?"} for i in range(36)],
        model=oj.LanguageModel("random:0", style="text", temperature=0.8, max_tokens=5),
        workdir=folder,
        config={
            "reward.model": "random:0",
            "reward.heads": "trained",
            "reward.lora.rank": 4,
            "reward.epochs": 1,
            "optimize.iterations": 0,
            "offline.groups": 3,
            "offline.calls": 24,
        },
        progress=ConsoleProgress(quiet=True),
    )
    yield folder
    sys.path.remove(str(code.parent))


@pytest.mark.long
def test_a_head_is_a_folder_that_reads_the_text_of_ours(folder, tmp_path):
    saved = read_folder(folder)
    folders = export_rewards(saved, tmp_path / "reward")
    assert {one.name for one in folders} <= {"k", "hint", "say"} and folders
    with pytest.raises(ExportError, match="exists already"):
        export_rewards(saved, tmp_path / "reward")
    out = tmp_path / "reward" / "say"
    settings = json.loads((out / "config.json").read_text())
    assert settings["architectures"] == ["LlamaForSequenceClassification"] and settings["id2label"] == {
        "0": "local_reward"
    }
    tensors = safetensors.numpy.load_file(out / "model.safetensors")
    assert tensors["score.weight"].shape == (1, 64) and np.abs(tensors["score.weight"]).max() > 0
    assert "lm_head.weight" not in tensors and {array.dtype for array in tensors.values()} == {np.dtype("float32")}

    from transformers import PreTrainedTokenizerFast

    tokenizer, ours = PreTrainedTokenizerFast.from_pretrained(out), load_tokenizer(resolve("random:0"))
    assert settings["pad_token_id"] == tokenizer.pad_token_id != tokenizer.eos_token_id == ours.eos_ids[0]
    build = text_of_card(out)
    system = oj.load(folder).system
    inputs = {"question": " word 1? ", "hint": "<|end|> of"}
    from optimas_jax.rewards.text import text_group

    group = text_group(system, "say", inputs, [{"say": "a\nb"}])
    text = build(inputs, {"say": "a\nb"})
    assert text == group.prefix + group.candidates[0]
    assert tokenizer(text)["input_ids"] == [
        *ours.encode(group.prefix),
        *ours.encode(group.candidates[0]),
        ours.eos_ids[0],
    ]


def text_of_card(folder):
    """The function that the card shows."""
    card = (folder / "README.md").read_text()
    body = card.partition("def text(inputs, candidate):\n")[2].partition("\n\nscore(")[0]
    names: dict = {}
    exec(f"def text(inputs, candidate):\n{body}", names)
    return names["text"]


def test_texts_of_a_card_have_all_kinds_of_values():
    names: dict = {}
    body = text_function("Task: t.\n", ("a", "b_c"), ("d",))
    exec(f"def text(inputs, candidate):\n{body}", names)
    made = names["text"]({"a": [1, {"é": "x"}, " y "], "b_c": True}, {})
    assert made == 'Task: t.\nA: 1\n{"é": "x"}\ny\nB c: True\nD: '


def export(*arguments, cwd):
    command = [sys.executable, str(ROOT / "launch" / "export.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.long
def test_the_command_writes_each_kind_once_and_fills_messages(folder, tmp_path):
    done = export(folder, "--to=openai", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "words.openai.json"
    assert done.stdout.strip() == file.name
    filled = export(file, "--component=say", '--fields={"question": "w?", "hint": "h"}', cwd=tmp_path)
    assert json.loads(filled.stdout)[0]["content"] == "Say the word.\n\nQuestion: w?\nHint: h\nSay:"
    again = export(folder, "--to=openai", cwd=tmp_path)
    assert again.returncode == 1 and "exists already" in again.stderr
    wrong = export(folder, "--to=onnx", cwd=tmp_path)
    assert "--to is 'onnx'; allowed: dspy, openai, markdown, reward" in wrong.stderr
    unknown = export(file, "--component=draft", cwd=tmp_path)
    assert "--component is 'draft'" in unknown.stderr


@pytest.mark.long
def test_fitted_heads_and_unknown_backbones_are_refused_by_name(folder, tmp_path):
    settings = json.loads((folder / "config.json").read_text())
    saved = read_folder(folder)
    fitted = {**settings, "reward": {**settings["reward"], "heads": "fitted"}}
    with pytest.raises(ExportError, match=r"are fitted.*--config\.reward\.heads=trained"):
        export_rewards(dataclasses.replace(saved, settings=fitted), tmp_path / "out")
    assert not (tmp_path / "out").exists()
