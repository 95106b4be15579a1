"""Exported local rewards, read by transformers with torch: the scores of ours.

Needs a Python with torch and transformers, named by ``OPTIMAS_TORCH_PYTHON`` (such as
``third_party/peers/.venv/bin/python``); skipped without.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from runs import ROOT
from transformers import PreTrainedTokenizerFast

import optimas_jax as oj
from optimas_jax.checkpoints.classifier import write_classifier
from optimas_jax.checkpoints.sources import ModelSource
from optimas_jax.checkpoints.tokenizer import Tokenizer
from optimas_jax.checkpoints.weights import params_from_tensors
from optimas_jax.models.config import config_from_hf
from optimas_jax.parallel.platform import default_compute
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.data import load_groups
from optimas_jax.rewards.text import text_group
from optimas_jax.saved.export.reward import export_rewards
from optimas_jax.saved.folder import read_folder

pytestmark = pytest.mark.long
GOLDEN = ROOT / "tests" / "golden"
NAMES = sorted(path.stem.removeprefix("backbone_") for path in GOLDEN.glob("backbone_*.npz"))
PEERS = ROOT / "third_party" / "peers" / ".venv" / "bin" / "python"
PIPELINE = """
import json, sys
from transformers import pipeline
folder, texts = json.loads(sys.argv[1])
score = pipeline("text-classification", model=folder, function_to_apply="none")
print(json.dumps([one["score"] for one in score(texts)] + [one["score"] for one in score(texts, batch_size=3)]))
"""
IDS = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification
folder, ids = json.loads(sys.argv[1])
model = AutoModelForSequenceClassification.from_pretrained(folder)
with torch.no_grad():
    print(json.dumps([type(model).__name__, model(torch.tensor(ids)).logits[:, 0].tolist()]))
"""
MODULE = """
import optimas_jax as oj

hint = oj.prompt("Give a hint.", max_tokens=5)
say = oj.prompt("Say the word.", max_tokens=5)


async def words(question):
    return {"answer": await say(question=question, hint=await hint(question=question))}


def letters(example, made):
    return sum(one in "aeiou" for one in made["answer"]) / 10
"""


@pytest.fixture(scope="module")
def torch():
    """A Python with torch and transformers."""
    for python in filter(None, (os.environ.get("OPTIMAS_TORCH_PYTHON"), str(PEERS), sys.executable)):
        check = [python, "-c", "import torch, transformers"]
        if Path(python).is_file() and subprocess.run(check, capture_output=True, check=False).returncode == 0:
            return python
    pytest.skip("no torch: name a Python with torch and transformers by OPTIMAS_TORCH_PYTHON")


def run(python, code, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-c", code, json.dumps([str(one) if isinstance(one, Path) else one for one in arguments])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_is_a_classifier_of_transformers(torch, tmp_path, name):
    """The stored hidden states of transformers, times a head, are what its classifier gives."""
    golden = np.load(GOLDEN / f"backbone_{name}.npz")
    plain = json.loads(str(golden["config"]))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(plain))
    config = config_from_hf(plain)
    tensors = {
        key.removeprefix("weights/"): (lambda key=key: golden[key])
        for key in golden.files
        if key.startswith("weights/")
    }
    params = params_from_tensors(tensors, config, default_compute("cpu"), where=name)
    head = np.random.default_rng(0).normal(size=config.embed_dim).astype(np.float32)
    ids, last = golden["input_ids"], golden["hidden/final_norm"][:, -1]
    free = [index for index in range(config.vocab_size) if index not in ids[:, -1]][:2]  # what pads ends no row
    words = {f"w{index}": index for index in range(config.vocab_size)}
    fast = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    backend = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token=f"w{free[0]}", pad_token=f"w{free[-1]}")
    source = ModelSource(str(tmp_path / "base"), "hf", tmp_path / "base")
    out = tmp_path / "out"
    write_classifier(out, source, config, Tokenizer(backend, (free[0],), free[-1]), params, head, "")
    kind, scores = run(torch, IDS, out, ids.tolist())
    assert kind.endswith("ForSequenceClassification")
    np.testing.assert_allclose(scores, last @ head, atol=1e-4, rtol=0)


def test_a_pipeline_scores_as_the_run_does(torch, tmp_path):
    file = tmp_path / "classified_words.py"
    file.write_text(MODULE)
    sys.path.append(str(tmp_path))
    import classified_words as module

    folder = tmp_path / "run"
    oj.optimize(
        module.words,
        module.letters,
        [{"question": f"word {i}?"} for i in range(36)],
        model=oj.LanguageModel("random:0", style="text", temperature=0.8, max_tokens=5),
        workdir=folder,
        config={
            "reward.model": "random:0",
            "reward.heads": "trained",
            "reward.learning_rate": 0.01,
            "optimize.iterations": 0,
            "offline.groups": 6,
            "offline.calls": 48,
        },
        progress=ConsoleProgress(quiet=True),
    )
    folders = {one.name: one for one in export_rewards(read_folder(folder), tmp_path / "out")}
    rewards, system = oj.load_reward(folder), oj.load(folder).system
    groups = [one for one in load_groups(folder / "groups" / "offline") if len(one.candidates) > 1]
    checked = 0
    for name, out in folders.items():
        group = next(one for one in groups if one.component == name)
        outputs = [dict(one.outputs) for one in group.candidates]
        texts = text_group(system, name, group.inputs, outputs)
        found = run(torch, PIPELINE, out, [texts.prefix + text for text in texts.candidates])
        ours = rewards[name].score(group.inputs, outputs)
        np.testing.assert_allclose(found, [*ours, *ours], atol=1e-4, rtol=0)
        assert len(set(ours)) > 1
        checked += 1
    assert checked
