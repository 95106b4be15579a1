"""Recorded calls of all forms, alone and mixed, and files that are damaged."""

import copy
import functools
import gzip
import json
import random
import time

import pytest

from optimas_jax.traces.read import read_traces
from optimas_jax.traces.records import TraceError

SYSTEM = {"role": "system", "content": "Answer."}
USER = {"role": "user", "content": "Question: What is iron?"}
ANSWER = {"role": "assistant", "content": "A metal."}
TURNS = (("system", "Answer."), ("user", "Question: What is iron?"))


def write(folder, *lines, name="calls.jsonl"):
    file = folder / name
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return file


def read(folder, *lines, **options):
    return read_traces([write(folder, *lines, **options)]).calls


def attribute(key, value):
    return {"key": key, "value": value}


OPENAI = {
    "fine-tuning file": {"messages": [SYSTEM, USER, ANSWER]},
    "call": {"model": "m", "messages": [SYSTEM, USER], "choices": [{"message": ANSWER}]},
    "proxy log": {"request": {"messages": [SYSTEM, USER]}, "response": {"choices": [{"message": ANSWER}]}},
    "batch": {
        "body": {"messages": [SYSTEM, USER]},
        "response": {"status_code": 200, "body": {"choices": [{"message": ANSWER}]}},
    },
    "output text": {"messages": [SYSTEM, USER], "output": "A metal."},
    "developer": {"messages": [{"role": "developer", "content": "Answer."}, USER, ANSWER]},
    "parts": {
        "messages": [SYSTEM, {"role": "user", "content": [{"type": "text", "text": USER["content"]}]}, ANSWER],
    },
    "responses": {
        "instructions": "Answer.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": USER["content"]}]}],
        "output": [
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A metal."}]},
        ],
    },
    "responses of a text": {"instructions": "Answer.", "input": USER["content"], "output_text": "A metal."},
}


@pytest.mark.parametrize("form", OPENAI)
def test_every_form_of_openai_is_the_same_call(tmp_path, form):
    [call] = read(tmp_path, {**OPENAI[form], "score": 0.5, "component": "answer", "trace_id": "r1"})
    assert call.turns == TURNS and call.answer == "A metal."
    assert call.names[0] == "answer" and call.run == "r1" and call.score == 0.5 and call.where == "calls.jsonl, line 1"


def test_several_choices_are_several_calls_and_a_score_may_stand_in_the_metadata(tmp_path):
    item = {"messages": [USER], "choices": [{"message": ANSWER}, {"message": {**ANSWER, "content": "Fe."}}]}
    calls = read(tmp_path, {**item, "metadata": {"score": "0.25", "feedback": "Short.", "component": "answer"}})
    assert [call.answer for call in calls] == ["A metal.", "Fe."]
    assert {(call.score, call.feedback, call.names) for call in calls} == {(0.25, "Short.", ("answer",))}


def test_a_run_gives_its_score_and_inputs_to_its_calls(tmp_path):
    call = {"messages": [SYSTEM, USER, ANSWER], "component": "answer"}
    own = {"component": "search", "inputs": {"q": "iron"}, "outputs": {"search": ["Fe"]}, "score": 1}
    calls = read(tmp_path, {"run": 7, "score": 0.5, "inputs": {"question": "iron"}, "calls": [call, own]})
    assert [one.score for one in calls] == [0.5, 1.0] and {one.run for one in calls} == {"7"}
    assert all(dict(one.row) == {"question": "iron"} for one in calls)
    assert calls[1].outputs == {"search": ("Fe",)}


def test_answers_that_ask_for_tools_are_replies_and_roles_of_tools_are_known(tmp_path):
    asks = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}
    [call] = read(tmp_path, {"messages": [USER, asks]})
    assert json.loads(call.answer) == {"text": "", "calls": [{"name": "f", "arguments": {"a": 1}}]}
    for role in ("tool", "function"):
        [call] = read(tmp_path, {"messages": [USER, asks, {"role": role, "content": "2"}, ANSWER]})
        assert call.answer == "A metal." and call.turns[-1] == ("tool", "2") and call.asked == ""


