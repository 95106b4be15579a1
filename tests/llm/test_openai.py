"""The client for OpenAI-compatible servers: against our own server over a socket, and against scripted answers."""

import asyncio
import dataclasses
import io
import json
import threading
from typing import Literal

import httpx2
import jax
import numpy as np
import openai
import pytest
import tiny
from rich.console import Console
from runs import run_config
from served import serving
from weights_run import NAME, config, tune_on

from optimas_jax.checkpoints.peft import write_adapter
from optimas_jax.core.schema import ConfigError
from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.engine.pool import Engines
from optimas_jax.llm.attempts import Persistent, Retries, ServerError
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.clients.errors import retry_after
from optimas_jax.llm.clients.openai import OpenAICompleter
from optimas_jax.llm.clients.remote import Remote, ServerConfig
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.forms.answers import AnswerType
from optimas_jax.llm.forms.tools import ReplyType
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.loop.setup.build import build_run
from optimas_jax.models.backbone import init_lora
from optimas_jax.models.config import LoraConfig
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.report.console import ConsoleProgress

CHAT = (Message("system", "Be short."), Message("user", "Where is it?"))
TEXT = (Message("text", "The first thing that"),)
HASTY = Retries(attempts=3, first_wait=0.01)


def request(messages=CHAT, **changes):
    return CompletionRequest(**{"model": "openai:base", "messages": messages, "max_tokens": 8, "seed": 3, **changes})


def complete(completer, *requests):
    persistent = Persistent(completer)

    async def all_of_them():
        return await asyncio.gather(*(persistent.complete(one) for one in requests))

    return asyncio.run(all_of_them())


@pytest.fixture(scope="module")
def sampler():
    return tiny.sampler()


@pytest.fixture(scope="module")
def url(sampler):
    with serving(sampler, "base") as address:
        yield f"{address}/v1"


def local(sampler, adapters=None):
    return LocalCompleter("openai:base", lambda: sampler, adapters)


@pytest.fixture(scope="module")
def adapters(sampler, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    base, lora = sampler.network.config, LoraConfig(rank=4, alpha=8.0)
    for seed in range(2):
        params = tiny.random_lora(init_lora(base, lora, jax.random.key(0)), seed)
        write_adapter(folder, base, "random:0", lora, params)
    return folder


# --- against our own server


@pytest.mark.parametrize("messages", [CHAT, TEXT], ids=["chat", "text"])
def test_the_answer_is_that_of_the_engine_itself(url, sampler, messages):
    token_request = request(messages, tokens=True)
    [answer] = complete(OpenAICompleter(ServerConfig(url)), token_request)
    [expected] = complete(local(sampler), token_request)
    assert (answer.text, answer.outcome) == (expected.text, expected.outcome)
    assert (answer.prompt_tokens, answer.completion_tokens) == (expected.prompt_tokens, expected.completion_tokens)
    assert (answer.tokens.prompt_ids, answer.tokens.ids) == (expected.tokens.prompt_ids, expected.tokens.ids)
    np.testing.assert_allclose(answer.tokens.logprobs, expected.tokens.logprobs, atol=1e-5)


def test_seeds_and_stops_arrive(url):
    completer = OpenAICompleter(ServerConfig(url))
    hot = [request(TEXT, temperature=1.0, seed=seed, max_tokens=12) for seed in (1, 1, 2)]
    first, again, other = complete(completer, *hot)
    assert first.text == again.text != other.text
    stop = first.text.strip()[2:4]
    [cut] = complete(completer, dataclasses.replace(hot[0], stop=(stop,)))
    assert stop not in cut.text and first.text.startswith(cut.text)


def test_adapters_are_loaded_by_their_digests_and_again_after_a_restart(url, sampler, adapters):
    completer = OpenAICompleter(ServerConfig(url), adapters)
    names = sorted(path.name for path in adapters.iterdir())
    requests = [request(TEXT, adapter=name) for name in ("", *names)]
    completions = complete(completer, *requests)
    expected = complete(local(sampler, adapters), *requests)
    assert [one.text for one in completions] == [one.text for one in expected]
    assert len({one.text for one in completions}) == 3
    sampler.adapters.unload(names[0])  # as a server that was started anew
    assert complete(completer, requests[1])[0].text == completions[1].text
    # Another client, to which the server says that it has them already.
    assert complete(OpenAICompleter(ServerConfig(url), adapters), requests[2])[0].text == completions[2].text


def test_an_adapter_that_is_not_there_is_named(url, tmp_path):
    with pytest.raises(ServerError, match=r"cannot load the adapter .*no-such"):
        complete(OpenAICompleter(ServerConfig(url), tmp_path), request(adapter="no-such"))
    with pytest.raises(ServerError, match="no folder of adapters"):
        complete(OpenAICompleter(ServerConfig(url)), request(adapter="no-such"))


def test_a_request_that_cannot_be_served_stops_at_once(url):
    with pytest.raises(ServerError, match="no model 'other'"):
        complete(OpenAICompleter(ServerConfig(url)), request(model="openai:other"))
    with pytest.raises(ServerError, match="shorten the prompt or lower max_tokens"):
        complete(OpenAICompleter(ServerConfig(url)), request(max_tokens=10_000))


def tuned_through(address, folder):
    """Two updates on rollouts that a server answers, and what was said."""
    served = LanguageModel("openai:base", style="text", temperature=1.0, max_tokens=8)
    base = config()
    remote = dataclasses.replace(
        base,
        system=dataclasses.replace(base.system, language_model=served),
        proposer=served,
        server=ServerConfig(address),
        prices="openai:base=0/0",
        policy=dataclasses.replace(base.policy, model="random:0", updates=2, validate_every=1),
    )
    said = io.StringIO()
    run = build_run(remote, folder, ConsoleProgress(console=Console(file=said, width=200)))
    reward, _ = run.device.rewards.trainer.train(run.host.system, None, [], [], epochs=1, seed=0)
    examples = run.host.splits["train"]
    traces = [asyncio.run(run.host.system.run(run.host.system.default_configuration(), one, 0)) for one in examples]
    value = run.host.system.default_configuration()[NAME]
    assert tune_on(run, reward, value, list(zip(examples, traces, strict=True))).updates == 2
    run.tape.close()
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == "update"], said.getvalue()


