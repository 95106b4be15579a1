"""The example of docs/frameworks.md, as it stands there."""

import json
import re
from pathlib import Path

from tool_agents import run

DOCUMENT = Path(__file__).parents[2] / "docs" / "frameworks.md"


def says(request):
    assert request.messages[0].content == "You look things up."
    if request.messages[-1].role == "tool":
        return f"Found: {request.messages[-1].content}"
    return json.dumps({"text": "", "calls": [{"name": "find", "arguments": {"about": "iron"}}]})


def test_the_example_of_the_document_runs():
    [source] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    names = {"__name__": "documented"}
    exec(compile(source, str(DOCUMENT), "exec"), names)
    trace, _ = run(names["answer"], says)
    assert trace.outputs == {"output": "Found: iron: see page 1"}
    assert [call.component for call in trace.calls] == ["researcher", "researcher"]
