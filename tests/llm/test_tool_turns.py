"""Turns with calls of tools and their results: on the wires of OpenAI and Anthropic, in a chat template, as text."""

import asyncio
import json

import pytest
from api_servers import ApiServers
from served import serving_app
from transformers import PreTrainedTokenizerFast

from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.core.types import digest
from optimas_jax.llm.base import CompletionRequest, Message, Tool, ToolUse
from optimas_jax.llm.clients.anthropic import AnthropicCompleter
from optimas_jax.llm.clients.openai import OpenAICompleter
from optimas_jax.llm.clients.remote import ServerConfig
from optimas_jax.llm.forms.answers import AnswerError, repaired
from optimas_jax.llm.forms.replies import ReplyForm
from optimas_jax.llm.local import _prompt_ids

ADD = Tool("add", "Adds one.", {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]})
NAME = Tool(
    "name",
    "Names.",
    {"type": "object", "properties": {"it": {"$ref": "#/$defs/It"}}, "$defs": {"It": {"type": "string"}}},
)
TOOLS = (ADD, NAME)
TURNS = (
    Message("system", "Use tools."),
    Message("user", "Two and three?"),
    Message("assistant", "Both.", calls=(ToolUse("call:1", "add", {"x": 2}), ToolUse("call:2", "add", "{x"))),
    Message("tool", "3", call_id="call:1"),
    Message("tool", "4", call_id="call:2"),
    Message("assistant", "", calls=(ToolUse("call:3", "name", {"it": "a"}),)),
    Message("tool", "", call_id="call:3"),
)


def request(**settings):
    form = ReplyForm(TOOLS)
    return CompletionRequest("openai:served", TURNS, 16, schema=form.schema, tools=TOOLS, role="agent", **settings)


def sent(make, asked, fault=""):
    """Body of the last request of a client, which the SDK's types take, and its answer."""
    servers = ApiServers(lambda prompt, seed: "Done.")
    servers.faults += [fault] if fault else []
    with serving_app(servers.app, log_level="critical") as address:
        completer = make(ServerConfig(f"{address}/v1" if make is OpenAICompleter else address))
        text = asyncio.run(completer.complete(asked)).text
    offered = "tools" in servers.bodies[-1] and asked.choice != "none"
    assert not servers.problems and text == ('{"text": "Done.", "calls": []}' if offered else "Done.")
    return servers.bodies[-1]


def test_openai_has_messages_of_its_own_for_calls_and_results():
    body = sent(OpenAICompleter, request(choice="required", text_schema={"type": "object"}))
    assert body["messages"][2:5] == [
        {
            "role": "assistant",
            "content": "Both.",
            "tool_calls": [
                {"id": "call:1", "type": "function", "function": {"name": "add", "arguments": '{"x": 2}'}},
                {"id": "call:2", "type": "function", "function": {"name": "add", "arguments": "{x"}},
            ],
        },
        {"role": "tool", "content": "3", "tool_call_id": "call:1"},
        {"role": "tool", "content": "4", "tool_call_id": "call:2"},
    ]
    assert body["messages"][5]["content"] is None and body["messages"][6]["content"] == ""
    assert body["tool_choice"] == "required" and body["response_format"]["type"] == "json_schema"
    assert sent(OpenAICompleter, request(choice="add"))["tool_choice"]["function"] == {"name": "add"}
    assert "tool_choice" not in sent(OpenAICompleter, request())


def test_anthropic_has_blocks_for_them_all_results_in_one_turn():
    body = sent(AnthropicCompleter, request(choice="none"))
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user", "assistant", "user"]
    assert body["messages"][1]["content"] == [
        {"type": "text", "text": "Both."},
        {"type": "tool_use", "id": "call-1", "name": "add", "input": {"x": 2}},
        {"type": "tool_use", "id": "call-2", "name": "add", "input": {"arguments": "{x"}},
    ]
    assert [block["tool_use_id"] for block in body["messages"][2]["content"]] == ["call-1", "call-2"]
    assert body["tool_choice"] == {"type": "none"} and body["system"] == "Use tools."
    assert sent(AnthropicCompleter, request(choice="required"))["tool_choice"] == {"type": "any"}


QUOTES = [
    'I would send {"name": "add", "arguments": {"x": 2}} to the tool.',
    '{"name": "add", "arguments": {"x": 2}}',
    '{"text": "hello", "calls": []}',
    '{"calls": 12, "minutes": 30}',
]


@pytest.mark.parametrize("make", [OpenAICompleter, AnthropicCompleter])
@pytest.mark.parametrize("said", QUOTES)
def test_the_text_of_an_api_that_was_offered_tools_is_text(make, said):
    servers = ApiServers(lambda prompt, seed: json.dumps({"text": said, "calls": []}))  # in the fields of its API
    with serving_app(servers.app, log_level="critical") as address:
        completer = make(ServerConfig(f"{address}/v1" if make is OpenAICompleter else address))
        text = asyncio.run(completer.complete(request())).text
        no_calls = asyncio.run(completer.complete(request(choice="none"))).text
    assert ReplyForm(TOOLS).read(text) == {"text": said, "calls": []} and no_calls == said


@pytest.mark.parametrize("make", [OpenAICompleter, AnthropicCompleter])
def test_thoughts_and_stop_texts_are_taken_from_the_text(make):
    said = "<think>Hm.</think>Thought: yes\nObservation: made up"
    servers = ApiServers(lambda prompt, seed: json.dumps({"text": said, "calls": []}))
    with serving_app(servers.app, log_level="critical") as address:
        completer = make(ServerConfig(f"{address}/v1" if make is OpenAICompleter else address))
        completion = asyncio.run(completer.complete(request(stop=("\nObservation:",))))
    assert ReplyForm(TOOLS).read(completion.text) == {"text": "Thought: yes", "calls": []}
    assert "Hm." in completion.reasoning