@pytest.mark.long
def test_weights_are_tuned_through_a_server(tmp_path):
    """Rollouts are answered over the network by what updates have just written."""
    with serving(Engines(MeshConfig(data=1), ConsoleProgress(quiet=True)).sampler("random:0"), "base") as address:
        updates, said = tuned_through(f"{address}/v1", tmp_path)
    assert all(update["served_difference"] < 1e-4 for update in updates) and "warning" not in said


@pytest.mark.long
def test_a_server_of_another_model_is_noticed(url, tmp_path):
    updates, said = tuned_through(url, tmp_path)
    assert updates[0]["served_difference"] > 0.5
    assert "the model that answers and the one that is tuned differ" in said


def test_which_weights_a_served_model_has_must_be_said(tmp_path):
    base = config()
    served = LanguageModel("openai:base", style="text", max_tokens=8)
    changes = {"proposer": served, "server": ServerConfig("http://127.0.0.1:1/v1")}
    remote = dataclasses.replace(base, system=dataclasses.replace(base.system, language_model=served), **changes)
    with pytest.raises(ConfigError, match=r"set config.policy.model to the spec"):
        build_run(remote, tmp_path, ConsoleProgress(quiet=True))
    elsewhere = dataclasses.replace(run_config(), proposer=served)
    with pytest.raises(ConfigError, match=r"config.server.base_url"):
        build_run(elsewhere, tmp_path, ConsoleProgress(quiet=True))


def calc(operation: Literal["add", "double"], x: float) -> float:
    """Computes with numbers."""
    return 2 * x


@pytest.mark.parametrize("messages", [CHAT, TEXT])
def test_our_server_answers_by_schema_and_as_the_engine_does(url, sampler, messages):
    point = AnswerType("p", {"x": int, "tags": list[str]})
    asked = request(messages, schema=point.schema, temperature=1.0, max_tokens=50)
    [completion] = complete(OpenAICompleter(ServerConfig(url)), asked)
    [here] = complete(local(sampler), asked)
    assert point.read(completion.text) and (here.text[0], here.outcome) == ("{", completion.outcome)


def test_tools_are_asked_of_our_server_as_replies_by_schema(url, sampler):
    """It has no form of its own for tools: what the engine is asked here and there is the same."""
    replies, said = ReplyType((calc,)), []
    asked = request(schema=replies.schema, tools=replies.tools, temperature=1.0, max_tokens=90)
    [completion] = complete(OpenAICompleter(ServerConfig(url), say=said.append), asked)
    [here] = complete(local(sampler), asked)
    for answer in (completion, here):
        assert replies.restore(replies.read(answer.text)) and answer.outcome is Outcome.OK
    assert here.prompt_tokens == completion.prompt_tokens and "does not take the form tools" in said[0]


# --- what servers do wrong

ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "base",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Paris"}}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}


