import dataclasses
import datetime
import enum
import json
from typing import Literal

import pytest
from fakes import ScriptedCompleter, request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from optimas_jax.core.component import ComponentFailure, RunContext
from optimas_jax.core.running import event_loop
from optimas_jax.core.system import System
from optimas_jax.core.types import Example, Outcome
from optimas_jax.core.values import Demo, Prompt
from optimas_jax.llm.base import Completion, Message
from optimas_jax.llm.component import LanguageModel, llm_component
from optimas_jax.llm.forms.answers import AnswerError, AnswerType, ask
from optimas_jax.llm.forms.schemas import clean_schema, with_line


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


class Verdict(BaseModel):
    """A verdict."""

    supported: bool
    points: list[Point]
    colour: Colour | None = None
    title: str = Field("", max_length=5)


class Leaf(BaseModel):
    kind: Literal["leaf"] = "leaf"


class Branch(BaseModel):
    kind: Literal["branch"] = "branch"
    left: "Branch | Leaf" = Field(discriminator="kind")


POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "number"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}


def test_the_schema_of_a_type_is_an_object_that_names_all_its_fields():
    assert AnswerType("p", Point).schema == POINT
    counted = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    assert AnswerType("n", int).schema == {**counted, "additionalProperties": False}
    several = AnswerType("p", {"answer": str, "point": Point}).schema
    assert list(several["properties"]) == several["required"] == ["answer", "point"]
    verdict = AnswerType("v", Verdict).schema
    assert list(verdict["properties"]) == ["supported", "points", "colour", "title"]  # a field may be called title
    assert "title" not in verdict["properties"]["supported"] and verdict["description"] == "A verdict."
    assert verdict["$defs"]["Point"] == POINT


def test_recursive_types_keep_their_definitions_and_unions_are_plain():
    schema = AnswerType("b", Branch).schema
    assert schema["type"] == "object" and list(schema["$defs"]) == ["Branch", "Leaf"]
    assert [*schema["properties"]["left"]] == ["anyOf"]
    assert clean_schema({"type": "integer", "title": "N", "$defs": {"A": {}}}) == {"type": "integer"}


@pytest.mark.parametrize("kind", [object(), lambda: 1, {}, {1: str}, {"a": object()}, type("Own", (), {})])
def test_what_is_no_type_of_json_is_refused(kind):
    with pytest.raises(TypeError, match="no JSON can be read as"):
        AnswerType("a", kind)


@pytest.mark.parametrize(
    ("kind", "text", "fields", "value"),
    [
        (Point, '{"x": 1, "y": 2}', {"x": 1, "y": 2.0}, Point(1, 2.0)),
        (Point, 'Sure {here} it is:\n```json\n{"x": 1}\n```\nDone {"x": 2}', {"x": 1, "y": 0.0}, Point(1)),
        (Point, '{"y": 1} or rather {"x": "7"}', {"x": 7, "y": 0.0}, Point(7)),
        (int, '{"a": 3}', {"a": 3}, 3),
        (int, " 3\n", {"a": 3}, 3),
        (int, "```\n3\n```", {"a": 3}, 3),
        (bool, "Yes", {"a": True}, True),
        (Colour, "red", {"a": "red"}, Colour.RED),
        (Literal["x", 1], '"x"', {"a": "x"}, "x"),
        (list[Point], 'The points: [{"x": 1}]', {"a": [{"x": 1, "y": 0.0}]}, [Point(1)]),
        (dict[str, int], '{"a": {"a": 1}}', {"a": {"a": 1}}, {"a": 1}),
        (dict[str, int], '{"b": 1}', {"a": {"b": 1}}, {"b": 1}),
        (Point | None, "null", {"a": None}, None),
        (Point | Leaf, '{"a": {"kind": "leaf"}}', {"a": {"kind": "leaf"}}, Leaf()),
        ({"n": int, "p": Point}, '{"p": {"x": 1}, "n": 2}', {"n": 2, "p": {"x": 1, "y": 0.0}}, {"n": 2, "p": Point(1)}),
        (datetime.date, '"2024-02-29"', {"a": "2024-02-29"}, datetime.date(2024, 2, 29)),
        (set[int], "[1, 1]", {"a": [1]}, {1}),
        (Point, '{"x": 1} is a draft, and {"x": 2} the answer, not {"y": 3}', {"x": 2, "y": 0.0}, Point(2)),
        (Point, "{'x': 1, 'y': 2,}", {"x": 1, "y": 2.0}, Point(1, 2.0)),
        (Point, json.dumps('{"x": 1}'), {"x": 1, "y": 0.0}, Point(1)),
        (str | None, '{"a": "\\ud800"}', {"a": "\ufffd"}, "\ufffd"),
    ],
)
def test_answers_are_read_and_come_back(kind, text, fields, value):
    answers = AnswerType("a", kind)
    assert answers.read(text) == fields
    assert json.loads(json.dumps(fields)) == fields and answers.restore(fields) == value


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        (Point, "", "there is no complete JSON"),
        (Point, '{"y": 1}', "x: Field required"),
        (Point, '{"x": {"x": 1}', "there is no complete JSON"),  # what is inside of it is no answer
        (Point, '{"x": 1e999}', "there is no complete JSON in the answer .the number '1e999' is too large"),
        (Point, '{"x": NaN}', "there is no complete JSON"),
        (int, "There are 3 of 42.", "valid integer"),  # which of them?
        (str | int, '{"a": "cut', "there is no complete JSON"),
        (list[float], '["1e999"]', "not JSON compliant"),
        (list[int], "[" * 100_000, "there is no complete JSON"),
    ],
)
def test_answers_that_cannot_be_read(kind, text, problem):
    with pytest.raises(AnswerError, match=problem):
        AnswerType("a", kind).read(text)


