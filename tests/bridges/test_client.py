"""The clients of OpenAI's SDK over a run: chat and responses, with tools, streamed or not; and what is refused."""

import asyncio
import json
import threading

import openai
import pydantic
import pytest
from tool_agents import FLAT_TOOLS, SYSTEM, TOOLS, adder, adds, begin, plain_tool_loop, record, run, tool_loop

import optimas_jax as oj
from optimas_jax.core.running import event_loop
from optimas_jax.core.types import Outcome, StopRun, thaw
from optimas_jax.core.values import Prompt
from optimas_jax.llm.base import Completion
from optimas_jax.programs.declared import DeclarationError


async def by_chat(client, question):
    return await tool_loop(client, question)


async def by_streamed_chat(client, question):
    messages = begin(question)
    while True:
        async with client.chat.completions.stream(model="adder", messages=messages, tools=TOOLS) as stream:
            async for _ in stream:
                pass
            completion = await stream.get_final_completion()
        message = completion.choices[0].message
        if not message.tool_calls:
            return message.content
        call = message.tool_calls[0]
        asked = {"name": call.function.name, "arguments": call.function.arguments}
        messages += [
            {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": asked}]},
            {"role": "tool", "tool_call_id": call.id, "content": str(json.loads(call.function.arguments)["x"] + 1)},
        ]


async def by_responses(client, question):
    items = [{"role": "user", "content": question}]
    while True:
        response = await client.responses.create(model="adder", instructions=SYSTEM, input=items, tools=FLAT_TOOLS)
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            assert response.status == "completed"
            return response.output_text
        items += [item.model_dump(exclude_none=True) for item in response.output]
        for call in calls:
            result = str(json.loads(call.arguments)["x"] + 1)
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": result})


async def by_streamed_responses(client, question):
    items = [{"role": "user", "content": question}]
    while True:
        kinds, settings = [], {"model": "adder", "instructions": SYSTEM, "tools": FLAT_TOOLS}
        async with client.responses.stream(input=items, **settings) as stream:
            async for event in stream:
                kinds.append(event.type)
            response = await stream.get_final_response()
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            assert "response.output_text.delta" in kinds
            return response.output_text
        assert "response.function_call_arguments.delta" in kinds
        for call in calls:
            items.append({"type": "function_call", "call_id": call.call_id, "name": call.name})
            items[-1]["arguments"] = call.arguments
            result = str(json.loads(call.arguments)["x"] + 1)
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": result})


def expected():
    """The record of a tool loop on the question ``q``."""
    agent, client = adder(), oj.client()

    async def program(question):
        return await tool_loop(client, question)

    return run(oj.program(program, components=[agent]))


def test_an_agent_that_is_already_there_is_a_program():
    trace, requests = expected()
    assert trace.outputs == {"output": "It is 2."}
    first, second = trace.calls
    assert thaw(first.inputs["messages"]) == begin("q")
    assert [tool["name"] for tool in first.inputs["tools"]] == ["add"]
    assert thaw(first.outputs) == {
        "text": "",
        "calls": [{"name": "add", "arguments": {"x": 1}}],
        "ids": [first.outputs["ids"][0]],
        "finish": "tool_calls",
    }
    assert thaw(second.inputs["messages"][2:]) == [
        {"role": "assistant", "content": "", "calls": [{"id": "call_1", "name": "add", "arguments": {"x": 1}}]},
        {"role": "tool", "content": "2", "call_id": "call_1"},
    ]
    assert second.outputs["text"] == "It is 2." and second.outputs["finish"] == "stop"
    asked = requests[1]
    assert [(one.role, one.content) for one in asked.messages] == [
        ("system", "Use the tool."),
        ("user", "q"),
        ("assistant", ""),
        ("tool", "2"),
    ]
    assert asked.messages[2].calls[0].written == '{"x": 1}' and asked.tools[0].name == "add"


@pytest.mark.parametrize("ask", [by_chat, by_streamed_chat, by_responses, by_streamed_responses])
def test_every_wire_gives_the_same_record(ask):
    client = oj.client()

    async def program(question):
        return await ask(client, question)

    trace, _ = run(oj.program(program, components=[adder()]))
    assert trace.outputs == {"output": "It is 2."}
    assert record(trace) == record(expected()[0])


def test_a_plain_program_and_threads_that_know_their_run():
    client = oj.client(sync=True)

    def program(question):
        return plain_tool_loop(client, question)

    async def threads(question):
        return await asyncio.to_thread(plain_tool_loop, client, question)

    for one in (program, threads):
        trace, _ = run(oj.program(one, components=[adder()]))
        assert trace.outputs == {"output": "It is 2."} and record(trace) == record(expected()[0])


def test_a_thread_that_does_not_know_its_run_belongs_to_the_only_one():
    client = oj.client(sync=True)

    def program(question):
        answers = []
        thread = threading.Thread(target=lambda: answers.append(plain_tool_loop(client, question)))
        thread.start()
        thread.join()
        return answers[0]

    trace, _ = run(oj.program(program, components=[adder()]))
    assert trace.outputs == {"output": "It is 2."} and record(trace) == record(expected()[0])


class Sum(pydantic.BaseModel):
    total: int


def test_forms_of_answers_stop_texts_and_limits_are_kept_and_sampling_is_the_runs():
    client = oj.client()

    async def program(question):
        answer = await client.chat.completions.parse(
            model="adder", messages=begin(question), response_format=Sum, temperature=0.3, max_tokens=9, stop=["\n\n"]
        )
        response = await client.responses.parse(model="adder", input=question, text_format=Sum, max_output_tokens=7)
        return [answer.choices[0].message.parsed.total, response.output_parsed.total]

    trace, requests = run(oj.program(program, components=[adder()]), lambda request: '{"total": 3}')
    assert trace.outputs == {"output": (3, 3)}
    assert trace.calls[0].inputs["settings"] == {"max_tokens": 9, "temperature": 0.3, "stop": ("\n\n",)}
    assert [(one.temperature, one.max_tokens, one.stop) for one in requests] == [(0.0, 9, ("\n\n",)), (0.0, 7, ())]
    assert requests[0].schema["properties"]["total"]["type"] == "integer"
    assert requests[0].messages[0].content.startswith("Use the tool.\n\nAnswer with JSON of this schema")


def test_a_tuned_prompt_stands_in_the_place_of_the_agents_own_or_before_it():
    def asked(agent, prompt=None):
        client = oj.client()

        async def program(question):
            return (await client.responses.create(model="adder", instructions=SYSTEM, input=question)).output_text

        declared = oj.program(program, components=[agent])
        if prompt is not None:
            agent = oj.agent("adder", prompt.instruction, demos=prompt.demos, keep=agent._keep)
            declared = oj.program(program, components=[agent])
        _, requests = run(declared, lambda request: "Yes.")
        return [(one.role, one.content) for one in requests[0].messages]

    assert asked(oj.agent("adder")) == [("system", SYSTEM), ("user", "q")]
    assert asked(oj.agent("adder"), Prompt("Tuned.")) == [("system", "Tuned."), ("user", "q")]
    assert asked(oj.agent("adder", keep=True), Prompt("Tuned."))[0] == ("system", f"Tuned.\n\n{SYSTEM}")
    plain = oj.Demo({"messages": begin("one")}, {"text": "1"})
    calls = oj.Demo({"messages": begin("two")}, {"text": "", "calls": [{"name": "add", "arguments": {"x": 2}}]})
    shown = asked(oj.agent("adder"), Prompt("Tuned.", (plain, calls)))
    assert [role for role, _ in shown] == ["system", "user", "assistant", "user", "assistant", "tool", "user"]
    assert shown[1:3] == [("user", "one"), ("assistant", "1")] and shown[3] == ("user", "two")


def test_a_model_that_continues_texts_reads_the_conversation_as_one():
    client = oj.client()

    async def program(question):
        return await tool_loop(client, question)

    def answer(request):
        [message] = request.messages
        assert message.role == "text" and message.content.endswith("\n\nAssistant:")
        if "Result of add: " in message.content:
            return "It is 2."
        assert '{"name": {"const": "add"}' not in message.content.split("User:")[-1]
        return '{"text": "", "calls": [{"name": "add", "arguments": {"x": 1}}]}'

    trace, requests = run(oj.program(program, components=[adder()]), answer, style="text")
    assert trace.outputs == {"output": "It is 2."}
    assert "User: q\n\nAssistant: {" in requests[1].messages[0].content
    assert "User: Result of add: 2\n\nAssistant:" in requests[1].messages[0].content


def test_images_are_recorded_and_sent():
    client, url = oj.client(), "data:image/png;base64,iVBORw0KGgo="

    async def program(question):
        parts = [{"type": "text", "text": "What is it? "}, {"type": "image_url", "image_url": {"url": url}}]
        answer = await client.chat.completions.create(model="adder", messages=[{"role": "user", "content": parts}])
        return answer.choices[0].message.content

    trace, requests = run(oj.program(program, components=[adder()]), lambda request: "A dot.")
    assert trace.calls[0].inputs["messages"][0]["content"] == "What is it? [image]"
    assert requests[0].messages[-1].images == (url,)


def refused(body, agents=(), wire="chat/completions", **headers):
    """The error of a request in a run: status, code and message."""
    client = oj.client()
    seen = []

    async def program(question):
        try:
            await client.post(f"/{wire}", body=body, cast_to=object, options={"headers": headers})
        except openai.APIStatusError as error:
            seen.append((error.status_code, error.body["code"], error.body["message"]))
        return "done"

    components = list(agents) or [adder()]
    trace, requests = run(oj.program(program, components=components), lambda request: "Yes.")
    assert trace.outcome is Outcome.OK
    assert seen or requests
    return seen[0] if seen else requests[0].role


USER = [{"role": "user", "content": "Hi."}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": ""}, "model must be a text, got ''"),
        ({"messages": []}, "messages must be a list of at least one message"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "role must be system, developer, user, assistant or tool"),
        ({"messages": [{"role": "user", "content": 5}]}, r"content must be a text or a list of parts, got 5"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "a part that is a text or an image"),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]}, "name of a call in an earlier turn"),
        ({"tools": [{"type": "web_search"}]}, "those that OpenAI runs are not had here"),
        ({"tools": [*TOOLS, *TOOLS]}, "two tools have the name 'add'"),
        ({"tool_choice": "required"}, "tool_choice must be auto, none, required; there are no tools"),
        ({"n": 3}, "n = 3 is not supported by this server: a request has one answer"),
        ({"logprobs": True}, "logprobs = True is not supported"),
        ({"audio": {"voice": "x"}}, "audio = .* is not supported"),
        ({"max_tokens": 0}, "max_tokens must be a number of at least 1"),
        ({"temperature": 10**400}, "temperature must be a number"),
        ({"seed": 10**400}, "seed must be a whole number"),
        ({"response_format": {"type": "json_schema", "json_schema": "x"}}, "json_schema with its schema"),
        ({"stop": [1]}, "stop must be a text or a list of texts"),
        ({"response_format": {"type": "xml"}}, "response_format must be of type text, json_object, or json_schema"),
        ({"stream": "yes"}, "stream must be true or false"),
    ],
)
def test_what_is_not_had_is_refused_by_name(change, words):
    status, _, message = refused({"model": "adder", "messages": USER, **change})
    assert status == 400
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(message)