def scripted(*answers, say=lambda text: None):
    """A completer whose server gives one answer after another: a body, a status with headers, or an error."""
    rest, seen = list(answers), []

    def handle(request):
        seen.append(json.loads(request.content))
        answer = rest.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, headers, body = answer if isinstance(answer, tuple) else (200, {}, answer)
        return httpx2.Response(status, headers=headers, content=json.dumps(body))

    client = httpx2.Client(transport=httpx2.MockTransport(handle))
    return OpenAICompleter(ServerConfig("http://server/v1", retries=HASTY), http_client=client, say=say), seen


def test_connections_follow_the_calls_in_flight():
    count = 150
    together = threading.Barrier(count)  # opens when all requests are at the server

    def handle(asked):
        together.wait(timeout=60)
        return httpx2.Response(200, json=ANSWER)

    completer = OpenAICompleter(
        ServerConfig("http://server/v1", retries=HASTY),
        http_client=httpx2.Client(transport=httpx2.MockTransport(handle)),
    )
    assert len(complete(completer, *[request(max_tokens=8 + i) for i in range(count)])) == count


def test_each_thread_has_a_connection_of_its_own(monkeypatch):
    made = []

    class Client:
        def __init__(self, **settings):
            made.append(settings["http_client"])

        def close(self):
            pass

    remote = Remote("openai", "", ServerConfig("http://server/v1"), {}, print)
    threads = [threading.Thread(target=lambda: [remote.client(openai, Client, None) for _ in range(3)]) for _ in "ab"]
    for thread in threads:
        thread.start()
        thread.join()
    assert len(made) == 2 and made[0] is not made[1]
    for client in made:
        client.close()


def with_choice(**changes):
    return {**ANSWER, "choices": [{**ANSWER["choices"][0], **changes}]}


@pytest.mark.parametrize("arguments", ["", None, "{}"])
def test_a_tool_without_arguments_may_be_called_with_an_empty_text(arguments):
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": arguments}}
    completer, _ = scripted(with_choice(message={"role": "assistant", "content": None, "tool_calls": [call]}))

    def now():
        """The time."""

    replies = ReplyType((now,))
    [completion] = complete(completer, request(schema=replies.schema, tools=replies.tools))
    assert replies.read(completion.text) == {"text": "", "calls": [{"name": "now", "arguments": {}}]}


def test_a_fault_that_passes_is_asked_again():
    fault = {"error": {"message": "busy"}}
    completer, seen = scripted((503, {}, fault), (429, {"retry-after": "0.01"}, fault), ANSWER)
    [completion] = complete(completer, request())
    assert completion.text == "Paris" and completion.outcome is Outcome.OK and len(seen) == 3
    assert seen[0]["max_tokens"] == 8 and "seed" not in seen[0]  # greedy


def test_a_server_that_dies_stops_the_run_and_says_how_to_go_on():
    completer, seen = scripted(*[httpx2.ConnectError("connection refused")] * 3)
    with pytest.raises(StopRun, match=r"does not answer \(.*connection refused.*3 attempts.*same command again"):
        complete(completer, request())
    assert len(seen) == 3


def test_a_key_that_is_refused_is_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    completer, seen = scripted((401, {}, {"error": {"message": "no"}}))
    with pytest.raises(ServerError, match="OPENAI_API_KEY") as raised:
        complete(completer, request())
    assert "sk-secret" not in str(raised.value) and raised.value.__cause__ is None and len(seen) == 1