def spans():
    """A run of two calls in a span that names their component, the second scored on its own."""
    messages = [{"role": "user", "parts": [{"type": "text", "content": USER["content"]}]}]
    answer = [{"role": "assistant", "parts": [{"type": "text", "content": "A metal."}], "finish_reason": "stop"}]
    instructions = [{"type": "text", "content": "Answer."}]
    root = {"traceId": "t", "spanId": "a", "name": "pipeline", "attributes": [], "events": []}
    root["events"].append({"name": "gen_ai.evaluation.result", "attributes": [SCORE, attribute(*WHY)]})
    outer = {"traceId": "t", "spanId": "b", "parentSpanId": "a", "name": "answer", "attributes": []}
    told = {
        "gen_ai.operation.name": {"stringValue": "chat"},
        "gen_ai.request.model": {"stringValue": "m"},
        "gen_ai.system_instructions": {"stringValue": json.dumps(instructions)},
        "gen_ai.input.messages": {"stringValue": json.dumps(messages)},
        "gen_ai.output.messages": {"stringValue": json.dumps(answer)},
    }
    attributes = [attribute(*pair) for pair in told.items()]
    call = {"traceId": "t", "spanId": "c", "parentSpanId": "b", "name": "chat m", "attributes": attributes}
    tool = {"traceId": "t", "spanId": "d", "parentSpanId": "b", "name": "execute_tool f", "attributes": [TOOL]}
    return [root, outer, call, tool]


SCORE = attribute("gen_ai.evaluation.score.value", {"doubleValue": 0.75})
WHY = ("gen_ai.evaluation.explanation", {"stringValue": "Nearly."})
TOOL = attribute("gen_ai.operation.name", {"stringValue": "execute_tool"})


@pytest.mark.parametrize("indent", [None, 2])
def test_an_otlp_export_is_read_in_one_line_or_many(tmp_path, indent):
    export = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans()}]}]}
    [call] = read(tmp_path, json.dumps(export, indent=indent), name="spans.json")
    assert call.turns == TURNS and call.answer == "A metal." and call.run == "t"
    assert call.names == ("m", "answer", "pipeline") and (call.score, call.feedback) == (0.75, "Nearly.")
    assert "span 3 of 4" in call.where


def plain(attributes, events=(), **fields):
    names = {"name": "chat m", "context": {"trace_id": "t", "span_id": "s"}, "parent_id": None}
    return {**names, "attributes": attributes, "events": [*events], **fields}


def event(name, **attributes):
    return {"name": name, "attributes": attributes}


OTEL = {
    "attributes": [
        plain(
            {
                "gen_ai.input.messages": [
                    {"role": "system", "parts": [{"type": "text", "content": "Answer."}]},
                    {"role": "user", "parts": [{"type": "text", "content": USER["content"]}]},
                ],
                "gen_ai.output.messages": [{"role": "assistant", "parts": [{"type": "text", "content": "A metal."}]}],
            }
        )
    ],
    "events of messages": [
        plain(
            {"gen_ai.system": "openai"},
            [
                event("gen_ai.system.message", content="Answer."),
                event("gen_ai.user.message", content=USER["content"]),
                event("gen_ai.choice", index=0, message={"role": "assistant", "content": "A metal."}),
            ],
        )
    ],
    "events of content": [
        plain(
            {"gen_ai.system": "openai"},
            [
                event("gen_ai.content.prompt", **{"gen_ai.prompt": json.dumps([SYSTEM, USER])}),
                event("gen_ai.content.completion", **{"gen_ai.completion": json.dumps([ANSWER])}),
            ],
        )
    ],
    "numbered attributes": [
        plain(
            {
                "gen_ai.prompt.0.role": "system",
                "gen_ai.prompt.0.content": "Answer.",
                "gen_ai.prompt.1.role": "user",
                "gen_ai.prompt.1.content": USER["content"],
                "gen_ai.completion.0.content": "A metal.",
            }
        )
    ],
    "a log record": [
        plain({"gen_ai.request.model": "m"}),
        {
            "traceId": "t",
            "spanId": "s",
            "eventName": "gen_ai.client.inference.operation.details",
            "attributes": {
                "gen_ai.input.messages": [
                    {"role": "system", "parts": [{"type": "text", "content": "Answer."}]},
                    {"role": "user", "parts": [{"type": "text", "content": USER["content"]}]},
                ],
                "gen_ai.output.messages": [{"role": "assistant", "parts": [{"type": "text", "content": "A metal."}]}],
            },
        },
    ],
}


@pytest.mark.parametrize("form", OTEL)
def test_every_form_of_spans_is_the_same_call(tmp_path, form):
    [call] = read(tmp_path, *OTEL[form])
    assert call.turns == TURNS and call.answer == "A metal." and call.run == "t"