def test_nothing_is_kept_between_responses():
    asked = {"model": "adder", "input": "Hi.", "previous_response_id": "resp_1"}
    status, _, message = refused(asked, wire="responses")
    assert status == 400 and "send the whole conversation as input" in message


def test_an_unknown_agent_is_refused_with_those_that_there_are():
    status, code, message = refused({"model": "gpt-9", "messages": USER})
    assert (status, code) == (404, "model_not_found")
    assert "no agent sends the model 'gpt-9'; there are adder: model 'adder'" in message


def test_agents_that_share_a_model_are_told_apart_by_a_rule_or_refused():
    one = oj.agent("one", sends="gpt", when="You are one")
    two = oj.agent("two", sends="gpt", when={"X-Agent": "two"})
    system = [{"role": "system", "content": "You are one of us."}, *USER]
    assert refused({"model": "gpt", "messages": system}, [one, two]) == "one"
    assert refused({"model": "gpt", "messages": USER}, [one, two], **{"x-agent": "two"}) == "two"
    status, _, message = refused({"model": "gpt", "messages": USER}, [one, two])
    assert status == 404 and "none of them takes it (it has no system message)" in message
    assert "one: model 'gpt', system message begins 'You are one'; two: model 'gpt', header x-agent: two" in message
    status, _, message = refused({"model": "gpt", "messages": system}, [one, two], **{"x-agent": "two"})
    assert status == 404 and "one and two both take it" in message
    rest = oj.agent("rest", sends="gpt")
    assert refused({"model": "gpt", "messages": USER}, [one, two, rest]) == "rest"


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: oj.agent(""), "the name is ''"),
        (lambda: oj.agent("team/clerk"), "give it another, and this model's name by sends='team/clerk'"),
        (lambda: oj.agent("a", None), "the instruction of an agent is None"),
        (lambda: oj.agent("a", when=3), "when is 3, expected the beginning of a system message, or headers"),
        (lambda: oj.agent("a", when={}), "when is {}"),
        (lambda: oj.program(lambda question: "", components=[adder()], timeout=0), "timeout is 0"),
    ],
)
def test_declarations_that_cannot_be_are_refused(declare, words):
    with pytest.raises(DeclarationError, match=words):
        declare()


