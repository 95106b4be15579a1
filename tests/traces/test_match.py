"""Which component a recorded call is of, the fields that its messages hold, and the example that it read."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

import optimas_jax as oj
from optimas_jax.core.component import Component
from optimas_jax.core.types import Example, freeze
from optimas_jax.core.values import Demo, Prompt, PromptSpace
from optimas_jax.llm.component import Form, LanguageModel, llm_component
from optimas_jax.llm.forms.answers import AnswerType
from optimas_jax.llm.render import render_chat, render_text
from optimas_jax.traces.match import agrees, as_seen, component_of, match_calls, read_inputs, read_lines, read_outputs
from optimas_jax.traces.records import Recorded
from optimas_jax.traces.rows import ExampleIndex


def prompt(name, instruction, inputs=("question",), output="answer", reader=None):
    return llm_component(
        name=name,
        description="",
        inputs=inputs,
        output=output,
        instruction=instruction,
        language_model=LanguageModel("m"),
        form=Form(reader),
    )


def function(name, instruction, inputs, outputs):
    async def run(*args):
        raise AssertionError

    return Component(name, "", inputs, outputs, run, PromptSpace(), Prompt(instruction))


DRAFT = prompt("draft", "Answer the question.")
CHECK = prompt("check", "Answer the question. Then check it.", output="verdict")


def asked(system, user, answer="x", **fields):
    turns = (("system", system), ("user", user)) if system else (("user", user),)
    return Recorded("f, line 1", turns=turns, answer=answer, **fields)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (asked("Other.", "a", names=("draft",)), "draft"),
        (asked("Other.", "a", names=("gpt-4o", "Draft")), "draft"),
        (asked("Answer the question.", "a", names=("gpt-4o",)), "draft"),
        (asked(" Answer the question.\n\nExample:\nQuestion: b", "a"), "draft"),
        (asked("Answer the question. Then check it.", "a"), "check"),
        (asked("", "Answer the question.\n\nQuestion: a"), "draft"),
        (asked("Answer the questions.", "a"), ""),
        (asked("", "a"), ""),
    ],
)
def test_a_call_is_of_the_component_that_it_names_or_whose_instruction_it_has(call, name):
    assert component_of(call, [DRAFT, CHECK]) == name


def test_two_components_with_one_instruction_are_told_apart_by_name_alone():
    twins = [prompt("one", "Answer."), prompt("two", "Answer.")]
    assert component_of(asked("Answer.", "a"), twins) == ""
    assert component_of(asked("Answer.", "a", names=("two",)), twins) == "two"


def test_what_is_of_no_use_is_counted():
    calls = [
        asked("Answer the question.", "Question: a"),
        asked("Other.", "a"),
        asked("Answer the question.", "Question: a", answer=" "),
    ]
    matched, left_out = match_calls(calls, [DRAFT, CHECK])
    assert [dict(one.inputs) for one in matched] == [{"question": "a"}] and matched[0].as_declared
    assert left_out == {"of no component": 1, "without content": 1}
    [other], _ = match_calls([asked("Tuned.", "Question: a", names=("draft",))], [DRAFT])
    assert not other.as_declared


NAMES = ("question", "search_results", "draft")
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip).filter(bool)


@given(values=st.tuples(TEXTS, TEXTS, TEXTS), style=st.sampled_from(["chat", "text"]))
def test_fields_are_read_back_from_what_our_prompts_send(values, style):
    fields = dict(zip(NAMES, values, strict=True))
    value = Prompt("Do it.", (Demo(dict.fromkeys(NAMES, "shown"), {"answer": "so"}),))
    turns = (render_chat if style == "chat" else render_text)(value, fields, NAMES, "answer")
    call = Recorded("f", turns=tuple(("user" if role == "text" else role, text) for role, text in turns), answer="x")
    component = prompt("a", "Do it.", NAMES)
    read = read_inputs(call, component)
    assert read == fields or any(label in "".join(values).lower() for label in ("question:", "results:", "draft:"))


def test_fields_of_other_peoples_messages_are_read():
    json_call = asked("", '{"question": "a", "draft": ["b", "c"]}')
    assert dict(read_inputs(json_call, function("f", "", ("question", "draft"), ()))) == {
        "question": "a",
        "draft": ("b", "c"),
    }
    lines = asked("s", "passages: [1] Iron: a metal.\n[2] Tin: too.\nquestion: a\ndraft: b")
    component = function("f", "s", ("question", "passages", "text"), ("answer", "source"))
    [matched], _ = match_calls(
        [dataclasses.replace(lines, names=("f",), answer='{"answer": "b", "source": 2}')], [component]
    )
    assert matched.inputs == {"passages": "[1] Iron: a metal.\n[2] Tin: too.", "question": "a", "text": "b"}
    assert matched.outputs == {"answer": "b", "source": 2}
    assert dict(read_inputs(asked("s", "Just a text."), DRAFT)) == {"question": "Just a text."}
    assert read_inputs(asked("s", "Just a text."), component) is None
    assert read_lines("A: 1", ["a", "b"]) is None and read_lines("x\nA: 1", ["a"]) is None


def test_typed_answers_are_read_by_the_components_own_reader():
    typed = prompt("verdict", "s", output="verdict", reader=AnswerType("verdict", {"good": bool, "why": str}))
    assert read_outputs('```json\n{"good": true, "why": "so"}\n```', typed) == {"good": True, "why": "so"}
    assert read_outputs("no", typed) is None
    assert read_outputs(" a ", DRAFT) == {"answer": "a"}
    assert read_outputs('so {"a": 1}', function("f", "", (), ("a", "b"))) is None


def test_a_recorded_call_agrees_with_inputs_whose_texts_it_shows():
    component = function("f", "s", ("question", "passages", "problem"), ("f",))

    def recorded(problem):
        call = asked("s", f"passages: [1] Iron:  a\nmetal.\nquestion: What?\nproblem: {problem}", names=("f",))
        return match_calls([call], [component])[0][0]

    inputs = freeze({"question": "What?", "passages": [{"id": "1", "title": "Iron"}], "problem": ""})
    assert agrees(recorded("none"), inputs) and not agrees(recorded("too long"), inputs)
    assert agrees(recorded("too long"), {**inputs, "problem": "too long"})
    assert not agrees(recorded("none"), {**inputs, "question": "Who?"})


def test_outputs_get_the_types_that_a_component_was_seen_to_return():
    seen = {"answer": "a", "source": "1", "count": 2, "good": True}
    outputs = {"answer": "b", "source": 7, "count": "3", "good": "false", "more": 1}
    assert as_seen(outputs, seen) == {"answer": "b", "source": "7", "count": 3, "good": False, "more": 1}


def example(name, **inputs):
    return Example(name, freeze(inputs), freeze({}), "train")


def test_examples_are_found_by_all_their_texts():
    index = ExampleIndex(
        [
            example("1", question="What is the capital of Peru?"),
            example("2", question="What is the capital of Peru?", passages=["A long passage, and more."]),
            example("3", question="a"),
            example("4", question="b", k=3),
        ]
    )

    def found(*texts, row=None):
        return [one.id for one in index.find(texts, row)]

    assert found("Question: What is the  capital\nof Peru? Say.") == ["1"]
    assert found('{"q": "What is the capital of Peru?"}', "x (A long passage, and more.)") == ["2", "1"]
    assert found("What is the capital of Per") == [] and found("whatever a line") == []
    assert found("Question: a") == ["3"] and found("question: b\nk: 3") == ["4"] and found("question: b") == []
    assert found(row={"question": "b", "k": 3}) == ["4"] and found(row={"question": "c"}) == []


def test_agents_read_conversations_and_are_told_apart_by_what_they_send():
    one = oj.agent("one", sends="gpt", when="You plan").build(LanguageModel("m"))
    two = oj.agent("two", sends="gpt", when="You write").build(LanguageModel("m"))
    asks = '{"text": "", "calls": [{"name": "f", "arguments": {"a": 1}}]}'
    turns = (("system", "You write."), ("user", "Hi"), ("assistant", asks), ("tool", "2"))
    call = Recorded("f", ("gpt",), turns=turns, answer="Done.")
    [matched], _ = match_calls([call], [one, two])
    assert matched.component == "two" and matched.as_declared
    assert matched.outputs == {"text": "Done.", "calls": (), "ids": (), "finish": "stop"}
    messages = matched.inputs["messages"]
    assert messages[2]["calls"][0] == {"id": "call_1", "name": "f", "arguments": {"a": 1}}
    assert messages[3] == {"role": "tool", "content": "2", "call_id": "call_1"}
    renamed = [dict(turn) for turn in messages]
    renamed[3]["call_id"] = "other"
    assert agrees(matched, {"messages": renamed, "tools": []}) and not agrees(matched, {"messages": renamed[:3]})
    assert component_of(Recorded("f", ("gpt",), turns=turns[1:], answer="a"), [one, two]) == ""
    [asked], _ = match_calls([dataclasses.replace(call, turns=turns[:2], answer=asks)], [one, two])
    assert asked.outputs["finish"] == "tool_calls" and asked.outputs["calls"][0]["name"] == "f"
