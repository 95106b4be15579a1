"""Agents in other processes: Python, curl and Node over HTTP, many runs at once, and what is refused."""

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest
from fakes import ScriptedCompleter
from tool_agents import TOOLS, adder, adds, begin, record, run, run_all, system_of, tool_loop

import optimas_jax as oj
from optimas_jax.core.program import ProgramError
from optimas_jax.core.running import event_loop
from optimas_jax.core.running.execution import Job, run_many
from optimas_jax.core.types import Example, Outcome, StopRun

AGENT = str(Path(__file__).parents[1] / "outside_agent.py")
QUESTIONS = ["q" * (number % 7 + 1) + str(number) for number in range(32)]


async def start(*command, **variables):
    """What a process prints."""
    process = await asyncio.create_subprocess_exec(
        *command, env={"PATH": "/usr/bin:/bin", **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(err.decode())
    return out.decode().strip()


async def outside(question):
    return await start(sys.executable, AGENT, question, OPENAI_BASE_URL=oj.base_url())


async def outside_in_threads(question):
    return await start(sys.executable, AGENT, question, "--parallel", "3", OPENAI_BASE_URL=oj.base_url())


async def inside(question):
    return await tool_loop(CLIENT, question)


CLIENT = oj.client()


def program(function, **settings):
    return oj.program(function, components=[adder()], **settings)


def test_an_agent_in_another_process_gives_the_record_of_one_in_this():
    trace, _ = run(program(outside))
    assert trace.outputs == {"output": "It is 2."}
    assert record(trace) == record(run(program(inside))[0])


def test_thirty_two_runs_at_once_give_the_records_of_one_at_a_time():
    at_once = run_all(program(outside), QUESTIONS, 32, delay=0.05)
    assert [record(one) for one in at_once[:4]] == [record(one) for one in run_all(program(outside), QUESTIONS[:4], 1)]
    for question, trace in zip(QUESTIONS, at_once, strict=True):
        assert trace.outcome is Outcome.OK and trace.outputs["output"] == f"It is {len(question) + 1}."
        assert [call.occurrence for call in trace.calls] == [0, 1]
        assert all(call.inputs["messages"][1]["content"] == question for call in trace.calls)


class Together(ScriptedCompleter):
    """Answers the first requests of a run's three threads when all are there, in an order of their own."""

    def __init__(self, seed):
        super().__init__(adds)
        self._rng, self._waiting = random.Random(seed), {}

    async def complete(self, request):
        question = request.messages[1].content
        if len(request.messages) == 2:
            waiting = self._waiting.setdefault(question.rstrip("x"), [])
            mine = asyncio.Event()
            waiting.append(mine)
            if len(waiting) == 3:
                for event in self._rng.sample(waiting, 3):
                    event.set()
            await mine.wait()
        return await super().complete(request)


def test_the_order_of_a_record_does_not_depend_on_which_thread_of_another_process_is_faster():
    questions, records = QUESTIONS[:8], []
    for seed, concurrency in ((0, 1), (1, 8), (2, 8)):
        system, _ = system_of(program(outside_in_threads))
        examples = [Example(one, {"question": one}, {}, "train") for one in questions]
        jobs = [Job(system.default_configuration(), one, 0) for one in examples]
        traces = run_many(system.using(Together(seed)), jobs, concurrency=concurrency)
        records.append([record(trace) for trace in traces])
        assert all(trace.outcome is Outcome.OK and len(trace.calls) == 6 for trace in traces)
    assert records[0] == records[1] == records[2]


def test_another_answer_is_followed_to_its_end_through_another_process():
    system, model = system_of(program(outside))
    example, configuration = Example("e", {"question": "q"}, {}, "train"), system.default_configuration()
    trace = event_loop.run(system.run(configuration, example, 0))
    again = event_loop.run(system.run(configuration, example, 0, system.kept(trace)))
    assert record(again) == record(trace) and len(model.requests) == 2
    outputs = {"text": "", "calls": [{"name": "add", "arguments": {"x": 40}}]}
    followed = event_loop.run(system.run(configuration, example, 0, system.followed(trace, {0: outputs}, 0)))
    assert followed.outputs == {"output": "It is 41."} and len(model.requests) == 3


SDK_AGENT = """
import json, openai, sys
client, question, tools, parts = openai.OpenAI(), sys.argv[1], json.loads(sys.argv[2]), []
messages = [{"role": "user", "content": question}]
while True:
    with client.chat.completions.stream(model="adder", messages=messages, tools=tools) as stream:
        for event in stream:
            if event.type == "content.delta":
                parts.append(event.delta)
        message = stream.get_final_completion().choices[0].message
    if not message.tool_calls:
        break
    [call] = message.tool_calls
    asked = {"name": call.function.name, "arguments": call.function.arguments}
    messages += [
        {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": asked}]},
        {"role": "tool", "tool_call_id": call.id, "content": str(json.loads(call.function.arguments)["x"] + 1)},
    ]
with client.responses.stream(model="adder", input="".join(parts)) as stream:
    events = [event.type for event in stream]
    print("".join(parts), events[-1], stream.get_final_response().output_text, [one.id for one in client.models.list()])
"""
STRICT_TOOLS = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]


def test_the_sdk_in_another_process_streams_and_has_tools():
    def answer(request):
        return "Told." if request.messages[-1].content.startswith("It is") else adds(request)

    async def sdk(question):
        site = ":".join(sys.path)
        variables = {"OPENAI_BASE_URL": oj.base_url(), "OPENAI_API_KEY": "none", "PYTHONPATH": site}
        return await start(sys.executable, "-c", SDK_AGENT, question, json.dumps(STRICT_TOOLS), **variables)

    trace, _ = run(program(sdk), answer)
    assert trace.feedback == "" and trace.outputs == {"output": "It is 2. response.completed Told. ['adder']"}
    assert len(trace.calls) == 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_streams_with_tools():
    async def curl(question):
        body = json.dumps({"model": "adder", "messages": begin(question), "tools": TOOLS, "stream": True})
        url = f"{oj.base_url()}/chat/completions"
        return await start("curl", "-sSN", url, "-H", "content-type: application/json", "-d", body)

    trace, _ = run(program(curl))
    lines = [line.removeprefix("data: ") for line in trace.outputs["output"].split("\n") if line]
    assert lines[-1] == "[DONE]"
    deltas = [json.loads(line)["choices"][0] for line in lines[:-1]]
    written = "".join(call["function"]["arguments"] for one in deltas for call in one["delta"].get("tool_calls", ()))
    assert json.loads(written) == {"x": 1} and deltas[-1]["finish_reason"] == "tool_calls"


NODE_AGENT = """
const [question, tools] = [process.argv[1], JSON.parse(process.argv[2])];
const messages = [{role: "user", content: question}];
for (;;) {
  const response = await fetch(`${process.env.OPENAI_BASE_URL}/chat/completions`, {
    method: "POST", headers: {"content-type": "application/json"},
    body: JSON.stringify({model: "adder", messages, tools, stream: true}),
  });
  let text = "", calls = [];
  for (const line of (await response.text()).split("\\n")) {
    if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
    const delta = JSON.parse(line.slice(6)).choices[0].delta;
    text += delta.content ?? "";
    for (const call of delta.tool_calls ?? []) {
      calls[call.index] ??= {id: call.id, type: "function", function: {name: call.function.name, arguments: ""}};
      calls[call.index].function.arguments += call.function.arguments;
    }
  }
  if (!calls.length) { console.log(text); break; }
  messages.push({role: "assistant", content: text, tool_calls: calls});
  for (const call of calls)
    messages.push({role: "tool", tool_call_id: call.id, content: `${JSON.parse(call.function.arguments).x + 1}`});
}
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_javascript_streams_with_tools():
    async def node(question):
        command = ("node", "--input-type=module", "-e", NODE_AGENT, question, json.dumps(TOOLS))
        return await start(*command, OPENAI_BASE_URL=oj.base_url())

    trace, _ = run(program(node))
    assert trace.feedback == "" and trace.outputs == {"output": "It is 2."}


def post(url, body, key=""):
    """(status, error) of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            assert error.headers["x-should-retry"] == "false" or error.code in (405, 400)
            return error.code, json.load(error)["error"]


BODY = {"model": "adder", "messages": begin("q")}


def test_a_key_tells_the_run_where_the_address_is_fixed():
    async def keyed(question):
        return await start(sys.executable, AGENT, question, OPENAI_BASE_URL=fixed, OPENAI_API_KEY=oj.api_key())

    with oj.proxy() as fixed:
        traces = run_all(program(keyed), QUESTIONS[:4], 4)
    assert [len(trace.calls) for trace in traces] == [2] * 4
    assert record(traces[0]) == record(run_all(program(inside), QUESTIONS[:1], 1)[0])


def test_the_key_of_a_run_that_has_ended_is_no_key_of_another():
    keys = []

    async def asks(question):
        keys.append(oj.api_key())
        answers.append(await asyncio.to_thread(post, f"{fixed}/chat/completions", BODY, keys[0]))
        return "done"

    with oj.proxy() as fixed:
        for expected in (200, 410):
            answers = []
            trace, _ = run(program(asks))
            assert [status for status, _ in answers] == [expected]
            assert len(trace.calls) == (expected == 200)
        assert post(f"{fixed}/chat/completions", BODY, keys[0])[0] == 410


def test_a_model_that_is_asked_at_the_own_proxy_is_refused(monkeypatch):
    """It would be asked without end: the answer to each request is another request."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    helper = oj.agent("helper", sends="gpt")
    rows = [{"question": "q", "answer": "a"}]

    @oj.program(components=[helper], alone=True)
    def ask(question):
        client = openai.OpenAI(base_url=fixed)
        with client:
            return client.chat.completions.create(model="gpt", messages=begin(question)).choices[0].message.content

    with oj.proxy() as fixed:
        monkeypatch.setenv("OPENAI_BASE_URL", fixed)
        with pytest.raises(StopRun, match="asked at its own proxy"):
            oj.evaluate(ask, lambda answer: 0.0, rows, model="openai:gpt")


LEFT = """
import contextlib, threading
import optimas_jax as oj

@oj.component(name="slow")
async def slow(question):
    import asyncio
    await asyncio.sleep(60)

agent = oj.agent("adder")

@oj.program(components=[agent, slow])
async def ask(question):
    import asyncio, urllib.request
    body = b'{"model": "adder", "messages": [{"role": "user", "content": "q"}]}'
    request = urllib.request.Request(oj.base_url() + "/chat/completions", body, {"content-type": "application/json"})

    def send():
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request).close()

    threading.Thread(target=send, daemon=True).start()
    asyncio.get_running_loop().create_task(slow(question=question))
    await asyncio.sleep(1)
    return question

