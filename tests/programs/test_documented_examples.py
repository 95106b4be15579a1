"""The examples of docs/own-program.md, as they stand there."""

import json
import re
from pathlib import Path

import pytest
from fakes import ScriptedCompleter

import optimas_jax as oj
from optimas_jax.core.running import event_loop
from optimas_jax.core.types import Example

DOCUMENT = Path(__file__).parents[2] / "docs" / "own-program.md"
PHOTO = "https://example.org/photo.jpg"
SEARCHED = {"text": "", "calls": [{"name": "search", "arguments": {"query": "iron", "limit": 1}}]}
CASES = {
    "rag": (["answer", "verify"], {"answer": "1,538 °C", "sources": [0]}),
    "templated": (["short"], {"output": "Iron"}),
    "react": (["agent", "search", "agent"], {"output": "iron: see page 0"}),
    "describe": (["look"], {"output": "A house."}),
    "helped": (["helper"], {"output": "Briefly."}),
}


def answer(request):
    last = request.messages[-1].content
    match request.role:
        case "answer":
            return f"```json\n{json.dumps(CASES['rag'][1])}\n```"
        case "verify":
            return '{"supported": true, "problem": "none"}'
        case "short":
            assert last == "Answer in one word.\n\nQuestion: What?\nAnswer:"
            return "Iron"
        case "agent":
            return "iron: see page 0" if "see page 0" in last else json.dumps(SEARCHED)
        case "look":
            assert request.messages[-1].images == (PHOTO,)
            return "A house."
        case "helper":
            assert request.messages[0].content == "Be brief."
            return "Briefly."


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    source = "\n".join(re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL))
    path = tmp_path_factory.mktemp("documented") / "documented.py"
    path.write_text(source, encoding="utf-8")
    names: dict = {"__name__": "documented"}
    exec(compile(source, str(path), "exec"), names)
    return names


@pytest.mark.parametrize("name", CASES)
def test_an_example_of_the_document_runs(programs, name):
    field = "photo" if name == "describe" else "question"
    value = PHOTO if name == "describe" else "What?"
    system = oj.program(programs[name]).system(lambda outputs: 0.0, (field,), oj.LanguageModel("m", max_tokens=64))
    example = Example("e", {field: value}, {}, "train")
    trace = event_loop.run(system.using(ScriptedCompleter(answer)).run(system.default_configuration(), example, 0))
    components, outputs = CASES[name]
    assert [call.component for call in trace.calls] == components
    assert json.loads(json.dumps(trace.outputs, default=dict)) == outputs
