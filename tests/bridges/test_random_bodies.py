"""Whatever a framework sends: a request is read, or refused by an error of OpenAI's form."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from optimas_jax.bridges.asked import Asked
from optimas_jax.bridges.chat import chat_answer, chat_events, read_chat
from optimas_jax.bridges.order import preceding
from optimas_jax.bridges.responses import read_responses, responses_answer, responses_events
from optimas_jax.core.component import RunContext
from optimas_jax.core.types import Call, freeze
from optimas_jax.core.values import Prompt
from optimas_jax.llm.agent import AgentCall
from optimas_jax.llm.component import LanguageModel
from optimas_jax.server.protocol import RequestError

WORDS = st.sampled_from(
    [
        "user",
        "system",
        "developer",
        "assistant",
        "tool",
        "function",
        "text",
        "json_schema",
        "json_object",
        "message",
        "function_call",
        "auto",
        "none",
        "required",
        "function_call_output",
        "input_text",
        "image_url",
        "input_image",
        "data:image/png;base64,AA",
        "https://x",
        "a",
        "b",
        "�",
    ]
)
KEYS = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "tool_calls",
        "tool_call_id",
        "call_id",
        "id",
        "name",
        "arguments",
        "function",
        "parameters",
        "description",
        "schema",
        "json_schema",
        "format",
        "image_url",
        "output",
        "properties",
        "$defs",
    ]
)
SCALARS = st.one_of(WORDS, st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(0, 2), st.just("{}"))
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=12,
)
CALL = st.fixed_dictionaries(
    {"id": WORDS, "type": st.just("function"), "function": st.fixed_dictionaries({"name": WORDS, "arguments": SCALARS})}
)
TURN = st.one_of(
    st.fixed_dictionaries({"role": WORDS, "content": JSON}, optional={"tool_calls": st.lists(CALL, max_size=2)}),
    st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": WORDS, "content": JSON}),
    st.fixed_dictionaries({"type": WORDS, "call_id": WORDS, "name": WORDS, "arguments": SCALARS, "output": JSON}),
    JSON,
)
TOOL = st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "x"])}, optional={"function": JSON, "name": WORDS, "parameters": JSON}
)
FIELDS = {
    **dict.fromkeys(("messages", "input"), st.one_of(st.lists(TURN, max_size=4), JSON)),
    "tools": st.one_of(st.lists(TOOL, max_size=3), JSON),
    **dict.fromkeys(
        [
            "instructions",
            "text",
            "tool_choice",
            "response_format",
            "stop",
            "seed",
            "temperature",
            "top_p",
            "max_tokens",
            "max_completion_tokens",
            "n",
            "max_output_tokens",
            "stream",
            "stream_options",
            "parallel_tool_calls",
            "unknown",
            "user",
        ],
        JSON,
    ),
}
BODY = st.fixed_dictionaries({"model": st.one_of(st.just("adder"), JSON)}, optional=FIELDS)
OUTPUTS = {"text": "Yes.", "calls": [{"name": "a", "arguments": {}}], "ids": ["call_1"], "finish": "tool_calls"}
WIRES = [(read_chat, chat_answer, chat_events), (read_responses, responses_answer, responses_events)]


@settings(max_examples=300, deadline=None)
@given(BODY, st.sampled_from(WIRES))
def test_every_body_is_read_or_refused(body, wire):
    read, answer, events = wire
    try:
        asked = read(body)
    except RequestError as error:
        assert 400 <= error.status < 500 and json.dumps(error.to_json())
        return
    assert isinstance(asked, Asked)
    inputs = freeze(asked.inputs)
    json.dumps(answer(asked, "k", OUTPUTS)), "".join(events(asked, "k", OUTPUTS))
    for style in ("chat", "text"):
        call = AgentCall(LanguageModel("m", style=style))
        request = call.request(inputs, Prompt("Tuned."), RunContext(None, 0, "adder"))
        assert request.key and request.most().calls == 1
    assert preceding(inputs, [Call("adder", inputs, freeze(OUTPUTS))]) == [True] or inputs["messages"]