@pytest.mark.parametrize("make", [OpenAICompleter, AnthropicCompleter])
def test_a_reply_is_mended_in_json_which_is_read(make):
    """The second request describes the tools: its answer is JSON in the text."""
    asked, form = request(choice="required"), ReplyForm(TOOLS, "required")
    again = repaired(asked, '{"calls": [{"name": "g"}]}', "there is no tool 'g'", form.schema)
    assert not again.tools
    servers = ApiServers(
        lambda prompt, seed: json.dumps({"text": "", "calls": [{"name": "add", "arguments": {"x": 2}}]})
    )
    with serving_app(servers.app, log_level="critical") as address:
        completer = make(ServerConfig(f"{address}/v1" if make is OpenAICompleter else address))
        text = asyncio.run(completer.complete(again)).text
    assert form.read(text)["calls"] == [{"name": "add", "arguments": {"x": 2}}]


@pytest.mark.parametrize("make", [OpenAICompleter, AnthropicCompleter])
def test_a_server_that_takes_no_tools_reads_texts(make):
    body = sent(make, request(), fault="no form")
    assert "tools" not in body and "tool_choice" not in body
    said = json.dumps(body)
    assert "Answer with JSON of this schema" in said and "tool_use" not in said and "tool_calls" not in said
    turns = [turn["content"] for turn in body["messages"] if turn["role"] == "user"]
    assert turns == ["Two and three?", "Result of add: 3\n\nResult of add: 4", "Result of name: "]


def tokenizer(template=None):
    made = load_tokenizer(resolve("random:0"))
    if template is not None:
        assert isinstance(made.backend, PreTrainedTokenizerFast)
        made.backend.chat_template = template
    return made


TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'tool' %}<result>{{ message.content }}</result>"
    "{% else %}<{{ message.role }}>{{ message.content }}{% endif %}{% endfor %}<assistant>"
)


def test_local_models_read_results_in_the_turns_of_their_template_or_as_text():
    plain, own = tokenizer(), tokenizer(TEMPLATE)
    assert not plain.knows_tools and own.knows_tools
    text = plain.decode(_prompt_ids(plain, request()))
    assert "Result of add: 3\n\nResult of add: 4" in text and "Answer with JSON of this schema" in text
    text = own.decode(_prompt_ids(own, request()))
    assert "<result>3</result><result>4</result>" in text and "Result of" not in text
    assert '{"text": "Both.", "calls": [{"name": "add", "arguments": {"x": 2}}' in text
    strict = tokenizer(TEMPLATE.replace("<result>", "{{ raise_exception('ids, please') }}"))
    assert "Result of add: 3" in strict.decode(_prompt_ids(strict, request()))


def test_keys_of_requests_name_what_changes_an_answer_and_old_ones_stay():
    assert Message("user", "a").to_json() == ["user", "a"]
    assert TURNS[3].to_json() == ["tool", "3", {"call_id": "call:1"}]
    keys = [request().key, request(choice="none").key, request(text_schema={"type": "object"}).key]
    assert len(set(keys)) == 3
    other = CompletionRequest("openai:served", TURNS[:2], 16)
    assert other.key == digest(
        {
            "model": "openai:served",
            "messages": [["system", "Use tools."], ["user", "Two and three?"]],
            "max_tokens": 16,
            "temperature": 0.0,
            "top_p": 1.0,
            "stop": [],
            "seed": None,
        }
    )
    assert request().most().prompt_tokens > other.most().prompt_tokens


def test_replies_are_read_or_refused():
    form = ReplyForm(TOOLS)
    call = {"name": "add", "arguments": {"x": 1}}
    assert form.read(json.dumps({"text": "", "calls": [call]})) == {"text": "", "calls": [call]}
    assert form.read(f"Well: {json.dumps(call)}") == {"text": "", "calls": [call]}
    assert form.read("Prose {with braces}.") == {"text": "Prose {with braces}.", "calls": []}
    wrong = {
        "": "no complete JSON object",
        '{"text": "", "calls": []}': "neither a text nor a call",
        '{"text": "", "calls": [{"name": "sub"}]}': "there is no tool 'sub'; tools are add, name",
        '{"text": "", "calls": [{"name": "add", "arguments": [1]}]}': "arguments of add are list, expected an object",
        '{"text": "", "calls": 5}': "calls are int, expected a list",
        '{"text": "", "calls": [3]}': "a call is",
        '{"text": "", "calls": [{"name": "a': "no complete JSON object",
    }
    for text, words in wrong.items():
        with pytest.raises(AnswerError, match=words):
            form.read(text)
    with pytest.raises(AnswerError, match="a call of a tool was asked for"):
        ReplyForm(TOOLS, "required").read("Prose.")


def test_schemas_of_replies_hold_those_of_all_tools():
    schema = ReplyForm(TOOLS).schema
    assert schema["$defs"] == {"1.It": {"type": "string"}}
    answers, asks = schema["anyOf"]
    assert answers["properties"]["text"]["minLength"] == 1 and answers["properties"]["calls"]["maxItems"] == 0
    name = asks["properties"]["calls"]["items"]["anyOf"][1]
    assert name["properties"]["arguments"]["properties"]["it"] == {"$ref": "#/$defs/1.It"}
    assert ReplyForm(TOOLS, "add").schema["properties"]["calls"]["minItems"] == 1
    typed = ReplyForm(TOOLS, text_schema={"type": "object", "properties": {"a": {"type": "integer"}}})
    assert [one["properties"]["text"]["type"] for one in typed.schema["anyOf"]] == ["object", "string"]
    assert typed.read('{"text": {"a": 1}, "calls": []}') == {"text": '{"a": 1}', "calls": []}
