"""Files for DSPy, read by DSPy itself.

Needs a Python with ``dspy==3.*``, named by ``OPTIMAS_DSPY_PYTHON``; skipped without.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from optimas_jax.core.values import Demo, Prompt
from optimas_jax.saved.export.prompts import as_json, to_dspy
from optimas_jax.traces.prompts import read_written

pytestmark = pytest.mark.long
PROGRAM = """
import json, sys
import dspy


class Short(dspy.Signature):
    '''Say it.'''

    question: str = dspy.InputField()
    hint: str = dspy.InputField()
    answer: str = dspy.OutputField()


class Words(dspy.Module):
    def __init__(self):
        super().__init__()
        self.hint = dspy.Predict("question -> hint")
        self.say = dspy.ChainOfThought(Short)

    def forward(self, question):
        return self.say(question=question, hint=self.hint(question=question).hint)


words = Words()
words.load(sys.argv[1])
dspy.configure(lm=dspy.utils.DummyLM([{"hint": "h"}, {"reasoning": "r", "answer": "a"}]))
answer = words(question="word 2?").answer
messages = [call["messages"] for call in dspy.settings.lm.history]
words.save(sys.argv[2])
print(json.dumps({"answer": answer, "messages": messages}))
"""


@pytest.fixture(scope="module")
def dspy():
    """A Python with DSPy."""
    for python in filter(None, (os.environ.get("OPTIMAS_DSPY_PYTHON"), sys.executable)):
        check = [python, "-c", "import dspy"]
        if Path(python).is_file() and subprocess.run(check, capture_output=True, check=False).returncode == 0:
            return python
    pytest.skip("no DSPy: name a Python with dspy==3.* by OPTIMAS_DSPY_PYTHON")


def test_plain_dspy_loads_an_export_and_asks_with_it(dspy, tmp_path):
    demo = Demo({"question": "word 1?", "hint": "a number"}, {"answer": "1"})
    prompts = {"hint": Prompt("Give one hint."), "say": Prompt("Answer in {one} word.", (demo,))}
    (tmp_path / "in.json").write_text(as_json(to_dspy(prompts, {"say": "say.predict"})))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [dspy, "-c", PROGRAM, str(tmp_path / "in.json"), str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["answer"] == "a"
    hint, say = ("\n".join(str(turn["content"]) for turn in turns) for turns in found["messages"])
    assert "Give one hint." in hint and "Answer in {one} word." in say
    assert "word 1?" in say and "a number" in say and "word 2?" in say
    again = read_written(str(tmp_path / "out.json")).prompts
    assert again["say.predict"][0] == "Answer in {one} word." and again["say.predict"][1][0]["answer"] == "1"