def test_a_failed_call_is_an_error_that_the_sdk_does_not_repeat():
    client, errors = oj.client(), []

    async def program(question):
        try:
            return await tool_loop(client, question)
        except openai.UnprocessableEntityError as error:
            errors.append(error.body)
            return "failed"

    trace, requests = run(oj.program(program, components=[adder()]), lambda request: '{"calls": 3}')
    assert trace.outputs == {"output": "failed"} and trace.calls[0].outcome is Outcome.PARSE_ERROR
    assert len(requests) == 2 and errors[0]["code"] == "parse_error"  # asked once more, by the component
    assert "adder has no answer" in errors[0]["message"]


def test_a_component_and_a_metric_cannot_ask_for_an_agent():
    client, seen = oj.client(), []

    @oj.component
    async def helper():
        try:
            await tool_loop(client, "q")
        except openai.ConflictError as error:
            seen.append(error.body["message"])
        return 1

    async def program(question):
        return await helper()

    agent = adder()
    system = oj.program(program, components=[agent, helper]).system(judge(client, seen), ("question",), MODEL)
    example = oj.Example("e", {"question": "q"}, {}, "train")
    event_loop.run(system.run(system.default_configuration(), example, 0))
    assert "component 'helper' calls a component" in seen[0]
    assert "a metric asked for an agent" in seen[1]