@pytest.mark.parametrize(
    ("answer", "outcome", "text"),
    [
        (with_choice(finish_reason="length"), Outcome.TRUNCATED, "Paris"),
        (with_choice(finish_reason="content_filter"), Outcome.REFUSED, "Paris"),
        (with_choice(message={"role": "assistant", "content": None, "refusal": "No."}), Outcome.REFUSED, "No."),
        (with_choice(message={"role": "assistant", "content": None}), Outcome.OK, ""),
    ],
)
def test_how_an_answer_ended_is_its_outcome(answer, outcome, text):
    [completion] = complete(scripted(answer)[0], request())
    assert (completion.outcome, completion.text) == (outcome, text)


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ([{"type": "text", "text": "Par"}, {"type": "text", "text": "is"}], "Paris", ""),
        ([{"type": "thinking", "text": "Hm."}, {"type": "text", "text": "Paris"}], "Paris", "Hm."),
        ("<think>\nHm.\n</think>\n\nParis", "Paris", "Hm."),
        ("Hm.\n</think>\nParis", "Paris", "Hm."),  # opened by the template
        ("<think>Hm. Is it", "", "Hm. Is it"),
        ("a \ud83d b\0c", "a \ufffd b\ufffdc", ""),
        ("x < y, </b>", "x < y, </b>", ""),
    ],
)
def test_an_answer_is_valid_text_without_what_was_thought_before(content, text, reasoning):
    [completion] = complete(scripted(with_choice(message={"role": "assistant", "content": content}))[0], request())
    assert (completion.text, completion.reasoning, completion.outcome) == (text, reasoning, Outcome.OK)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_in_a_field_of_its_own_is_kept(name):
    message = {"role": "assistant", "content": "Paris", name: "Hm."}
    [completion] = complete(scripted(with_choice(message=message))[0], request())
    assert (completion.text, completion.reasoning) == ("Paris", "Hm.")


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        {"prompt_tokens": 5},
        *({"prompt_tokens": 5, "completion_tokens": n} for n in (-1, "2", True, 1e400)),
    ],
)
def test_an_answer_without_usage_is_booked_at_its_worst_case(usage):
    said = []
    completer, _ = scripted({**ANSWER, "usage": usage}, {**ANSWER, "usage": usage}, say=said.append)
    for completion in complete(completer, request(), request(seed=4)):
        most = request().most()
        assert completion.estimated and completion.usage.tokens == most.tokens
    assert len(said) == 1 and "booked at its worst case" in said[0]


@pytest.mark.parametrize("refused", [(400, {}, {"error": {"message": "Unsupported parameter: 'max_tokens'"}}), None])
def test_the_name_of_the_limit_of_an_answer_is_found_out_once(refused):
    long = {**ANSWER, "usage": {"prompt_tokens": 5, "completion_tokens": 99}}
    completer, seen = scripted(*([refused] if refused else [long]), ANSWER, ANSWER)
    for seed in range(2 + (not refused)):
        complete(completer, request(seed=seed))
    assert [sorted({"max_tokens", "max_completion_tokens"} & {*body}) for body in seen] == [
        ["max_tokens"],
        ["max_completion_tokens"],
        ["max_completion_tokens"],
    ]


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"message": "overloaded", "code": 502}},
        [],
        "text",
        {"choices": None},
        {"choices": [{}]},
        {"choices": [{"message": {"content": 3}}]},
        {"choices": [{"message": {"content": [3]}}]},
        {"choices": [{"message": {"content": {"text": "a"}}}]},
        {"choices": [{"message": {"content": "a", "tool_calls": [1]}}]},
        {"choices": "a"},
    ],
)
def test_what_is_no_answer_is_asked_again(answer):
    completer, seen = scripted(answer, answer, ANSWER)
    [completion] = complete(completer, request())
    assert completion.text == "Paris" and len(seen) == 3


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"\xff\xfe{", b""])
def test_a_body_that_no_parser_takes_is_a_fault(content):
    rest = [httpx2.Response(200, content=content), httpx2.Response(200, json=ANSWER)]
    client = httpx2.Client(transport=httpx2.MockTransport(lambda asked: rest.pop(0)))
    completer = OpenAICompleter(ServerConfig("http://server/v1", retries=HASTY), http_client=client)
    [completion] = complete(completer, request())
    assert completion.text == "Paris"


@pytest.mark.parametrize(
    ("answer", "changes", "message"),
    [
        ({"hello": 1}, {}, r"cannot be read \(KeyError: 'choices'"),
        ({**ANSWER, "choices": []}, {}, r"cannot be read \(IndexError"),
        (ANSWER, {"tokens": True}, "the server does not tell"),
    ],
)
def test_an_answer_that_cannot_be_used_is_shown(answer, changes, message):
    with pytest.raises(ServerError, match=message):
        complete(scripted(*[answer] * 3)[0], request(**changes))


# --- waiting


def test_waits_grow_and_honour_what_the_server_asks():
    retries = Retries(first_wait=1.0, longest_wait=5.0)
    assert [retries.wait(n, 0.0, jitter=1.0) for n in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, 5.0]
    assert retries.wait(1, 0.0, jitter=0.0) == 0.5
    assert retries.wait(1, 30.0, jitter=1.0) == 30.0
    assert retries.wait(1, 1e12, jitter=1.0) == retries.wait(2000, float("inf"), jitter=1.0) == 300.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2.5", 2.5), ("inf", float("inf")), ("-3", 0.0), ("nan", 0.0), ("soon", 0.0), ("Thu, 99 Foo 2099", 0.0), ("", 0)],
)
def test_what_a_server_asks_to_wait_is_read_or_ignored(text, seconds):
    assert retry_after({"retry-after": text} if text else {}) == seconds
