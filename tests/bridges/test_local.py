"""Agents answered by a local model, which can write nothing but replies."""

import json

import pytest
from tool_agents import TOOLS, begin

import optimas_jax as oj

CLIENT = oj.client()
AGENT = oj.agent("adder", "Use tools.", max_tokens=80)


@oj.program(components=[AGENT])
async def asks(question):
    messages = begin(question)
    settings = {"model": "adder", "tools": TOOLS}
    first = await CLIENT.chat.completions.create(messages=messages, tool_choice="required", **settings)
    [call, *others] = first.choices[0].message.tool_calls
    results = [{"role": "tool", "tool_call_id": one.id, "content": "3"} for one in (call, *others)]
    messages += [first.choices[0].message.model_dump(exclude_none=True), *results]
    second = await CLIENT.chat.completions.create(messages=messages, **settings)
    message = second.choices[0].message
    assert message.content or message.tool_calls
    return json.loads(call.function.arguments)


@pytest.mark.parametrize("style", ["chat", "text"])
def test_a_model_of_random_weights_asks_for_tools_and_reads_their_results(style, tmp_path):
    model = oj.LanguageModel("random:0", style=style)
    rows = [{"question": "One?"}, {"question": "Two?"}]
    done = oj.evaluate(asks, lambda outputs: float(isinstance(outputs["x"], int)), rows, model=model, workdir=tmp_path)
    assert [row["failure"] for row in done.rows] == ["", ""] and done.mean == 1.0