def test_spans_without_content_are_calls_without_an_answer(tmp_path):
    [call] = read(tmp_path, plain({"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}))
    assert call.answer == "" and call.turns == ()


def test_rows_of_an_evaluation_are_calls_with_their_fields(tmp_path):
    call = {"component": "answer", "occurrence": 0, "inputs": {"q": "iron"}, "outputs": {"answer": "Fe"}}
    failed = {**call, "outputs": {}, "outcome": "parse_error"}
    side = {"score": 0.5, "runs": [{"seed": 0, "score": 0.5, "feedback": "", "calls": [call, failed]}]}
    row = {"id": "1", "kind": "", "inputs": {"q": "iron"}, "gold": {}, "before": side, "after": side}
    calls = read(tmp_path, row)
    assert [(one.names, dict(one.outputs), one.score) for one in calls] == [(("answer",), {"answer": "Fe"}, 0.5)] * 2
    assert [one.as_declared for one in calls] == [True, False] and calls[0].run != calls[1].run


def test_forms_may_be_mixed_and_characters_that_no_file_holds_are_replaced(tmp_path):
    half = json.dumps({"messages": [USER, {"role": "assistant", "content": "a\ud83d b\0"}]})
    calls = read(tmp_path, OPENAI["call"], "", half, *OTEL["attributes"])
    assert [call.answer for call in calls] == ["A metal.", "a� b�", "A metal."]
    assert calls[1].where == "calls.jsonl, line 3"


def test_megabytes_of_one_line_are_read(tmp_path):
    [call] = read(tmp_path, {"messages": [{"role": "user", "content": "word: " * 1_000_000}, ANSWER]})
    assert len(call.asked) == 6_000_000


BAD = {
    "no JSON": (["{oops"], r"calls\.jsonl, line 1: not JSON .* column 2.*take it out"),
    "no JSON later": ([OPENAI["call"], "oops"], r"calls\.jsonl, line 2: not JSON"),
    "a text": (['"oops"'], r"calls\.jsonl, line 1: 'oops', expected an object"),
    "another object": ([{"question": "a"}], r"line 1: no recorded call in 'question'\. Known forms: messages"),
    "an unknown role": ([{"messages": [{"role": "boss", "content": "a"}]}], r"line 1: .*'boss'; known: system, dev"),
    "no role": ([{"messages": [{"content": "a"}]}], r"role None; known"),
    "messages that are none": ([{"messages": ["a", "b"]}], r"a message is 'a', expected an object"),
    "a score that is none": ([{**OPENAI["call"], "score": "good"}], r"line 1: score is 'good', expected a finite"),
    "NaN": (['{"messages": [], "score": NaN}'], r"line 1: NaN is no number"),
    "content that is none": ([{"messages": [{"role": "user", "content": 3}]}], r"content of a message is 3"),
    "outputs that are none": ([{"component": "a", "inputs": {}, "outputs": "x"}], r"outputs of a is 'x'"),
    "attributes that are none": ([{"attributes": 3, "spanId": "s"}], r"attributes are 3"),
    "an export that is none": ([{"resourceSpans": 3}], r"resourceSpans is 3, expected a list"),
    "an empty file": ([""], r"is empty: give a file of recorded calls"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_refused_with_their_place(tmp_path, name):
    lines, message = BAD[name]
    with pytest.raises(TraceError, match=message):
        read(tmp_path, *lines)


def test_missing_files_and_bytes_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(TraceError, match=r"no file .*none\.jsonl"):
        read_traces(str(tmp_path / "none.jsonl"))
    (tmp_path / "bytes").write_bytes(b'{"messages": []}\n\xff\n')
    with pytest.raises(TraceError, match=r"line 2: not UTF-8"):
        read_traces([tmp_path / "bytes"])
    (tmp_path / "calls.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(TraceError, match="is compressed"):
        read_traces([tmp_path / "calls.gz"])


ODD = [
    None,
    3,
    -1.5,
    "x",
    "",
    [],
    {},
    True,
    [None],
    [1],
    {"a": 1},
    "{",
    "[1",
    "\ud800",
    {"role": "user"},
    [[]],
    "1e999",
]


def places(value, path=()):
    """Where parts of plain data are."""
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def test_damaged_items_are_read_or_refused_with_their_file(tmp_path):
    rng = random.Random(0)
    export = {"resourceSpans": [{"scopeSpans": [{"spans": spans()}]}]}
    items = [*OPENAI.values(), *(item for of_form in OTEL.values() for item in of_form), export]
    refused = 0
    for _ in range(400):
        item = copy.deepcopy(rng.choice(items))
        *outer, last = rng.choice(list(places(item)))
        part = functools.reduce(lambda found, key: found[key], outer, item)
        part[last] = copy.deepcopy(rng.choice(ODD))
        try:
            read(tmp_path, item)
        except TraceError as error:
            assert "calls.jsonl" in str(error)
            refused += 1
    assert 100 < refused < 300


def test_spans_around_each_other_take_time_in_proportion(tmp_path):
    call = {"gen_ai.operation.name": "chat", "gen_ai.prompt": "q", "gen_ai.completion": "a"}
    spans = [
        {
            "trace_id": "t",
            "span_id": f"s{i}",
            "parent_span_id": f"s{i + 1}",
            "name": "x",
            "attributes": call if i == 0 else {},
        }
        for i in range(2000)
    ]
    around_itself = {"trace_id": "u", "span_id": "s", "parent_span_id": "s", "name": "x", "attributes": {}}
    began = time.process_time()
    [read_call] = read(tmp_path, *spans, around_itself)
    assert read_call.answer == "a" and time.process_time() - began < 10  # compared with each other: half an hour


@pytest.mark.parametrize(
    "arguments", ["[" * 100_000, "9" * 5000, '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud83d"}', "no JSON"]
)
def test_arguments_of_tools_that_no_file_holds_are_read(tmp_path, arguments):
    asked = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    [read_call] = read(tmp_path, {"messages": [USER, asked]})
    data = json.loads(read_call.answer, parse_constant=pytest.fail)
    assert data["calls"][0]["name"] == "f" and read_call.answer.encode()


@pytest.mark.parametrize("number", ["00", "9" * 5000, "\u0663", "-1"])
def test_odd_numbers_of_messages_are_read_or_left_out(tmp_path, number):
    attributes = {f"gen_ai.prompt.{number}.content": "q", "gen_ai.completion.0.content": "a"}
    [read_call] = read(tmp_path, {"trace_id": "t", "span_id": "s", "name": "x", "attributes": attributes})
    assert read_call.answer == "a"


def asks(*names):
    return json.dumps({"text": "", "calls": [{"name": name, "arguments": {"a": 1}} for name in names]})


WANTED = {"name": "f", "arguments": '{"a": 1}'}


@pytest.mark.parametrize(
    "attributes",
    [
        {
            "gen_ai.output.messages": [
                {"role": "assistant", "parts": [{"type": "tool_call", "id": "1", "name": "f", "arguments": {"a": 1}}]}
            ]
        },
        {"gen_ai.completion.0.tool_calls.0.name": "f", "gen_ai.completion.0.tool_calls.0.arguments": '{"a": 1}'},
    ],
)
def test_spans_of_answers_that_ask_for_tools_are_replies(tmp_path, attributes):
    [call] = read(tmp_path, plain({"gen_ai.prompt.0.content": "q", "gen_ai.operation.name": "chat", **attributes}))
    assert call.answer == asks("f")


def test_events_of_answers_that_ask_for_tools_are_replies(tmp_path):
    events = [
        event("gen_ai.user.message", content="q"),
        event("gen_ai.choice", message={"role": "assistant", "tool_calls": [{"id": "1", "function": WANTED}]}),
    ]
    [call] = read(tmp_path, plain({"gen_ai.system": "openai"}, events))
    assert call.answer == asks("f")


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ([{"type": "function_call", **WANTED}, {"type": "function_call", **WANTED, "name": "g"}], asks("f", "g")),
        (
            [
                {"type": "message", "content": [{"type": "output_text", "text": "Hm."}]},
                {"type": "function_call", **WANTED},
            ],
            asks("f").replace('"text": ""', '"text": "Hm."'),
        ),
    ],
)
def test_a_response_with_several_items_is_one_reply(tmp_path, output, answer):
    [call] = read(tmp_path, {"input": "q", "output": output})
    assert call.answer == answer


def test_a_call_in_two_places_is_one(tmp_path):
    parts = [{"type": "text", "text": "Hm."}, {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}]
    message = {"role": "assistant", "content": parts, "tool_calls": [{"id": "1", "function": WANTED}]}
    [call] = read(tmp_path, {"messages": [USER], "choices": [{"message": message}]})
    assert call.answer == asks("f").replace('"text": ""', '"text": "Hm."')
    [alone] = read(tmp_path, {"messages": [USER], "choices": [{"message": {**message, "tool_calls": None}}]})
    assert alone.answer == call.answer


def test_an_older_call_of_a_function_is_a_call(tmp_path):
    message = {"role": "assistant", "content": None, "function_call": WANTED}
    [call] = read(tmp_path, {"messages": [USER], "choices": [{"message": message}]})
    assert call.answer == asks("f")


@pytest.mark.parametrize(
    "text", ['{"content": "b", "source": 3}', '{"role": "admin"}', "[]", "{name}: hm", "[INST] hm"]
)
def test_texts_that_look_like_messages_stay_texts(tmp_path, text):
    instruction = {"gen_ai.system_instructions": text} if text.startswith(("{name", "[INST")) else {}
    [call] = read(tmp_path, plain({"gen_ai.prompt": "q", "gen_ai.completion": text, **instruction}))
    assert call.answer == text
    assert call.instruction == instruction.get("gen_ai.system_instructions", "")


def test_spans_around_themselves_are_calls(tmp_path):
    attributes = {"gen_ai.prompt": "q", "gen_ai.completion": "a"}
    [call] = read(tmp_path, plain(attributes, spanId="1", parentSpanId="1"))
    assert call.answer == "a"
