import dataclasses
import json
from typing import Literal

import pytest
from fakes import ScriptedCompleter
from pydantic import BaseModel

import optimas_jax as oj
from optimas_jax.core.running import event_loop
from optimas_jax.core.types import Example, Outcome, thaw
from optimas_jax.core.values import Prompt
from optimas_jax.programs.declared import DeclarationError
from optimas_jax.rewards.text import text_group

MODEL = oj.LanguageModel("scripted", max_tokens=64)


def system_of(function, inputs, components=()):
    return oj.program(function, components=components).system(lambda outputs: 0.0, tuple(inputs), MODEL)


def run(function, inputs, answer, components=(), configuration=None):
    asked = ScriptedCompleter(answer)
    system = system_of(function, inputs, components).using(asked)
    example = Example("e", inputs, {}, "train")
    return event_loop.run(system.run(configuration or system.default_configuration(), example, 0)), asked.requests


class Verdict(BaseModel):
    supported: bool
    problem: str = ""


@dataclasses.dataclass
class Answer:
    text: str
    sources: list[int]


verify = oj.prompt("Check the draft.", output=Verdict)
final = oj.prompt("Answer.", output=Answer)
count = oj.prompt("How many?", output=int)
both = oj.prompt("Answer twice.", output={"short": str, "long": list[Verdict]})
pick = oj.prompt("Which?", output=Literal["a", "b"], demos=[oj.Demo({"q": "x"}, {"pick": "b"})])

ANSWERS = {
    "verify": '{"supported": false, "problem": "no source"}',
    "final": '```json\n{"text": "It is.", "sources": [1, 2]}\n```',
    "count": '{"count": 3}',
    "both": '{"short": "s", "long": [{"supported": true}]}',
    "pick": "a",
}


async def program(question):
    verdict = await verify(draft=question)
    assert verdict == Verdict(supported=False, problem="no source")
    answer = await final(question=question, problem=verdict.problem, verdict=verdict)
    assert answer == Answer("It is.", [1, 2])
    number, outputs, letter = await count(q=answer), await both(q="q"), await pick(q="q")
    assert (number, letter) == (3, "a") and outputs == {"short": "s", "long": [Verdict(supported=True)]}
    return answer


def test_prompts_return_what_their_outputs_say():
    trace, requests = run(program, {"question": "why?"}, lambda one: ANSWERS[one.role])
    assert trace.outcome is Outcome.OK and trace.outputs == {"text": "It is.", "sources": (1, 2)}
    outputs = {call.component: call.outputs for call in trace.calls}
    assert outputs["verify"] == {"supported": False, "problem": "no source"}
    assert outputs["count"] == {"count": 3} and outputs["pick"] == {"pick": "a"}
    assert outputs["both"] == {"short": "s", "long": ({"supported": True, "problem": ""},)}
    asked = {request.role: request for request in requests}
    assert asked["verify"].schema["properties"]["supported"] == {"type": "boolean"}
    assert asked["final"].messages[-1].content.endswith('Verdict: {"supported": false, "problem": "no source"}')
    assert [message.content for message in asked["pick"].messages[1:]] == ["Q: x", '{"pick": "b"}', "Q: q"]


def test_components_have_the_fields_of_their_answers_and_local_rewards_read_them():
    system = system_of(program, ("question",))
    assert {one.name: one.outputs for one in system.components} == {
        "verify": ("supported", "problem"),
        "final": ("text", "sources"),
        "count": ("count",),
        "both": ("short", "long"),
        "pick": ("pick",),
    }
    text = text_group(system, "final", {"q": "x"}, [{"sources": [1, 2], "text": "It is."}])
    assert text.candidates == ("Text: It is.\nSources: 1\n2",)


def test_demonstrations_of_a_tuned_prompt_are_answers_in_text_style_too():
    async def asks(q):
        return await final(q=q)

    tuned = {"final": Prompt("Say it.", (oj.Demo({"q": "a"}, {"text": "b", "sources": [3]}),))}
    system = oj.program(asks).system(lambda outputs: 0.0, ("q",), dataclasses.replace(MODEL, style="text"))
    asked = ScriptedCompleter(lambda one: ANSWERS["final"])
    event_loop.run(system.using(asked).run(tuned, Example("e", {"q": "c"}, {}, "train"), 0))
    text = asked.requests[0].messages[0].content
    assert text.startswith("Say it.\n\nAnswer with JSON of this schema: {")
    assert text.endswith('\n\nQ: a\nFinal: {"text": "b", "sources": [3]}\n\nQ: c\nFinal:')


def test_a_program_sees_an_answer_that_cannot_be_read_as_a_failure():
    async def asks(q):
        try:
            return await count(q=q)
        except oj.ComponentFailure as failure:
            return failure.outcome

    trace, requests = run(asks, {"q": "q"}, lambda one: "many")
    assert trace.outputs["output"] == "parse_error" and len(requests) == 2
    assert trace.calls[0].detail.startswith("the answer: Input should be a valid integer")
    trace, requests = run(asks, {"q": "q"}, lambda one: "3" if len(one.messages) > 2 else "many")
    assert trace.outputs["output"] == 3 and json.loads(trace.calls[0].detail or "0") == 0


def test_another_type_or_template_is_another_program():
    texts = [oj.prompt("Say it.", name="a", **form) for form in ({}, {"output": str}, {"output": int})]
    own = [oj.prompt("Say it.", name="a", template=text) for text in ("{instruction}", "{instruction}!")]
    plain, same, *others = (json.dumps(thaw(one.declared)) for one in (*texts, *own))
    assert plain == same and len({plain, *others}) == 4 and "schema" not in plain


def test_what_cannot_be_is_told_where_it_is_declared():
    with pytest.raises(DeclarationError, match="no JSON can be read as"):
        oj.prompt("Say it.", output=object())
    with pytest.raises(DeclarationError, match="outputs have names, at least one"):
        oj.prompt("Say it.", output={})
    with pytest.raises(DeclarationError, match=r"an answer with a type ends with its JSON"):
        oj.prompt("Say it.", output=int, stop=("\n",))
    with pytest.raises(DeclarationError, match="output, template and tools belong to a prompt"):
        oj.component(prompt=oj.prompt("Say it.", output=int))(lambda prompt: 1)
