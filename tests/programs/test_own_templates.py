import pytest
from fakes import ScriptedCompleter
from hypothesis import given
from hypothesis import strategies as st

import optimas_jax as oj
from optimas_jax.core.running import event_loop
from optimas_jax.core.types import Example
from optimas_jax.core.values import Prompt
from optimas_jax.llm.forms.templates import Template
from optimas_jax.programs.declared import DeclarationError

TEXT = "{instruction}\n\n{demos}\nQuestion: {question}\nAnswer:"


def requests_of(declared, style="chat", value=None, **fields):
    async def program():
        return await declared(**fields)

    model = oj.LanguageModel("scripted", max_tokens=8, style=style)
    system = oj.program(program, components=[declared]).system(lambda outputs: 0.0, (), model)
    asked = ScriptedCompleter(lambda request: '{"answer": 1}')
    configuration = {declared.name: value or Prompt(declared.instruction, declared.demos)}
    event_loop.run(system.using(asked).run(configuration, Example("e", {}, {}, "train"), 0))
    return [(message.role, message.content) for request in asked.requests for message in request.messages]


def test_one_message_is_rendered_from_the_template():
    answer = oj.prompt("Be short.", template=TEXT, name="answer")
    expected = "Be short.\n\nQuestion: Why {question}?\nAnswer:"
    assert requests_of(answer, question="Why {question}?") == [("user", expected)]
    assert requests_of(answer, question=" Why {question}? ", style="text") == [("text", expected)]
    tuned = Prompt(
        "Be {long}.", (oj.Demo({"question": "a"}, {"answer": "b"}), oj.Demo({"question": "c"}, {"answer": "d"}))
    )
    assert requests_of(answer, value=tuned, question="e") == [
        ("user", "Be {long}.\n\nQuestion: a\nAnswer: b\n\nQuestion: c\nAnswer: d\n\nQuestion: e\nAnswer:")
    ]


def test_braces_are_written_twice_and_types_go_with_the_instruction():
    answer = oj.prompt("Be short.", template="{{{instruction}}} {x}{{}}", output=int, name="answer")
    [(role, text)] = requests_of(answer, x=[1, {"a": 2}])
    assert role == "user" and text.startswith("{Be short.\n\nAnswer with JSON of this schema: {")
    assert text.endswith('}} 1\n{"a": 2}{}')


@given(st.text(), st.text())
def test_values_are_never_read_as_templates(instruction, value):
    text = Template("{instruction}|{x}|{instruction}").render(Prompt(instruction), {"x": value}, "answer")
    assert text == f"{instruction}|{value.strip()}|{instruction}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Question: {question}", r"no place \{instruction\}, where the tuned instruction goes; it has question"),
        ("", "it has none"),
        ("{instruction} {0}", r"the place \{0\}: a place is a name in braces"),
        ("{instruction} {}", r"the place \{\}"),
        ("{instruction} {a.b}", r"the place \{a.b\}"),
        ("{instruction} {a!r:>3}", r"the place \{a!r:>3\}"),
        ('{instruction} {"a": 1}', "braces of the text are written"),
        ("{instruction} {a", "cannot be read"),
    ],
)
def test_templates_that_cannot_be_are_refused_where_they_are_declared(template, message):
    with pytest.raises(DeclarationError, match=message):
        oj.prompt("Be short.", template=template)


def test_demonstrations_need_a_place():
    assert oj.prompt("Be short.", template="{instruction} {x}").space.max_demos == 0
    with pytest.raises(DeclarationError, match=r"no place \{demos\}"):
        oj.prompt("Be short.", template="{instruction} {x}", demos=[oj.Demo({"x": 1}, {"answer": "b"})])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {},
            r"the template has the place \{question\}, and the other has not. .* has question; the call has no",
        ),
        ({"question": 1, "k": 2}, r"prompt 'answer': .*the call has the field 'k', and .*; the call has question, k"),
        ({"question": 1, "demos": 2}, r"the call has the field 'demos'"),
    ],
)
def test_fields_that_do_not_fit_the_template_end_the_run_at_the_first_call(fields, message):
    with pytest.raises(DeclarationError, match=message):
        requests_of(oj.prompt("Be short.", template=TEXT, name="answer"), **fields)
