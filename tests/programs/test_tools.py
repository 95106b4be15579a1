import asyncio
import dataclasses
import json
from typing import Literal

import pytest
from api_servers import ApiServers
from fakes import ScriptedCompleter
from served import serving_app

import optimas_jax as oj
from optimas_jax.core.running import event_loop
from optimas_jax.core.types import Example, Outcome
from optimas_jax.core.values import Prompt
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.clients.anthropic import AnthropicCompleter
from optimas_jax.llm.clients.openai import OpenAICompleter
from optimas_jax.llm.clients.remote import ServerConfig
from optimas_jax.llm.forms.schemas import native_reply
from optimas_jax.llm.forms.tools import Reply, ReplyType, ToolCall
from optimas_jax.programs.declared import DeclarationError


@dataclasses.dataclass
class Range:
    low: int
    high: int = 10


@oj.component
def search(query: str, years: Range, limit: int = 3) -> list[str]:
    """Finds passages about a query."""
    assert isinstance(years, Range)
    return [f"{query} {years.low}"] * limit


def calc(operation: Literal["add", "double"], x: float, y: float = 1.0) -> float:
    """Computes with numbers."""
    return x + y if operation == "add" else 2 * x


TOOLS = {"search": search, "calc": calc}
agent = oj.prompt("Answer with the tools.", tools=[search, calc])


async def react(question):
    """The loop of an agent."""
    steps = []
    for _ in range(4):
        reply = await agent(question=question, steps=steps)
        if not reply.calls:
            return reply.text
        for call in reply.calls:
            result = TOOLS[call.name](**call.arguments)
            steps.append({"call": call, "result": await result if call.name == "search" else result})
    return "gave up"


LOOK = {"name": "search", "arguments": {"query": "iron", "years": {"low": 3}, "limit": 1}}
REPLIES = [
    json.dumps({"text": "Looking.", "calls": [LOOK]}),
    '{"text": "", "calls": [{"name": "calc", "arguments": {"operation": "add", "x": "2"}}]}',
    "It is 3.",
]


def run(function, answer, style="chat", configuration=None, max_tokens=64):
    asked = ScriptedCompleter(answer)
    model = oj.LanguageModel("scripted", style=style, max_tokens=max_tokens)
    system = oj.program(function).system(lambda outputs: 0.0, ("question",), model).using(asked)
    example = Example("e", {"question": "q"}, {}, "train")
    trace = event_loop.run(system.run(configuration or system.default_configuration(), example, 0))
    return trace, asked.requests


def test_an_agent_asks_for_tools_and_the_program_runs_them():
    left = iter(REPLIES)
    trace, requests = run(react, lambda request: next(left))
    assert trace.outcome is Outcome.OK and trace.outputs["output"] == "It is 3."
    assert [call.component for call in trace.calls] == ["agent", "search", "agent", "agent"]
    assert trace.calls[0].outputs == {
        "text": "Looking.",
        "calls": ({"name": "search", "arguments": {"query": "iron", "years": {"low": 3, "high": 10}, "limit": 1}},),
    }
    steps = requests[-1].messages[-1].content
    assert steps.endswith(
        '{"call": {"name": "search", "arguments": {"query": "iron", "years": {"low": 3, "high": 10}, "limit": 1}}, '
        '"result": ["iron 3"]}\n{"call": {"name": "calc", "arguments": {"operation": "add", "x": 2.0}}, "result": 3.0}'
    )
    assert [tool.name for tool in requests[0].tools] == ["search", "calc"]
    assert requests[0].tools[1].description == "Computes with numbers."
    assert requests[0].tools[1].parameters["required"] == ["operation", "x"]
    assert [message.content for message in requests[0].messages][:1] == ["Answer with the tools."]


def test_wrong_arguments_are_repaired_once():
    left = iter(['{"text": "", "calls": [{"name": "calc", "arguments": {"operation": "halve", "x": 1}}]}', "None."])
    trace, requests = run(react, lambda request: next(left))
    assert trace.outputs["output"] == "None." and len(requests) == 2
    assert "operation: Input should be 'add' or 'double'" in requests[1].messages[-1].content