oj.evaluate(ask, lambda question: 1.0, [{"question": "q"}], model="openai:gpt")
print("done")
"""


def test_a_process_ends_without_a_word_on_requests_in_flight():
    """Nothing is at the address of the model: the request waits for its next attempt when the process ends."""
    variables = {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "none"}
    done = subprocess.run(
        [sys.executable, "-c", LEFT],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.split()[-1] == "done"
    assert "Traceback" not in done.stderr and "Task was destroyed" not in done.stderr, done.stderr


def test_runs_go_one_at_a_time_where_nothing_tells_them_apart():
    async def fixed_agent(question):
        return await start(sys.executable, AGENT, question, OPENAI_BASE_URL=fixed)

    with oj.proxy() as fixed:
        traces = run_all(program(fixed_agent, alone=True), QUESTIONS[:4], 4)
        assert [record(one) for one in traces] == [record(one) for one in run_all(program(inside), QUESTIONS[:4], 4)]
        failed = run_all(program(fixed_agent), QUESTIONS[:2], 2, delay=0.5)
    assert {trace.outcome for trace in failed} <= {Outcome.CRASHED, Outcome.OK}
    words = [trace.feedback for trace in failed if trace.outcome is Outcome.CRASHED]
    assert not words or "declare optimas_jax.program(alone=True)" in words[0]


def test_what_the_server_refuses():
    addresses, seen = [], {}

    async def asks(question):
        addresses.append(oj.base_url())
        url = f"{addresses[0]}/chat/completions"
        for name, body in {
            "unknown": {**BODY, "model": "nobody"},
            "no JSON": b"{",
            "no object": b"[]",
            "path": BODY,
            "old call": {**BODY, "messages": [*begin("q"), {"role": "assistant", "function_call": {"name": "add"}}]},
            "bias": {**BODY, "logit_bias": {"1": 100}},
        }.items():
            place = f"{addresses[0]}/embeddings" if name == "path" else url
            seen[name] = await asyncio.to_thread(post, place, body)
        return "done"

    run(program(asks))
    assert seen["unknown"][0] == 404 and "there are adder: model 'adder'" in seen["unknown"][1]["message"]
    assert seen["no JSON"][0] == 400 and "the body is not JSON" in seen["no JSON"][1]["message"]
    assert seen["no object"][0] == 400 and "expected an object" in seen["no object"][1]["message"]
    assert seen["path"][0] == 404 and "there are chat/completions, responses, models" in seen["path"][1]["message"]
    assert seen["old call"][0] == 400 and "left out, with the call in tool_calls" in seen["old call"][1]["message"]
    assert seen["bias"][0] == 400 and "logit_bias" in seen["bias"][1]["message"]
    status, error = post(f"{addresses[0]}/chat/completions", BODY)
    assert (status, error["code"]) == (410, "run_ended")
    assert "the run that this request belongs to has ended; no run is in flight" in error["message"]


def test_outside_of_a_run_there_is_no_address_of_one():
    for call in (oj.base_url, oj.api_key):
        with pytest.raises(ProgramError, match="this is outside of a run: call them in the program"):
            call()


@pytest.mark.parametrize("answers", [3, ["openai:gpt"]])
def test_what_cannot_answer_is_refused_at_once(answers):
    for make in (oj.client, oj.proxy):
        with pytest.raises(ValueError, match="give a program of a run"):
            make(answers)


def test_the_folder_of_a_run_is_loaded_first(tmp_path):
    (tmp_path / "best").mkdir()
    with pytest.raises(ValueError, match=r"give optimas_jax\.load"):
        oj.client(str(tmp_path))


def test_a_port_that_is_in_use_is_told_of():
    with (
        oj.proxy() as url,
        pytest.raises(StopRun, match="choose another port"),
        oj.proxy(port=int(url.split(":")[2][:-3])),
    ):
        pass


def test_outside_of_all_runs_the_server_answers_as_agents_are_declared():
    _agent = oj.agent("teller", "Tell.", max_tokens=4)
    with oj.proxy(oj.LanguageModel("random:0")) as url:
        client = openai.OpenAI(base_url=url, api_key="none")
        answer = client.responses.create(model="teller", input="Hi.")
        with client.responses.stream(model="teller", input="Hi.") as stream:
            last = list(stream)[-1]
        assert last.type == "response.incomplete" and last.response.output_text == answer.output_text != ""
        assert "teller" in [one.id for one in client.models.list()]
        assert client.models.retrieve("teller").id == "teller"
        client.close()