MODEL = oj.LanguageModel("scripted")


def judge(client, seen):
    async def metric(outputs):
        try:
            await tool_loop(client, "q")
        except openai.ConflictError as error:
            seen.append(error.body["message"])
        return 0.0

    return metric


def test_a_client_that_blocks_is_refused_on_the_event_loop():
    client = oj.client(sync=True)

    async def program(question):
        try:
            return plain_tool_loop(client, question)
        except openai.BadRequestError as error:
            return error.body["message"]

    trace, _ = run(oj.program(program, components=[adder()]))
    assert "call it by asyncio.to_thread" in trace.outputs["output"]


def test_a_program_that_never_ends_is_a_failed_run():
    agent, client = adder(), oj.client(sync=True)

    async def waits(question):
        await asyncio.Event().wait()

    def blocks(question):
        while True:
            plain_tool_loop(client, question)

    for function in (waits, blocks):
        trace, _ = run(oj.program(function, components=[agent], timeout=0.2), adds)
        assert trace.outcome is Outcome.TIMEOUT and trace.score == 0.0
        assert f"the program {function.__name__!r} has no result within 0.2 s" in trace.feedback


@pytest.mark.parametrize("tools", [[], TOOLS])
def test_a_cut_answer_ends_with_length(tools):
    client = oj.client()
    settings = {"tools": tools} if tools else {}

    async def program(question):
        answer = await client.chat.completions.create(model="adder", messages=begin(question), **settings)
        response = await client.responses.create(model="adder", input=question, tools=FLAT_TOOLS if tools else [])
        return f"{answer.choices[0].finish_reason} {response.status}"

    cut = Completion("It is, as far as", Outcome.TRUNCATED, 9, 5)
    trace, _ = run(oj.program(program, components=[adder()]), lambda request: cut)
    assert trace.outputs == {"output": "length incomplete"}


@pytest.mark.parametrize("sync", [False, True])
def test_outside_of_all_runs_agents_answer_as_they_are_declared(sync):
    _agent = oj.agent("speaker", "Say something.", max_tokens=4)
    client = oj.client(oj.LanguageModel("random:0"), sync=sync)

    def ask(model):
        made = client.chat.completions.create(model=model, messages=USER)
        return made if sync else asyncio.run(made)

    answer = ask("speaker").choices[0].message.content
    assert answer and answer == ask("speaker").choices[0].message.content
    with pytest.raises(openai.NotFoundError, match=r"no agent sends the model 'nobody'; there are .*speaker"):
        ask("nobody")


def test_who_speaks_is_recorded_and_sent():
    client = oj.client()

    async def program(question):
        messages = [{"role": "user", "content": question, "name": one} for one in ("ann", "bob")]
        answer = await client.chat.completions.create(model="adder", messages=messages)
        return answer.choices[0].message.content

    trace, requests = run(oj.program(program, components=[adder()]), lambda request: "Yes.")
    assert [turn["name"] for turn in trace.calls[0].inputs["messages"]] == ["ann", "bob"]
    assert [one.name for one in requests[0].messages] == ["", "ann", "bob"]


def test_programs_that_end_at_their_time_limit_end_the_evaluation(tmp_path):
    async def waits(question):
        await asyncio.Event().wait()

    program = oj.program(waits, components=[adder()], timeout=0.05)
    rows = [{"question": str(number)} for number in range(8)]
    with pytest.raises(StopRun, match=r"the program 'waits' has no result within 0\.05 s"):
        oj.evaluate(program, lambda outputs: 1.0, rows, model="random:0", workdir=tmp_path)


def test_a_form_of_answers_without_a_system_message_has_one():
    client = oj.client()

    async def program(question):
        message = [{"role": "user", "content": question}]
        answer = await client.chat.completions.parse(model="adder", messages=message, response_format=Sum)
        return answer.choices[0].message.parsed.total

    _, requests = run(oj.program(program, components=[oj.agent("adder")]), lambda request: '{"total": 3}')
    assert [one.role for one in requests[0].messages] == ["system", "user"]
    assert requests[0].messages[0].content.startswith("Answer with JSON of this schema")