def test_texts_to_continue_say_what_form_a_reply_has_and_demonstrations_are_replies():
    tuned = {"agent": Prompt("Go.", (oj.Demo({"question": "a"}, {"text": "b", "calls": []}),))}
    _, [request] = run(react, lambda request: "Done.", style="text", configuration=tuned)
    text = request.messages[0].content
    assert text.startswith('Go.\n\nAnswer with JSON of this schema: {"type": "object", "properties": {"text"')
    assert 'Agent: {"text": "b", "calls": []}' in text and not request.tools
    _, [request] = run(react, lambda request: "Done.", configuration=tuned)
    assert [message.content for message in request.messages[:3]] == [
        "Go.",
        "Question: a\nSteps: ",
        '{"text": "b", "calls": []}',
    ]


def test_replies_are_read_or_refused():
    replies = ReplyType((calc,))
    fields = replies.read('{"text": "", "calls": [{"name": "calc", "arguments": {"operation": "double", "x": 1}}]}')
    assert replies.restore(fields) == Reply("", (ToolCall("calc", {"operation": "double", "x": 1.0}),))
    assert replies.restore(replies.read("Prose.")) == Reply("Prose.")
    for wrong, said in (
        ("", "no complete JSON"),
        ('{"text": " ", "calls": []}', "neither"),
        ('{"calls": [', "no complete"),
        ('{"text": "cut', "no complete"),
        ('```json\n{"text": "no calls"}\n```', "calls: Field required"),
        ('I call {"calls": [{"name": "calc", "arguments": {}}]}', "operation: Field required"),
        ('{"name": "calc", "arguments": {"operation": "double", "x": 1}}', "calls: Field required"),
        (
            '{"text": "", "calls": [{"name": "calc", "arguments": {"operation": "double", "x": 1, "depth": 2}}]}',
            "depth: Extra inputs are not permitted",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            replies.read(wrong)


@pytest.mark.parametrize(
    "text", ["The set {1, 2} is it.", '{"answer": 42}', r"$\frac{1}{2}$", "```python\nx = {}\n```", "{}", "[1]", "{x"]
)
def test_a_final_answer_may_have_braces(text):
    """Also from an API with a form of its own for calls, which passes a text on as it is."""
    replies = ReplyType((calc,))
    assert replies.restore(replies.read(native_reply(f"{text}\n", []))) == Reply(text)


def starred(*words):
    pass


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([calc, calc], "two tools have the name calc"),
        ([lambda x: x], "a tool is a function with a name"),
        ([3], "a tool is a function with a name"),
        ([starred], "takes words without a name"),
    ],
)
def test_what_is_no_tool_is_told_where_it_is_declared(tools, message):
    with pytest.raises(DeclarationError, match=message):
        oj.prompt("Go.", tools=tools)
    with pytest.raises(DeclarationError, match=r"returns an optimas_jax\.Reply"):
        oj.prompt("Go.", tools=[calc], output=int)


CALLED = '{"text": "Hm.", "calls": [{"name": "calc", "arguments": {"operation": "double", "x": 1}}]}'


@pytest.mark.parametrize("fault", ["", "no form", "invalid tool"])
@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_apis_are_asked_in_their_own_form(name, fault, monkeypatch):
    monkeypatch.setenv(f"{name.upper()}_API_KEY", "key")
    replies, servers = ReplyType((calc,)), ApiServers(lambda prompt, seed: CALLED)
    servers.faults.append(fault)
    request = CompletionRequest(
        f"{name}:m",
        (Message("system", "Be short."), Message("user", "Go.")),
        64,
        schema=replies.schema,
        tools=replies.tools,
    )
    with serving_app(servers.app, log_level="critical") as address:
        make = OpenAICompleter if name == "openai" else AnthropicCompleter
        completer = make(ServerConfig(f"{address}/v1" if name == "openai" else address))
        completion = asyncio.run(completer.complete(request))
    assert not servers.problems
    assert replies.read(completion.text) == json.loads(CALLED.replace('"x": 1', '"x": 1.0'))
    form = {"openai": "response_format", "anthropic": "output_config"}[name]
    assert [("tools" in body, form in body) for body in servers.bodies] == [(True, False), (False, True)][
        : 1 + bool(fault)
    ]
    said = json.dumps(servers.bodies[-1])
    assert ("Answer with JSON of this schema" in said) == bool(fault)