KINDS = [AnswerType("a", kind) for kind in (Point, int, list[str], dict[str, int], {"a": str, "b": int}, str | int)]
PIECES = st.lists(st.sampled_from(['{"a": ', '"x"', "1", ", ", '"b": ', '"y": ', "}", "[", "]", "```\n", "no ", '"']))


@given(st.text() | PIECES.map("".join))
def test_any_text_is_read_or_refused(text):
    for answers in KINDS:
        try:
            fields = answers.read(text)
        except AnswerError:
            continue
        assert answers.read(json.dumps(fields)) == fields


def test_a_prompt_shows_the_form_and_its_demonstrations_as_answers():
    demos = (Demo({"q": "a"}, {"x": 1}), Demo({"q": "b"}, {"z": "other"}))
    shown = AnswerType("p", Point).shown(Prompt("Find it.", demos), "p")
    assert with_line("Find it.", POINT) == f"Find it.\n\nAnswer with JSON of this schema: {json.dumps(POINT)}"
    assert [demo.outputs for demo in shown.demos] == [{"p": '{"x": 1, "y": 0.0}'}, {"p": '{"z": "other"}'}]


def answered(*answers, style="chat"):
    """What reading answers to a request gives, and the requests."""
    left = iter(answers)
    completer = ScriptedCompleter(lambda one: next(left))
    asked = request("q") if style == "chat" else request(messages=(Message("text", "Say.\n\nPoint:"),))
    try:
        return event_loop.run(ask(RunContext(completer, 0, "p"), asked, AnswerType("p", Point))), completer.requests
    except ComponentFailure as failure:
        return failure, completer.requests


def test_a_wrong_answer_is_repaired_once():
    fields, (first, second) = answered('{"x": "one"}', '{"x": 1}')
    assert fields == {"x": 1, "y": 0.0}
    assert second.messages[: len(first.messages)] == first.messages
    wrong, again = second.messages[-2:]
    assert wrong == Message("assistant", '{"x": "one"}') and again.role == "user"
    assert again.content == (
        "This answer cannot be read: x: Input should be a valid integer, unable to parse string as an integer\n"
        f"Answer with JSON of this schema: {json.dumps(POINT)}"
    )
    fields, (_, second) = answered("", '{"x": 1}', style="text")
    assert second.messages[0].content.startswith("Say.\n\nPoint: (nothing)\n\nThis answer cannot be read: there is no")
    assert second.messages[0].content.endswith("\n\nPoint:") and fields["x"] == 1


def test_two_wrong_answers_are_a_failure_of_their_kind():
    cut = Completion('{"x": ', Outcome.TRUNCATED, 1, 8)
    failure, requests = answered("no", "no")
    assert (failure.outcome, len(requests)) == (Outcome.PARSE_ERROR, 2)
    assert "there is no complete JSON in the answer; asked twice, the last answer was 'no'" in str(failure)
    assert answered(cut, "no")[0].outcome is Outcome.PARSE_ERROR
    failure, _ = answered(cut, cut)
    assert failure.outcome is Outcome.TRUNCATED and "cut at max_tokens = 8" in failure.detail
    refused, requests = answered(Completion("I will not.", Outcome.REFUSED, 1, 1))
    assert (refused.outcome, refused.detail, len(requests)) == (Outcome.REFUSED, "I will not.", 1)
    assert answered(Completion('{"x": 1} and', Outcome.TRUNCATED, 1, 8))[0] == {"x": 1, "y": 0.0}


def test_the_record_of_a_call_says_that_an_answer_that_was_used_was_cut():
    cut = Completion('{"x": 1} and', Outcome.TRUNCATED, 1, 8)
    repaired = [Completion("{", Outcome.TRUNCATED, 1, 8), '{"x": 1}']  # what was cut is not used
    for answers, told in (([cut], ["cut at max_tokens = 8"]), (['{"x": 1}'], []), (repaired, [])):
        left = iter(answers)
        context = RunContext(ScriptedCompleter(lambda _, left=left: next(left)), 0, "p")
        event_loop.run(ask(context, request("q"), AnswerType("p", Point)))
        assert context.cuts == told
    model = LanguageModel("m", max_tokens=16)
    writer = llm_component(
        name="writer", description="Say.", inputs=("q",), output="a", instruction="Say.", language_model=model
    )
    system = System((writer,), ("q",), ("a",), lambda outputs, gold: 1.0, completer=ScriptedCompleter(lambda _: cut))
    [call] = event_loop.run(system.run(system.default_configuration(), Example("1", {"q": "?"}, {}, "test"), 0)).calls
    assert (call.outcome, call.detail, call.outputs["a"]) == (Outcome.OK, "cut at max_tokens = 16", cut.text)


def test_a_schema_is_part_of_the_key_where_there_is_one():
    plain, typed = request(), request(schema=POINT)
    assert plain.key != typed.key and "schema" not in plain.to_json() and typed.to_json()["schema"] == POINT
    assert typed.most().prompt_tokens > plain.most().prompt_tokens + len(json.dumps(POINT)) and hash(typed)
