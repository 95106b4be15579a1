"""Agents on OpenAI's SDK that know nothing of this project, and models that answer them."""

from __future__ import annotations

import contextlib
import dataclasses
import json

from fakes import ScriptedCompleter

import optimas_jax as oj
from optimas_jax.core.running import event_loop
from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.types import Example

SYSTEM = "You add numbers."
ADD = {
    "name": "add",
    "description": "Adds one.",
    "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}
TOOLS = [{"type": "function", "function": ADD}]
FLAT_TOOLS = [{"type": "function", **ADD, "strict": False}]


def begin(question):
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def used(messages, message):
    """The conversation after the calls of tools in a message."""
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": str(json.loads(call.function.arguments)["x"] + 1)}
        for call in message.tool_calls
    ]
    return [*messages, message.model_dump(exclude_none=True), *results]


async def tool_loop(client, question, model="adder"):
    messages = begin(question)
    for _ in range(5):
        answer = await client.chat.completions.create(model=model, messages=messages, tools=TOOLS)
        message = answer.choices[0].message
        if not message.tool_calls:
            return message.content
        messages = used(messages, message)
    return "gave up"


def plain_tool_loop(client, question, model="adder"):
    messages = begin(question)
    for _ in range(5):
        message = client.chat.completions.create(model=model, messages=messages, tools=TOOLS).choices[0].message
        if not message.tool_calls:
            return message.content
        messages = used(messages, message)
    return "gave up"


def adds(request):
    """A model that asks for the tool with the length of the question, and tells its result."""
    last = request.messages[-1]
    if last.role == "tool":
        return f"It is {last.content}."
    return json.dumps({"text": "", "calls": [{"name": "add", "arguments": {"x": len(last.content)}}]})


def adder(**settings):
    return oj.agent("adder", "Use the tool.", **settings)


def system_of(program, answer=adds, delay=0.0, style="chat"):
    """(system of a program, its model)."""
    model = ScriptedCompleter(answer, delay)
    return program.system(lambda outputs: 0.0, ("question",), oj.LanguageModel("scripted", style=style)).using(
        model
    ), model


def run(program, answer=adds, question="q", given=None, delay=0.0, style="chat"):
    """(record of a run of a program, requests of its model)."""
    system, model = system_of(program, answer, delay, style)
    example = Example("e", {"question": question}, {}, "train")
    return event_loop.run(system.run(system.default_configuration(), example, 0, given)), model.requests


def run_all(program, questions, concurrency, answer=adds, delay=0.0):
    """Records of the runs of a program on several questions."""
    system, _ = system_of(program, answer, delay)
    examples = [Example(f"e{number}", {"question": one}, {}, "train") for number, one in enumerate(questions)]
    jobs = [Job(system.default_configuration(), one, 0) for one in examples]
    return run_many(system, jobs, concurrency=concurrency)


def record(trace):
    """What is in a record, and in which order."""
    return [dataclasses.replace(call, position=()) for call in trace.calls]


@contextlib.contextmanager
def closing(client):
    """A client that is closed on the loop that it lives on."""
    try:
        yield client
    finally:
        event_loop.run(client.close())
