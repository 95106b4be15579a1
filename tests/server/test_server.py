"""The server with the official OpenAI client, over a real socket; a tiny random model answers."""

import concurrent.futures
import json

import httpx2
import jax
import numpy as np
import openai
import pytest
import tiny
from served import serving

from optimas_jax.checkpoints.peft import write_adapter
from optimas_jax.engine.sampler import SampleRequest
from optimas_jax.llm.forms.answers import AnswerType
from optimas_jax.models.backbone import init_lora
from optimas_jax.models.config import LoraConfig

LORA = LoraConfig(rank=4, alpha=8.0)
NAMES = ["one", "two", "three", "four"]
MESSAGES = [{"role": "user", "content": "Where is it?"}]


def adapter(base, seed):
    return tiny.random_lora(init_lora(base, LORA, jax.random.key(0)), seed)


@pytest.fixture(scope="module")
def sampler():
    engine = tiny.sampler()
    for seed, name in enumerate(NAMES):
        engine.adapters.load(name, LORA, adapter(engine.network.config, seed))
    return engine


@pytest.fixture(scope="module")
def url(sampler):
    with serving(sampler, "base") as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as openai_client:
        yield openai_client


def ask(client, **changes):
    return client.chat.completions.create(
        **{"model": "base", "messages": MESSAGES, "max_tokens": 12, "temperature": 0.0, **changes}
    )


def expected(sampler, messages=MESSAGES, name="", max_tokens=12):
    prompt = tuple(sampler.tokenizer.encode_chat(messages))
    [sample] = sampler.generate([SampleRequest(prompt, max_tokens, adapter=name)])
    return sample


def text_of(sampler, sample):
    """The answer with the white space before it."""
    return sampler.space_before(sample.ids) + sample.text


def test_models_are_listed(client):
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == ["base", *NAMES]
    assert listed["one"].parent == "base"


POINT = AnswerType("p", {"x": int, "tags": list[str]})
FORMAT = {"type": "json_schema", "json_schema": {"name": "p", "schema": POINT.schema}}


def test_answers_keep_to_a_schema(client):
    for seed in range(3):
        completion = ask(client, response_format=FORMAT, temperature=1.0, seed=seed, max_tokens=40)
        assert POINT.read(completion.choices[0].message.content) and completion.choices[0].finish_reason == "stop"
    parts = ask(client, response_format=FORMAT, temperature=1.0, seed=2, max_tokens=40, stream=True)
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == completion.choices[0].message.content
    text = client.completions.create(
        model="one", prompt="It is", max_tokens=40, seed=0, extra_body={"response_format": {"type": "json_object"}}
    )
    assert isinstance(json.loads(text.choices[0].text), dict)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"type": "grammar"}, "must be of type text, json_object, or json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "p"}}, "must be of type text, json_object, or json_schema"),
        (FORMAT, r"max_tokens is 12, and the smallest answer"),
        ({"type": "json_schema", "json_schema": {"name": "p", "schema": {"type": "x"}}}, "cannot keep to the schema"),
    ],
)
def test_formats_that_cannot_be_kept_to_are_refused(client, wanted, message):
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        ask(client, response_format=wanted)
    assert caught.value.param == "response_format"


@pytest.mark.parametrize("name", ["", "two"])
def test_chat(client, sampler, name):
    completion = ask(client, model=name or "base")
    sample = expected(sampler, name=name)
    assert completion.choices[0].message.content == text_of(sampler, sample)
    assert completion.choices[0].finish_reason == sample.finish
    assert completion.usage.prompt_tokens == len(sampler.tokenizer.encode_chat(MESSAGES))
    assert completion.usage.completion_tokens == len(sample.ids)
    assert completion.model == (name or "base")


def test_log_probabilities(client, sampler):
    content = ask(client, logprobs=True).choices[0].logprobs.content
    sample = expected(sampler)
    np.testing.assert_allclose([one.logprob for one in content], sample.logprobs, atol=1e-4)
    assert [one.token for one in content] == [sampler.tokenizer.decode([token]) for token in sample.ids]


def test_text_completions(client, sampler):
    completion = client.completions.create(
        model="base", prompt=["The first", "Another"], max_tokens=6, temperature=0.0, logprobs=0
    )
    assert [choice.index for choice in completion.choices] == [0, 1]
    for choice, text in zip(completion.choices, ["The first", "Another"], strict=True):
        [sample] = sampler.generate([SampleRequest(tuple(sampler.tokenizer.encode(text)), 6)])
        assert choice.text == text_of(sampler, sample)
        np.testing.assert_allclose(choice.logprobs.token_logprobs, sample.logprobs, atol=1e-4)


def test_only_sampled_tokens_have_log_probabilities(client):
    with pytest.raises(openai.BadRequestError, match="logprobs = 5"):
        client.completions.create(model="base", prompt="A", logprobs=5)


def test_several_answers_with_a_seed(client):
    first = ask(client, n=3, temperature=1.0, seed=5)
    again = ask(client, n=3, temperature=1.0, seed=5)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    assert ask(client, temperature=1.0).choices[0].message.content not in texts


def test_streams_add_up_to_the_answer(client, sampler):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, max_tokens=120))
    *parts, last = chunks
    assert not last.choices
    assert last.usage.completion_tokens == len(expected(sampler, max_tokens=120).ids)
    assert parts[0].choices[0].delta.role == "assistant"
    pieces = [part.choices[0].delta.content or "" for part in parts]
    assert "".join(pieces) == text_of(sampler, expected(sampler, max_tokens=120))
    assert len([piece for piece in pieces if piece]) > 2  # while it is made, not when it is done
    assert parts[-1].choices[0].finish_reason == "length"


def test_text_streams(client):
    parts = list(client.completions.create(model="one", prompt="A", max_tokens=8, temperature=0.0, stream=True))
    whole = client.completions.create(model="one", prompt="A", max_tokens=8, temperature=0.0)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text


@pytest.mark.long
def test_many_clients_with_different_adapters(client, sampler):
    """64 at once, 4 adapters: everybody gets what the adapter alone gives."""

    def one(number):
        messages = [{"role": "user", "content": f"Question {number % 16}"}]
        name = NAMES[number // 16]
        return ask(client, model=name, messages=messages).choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(one, range(64)))
    for number, text in enumerate(answers):
        messages = [{"role": "user", "content": f"Question {number % 16}"}]
        assert text == text_of(sampler, expected(sampler, messages, NAMES[number // 16]))
    assert len(set(answers)) > 32


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model": "other"}, openai.NotFoundError, "no model 'other'; served are base, one"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens must be a number of at least 1"),
        ({"temperature": 3.0}, openai.BadRequestError, "temperature must be a number from 0 to 2"),
        ({"messages": []}, openai.BadRequestError, "at least one message"),
        ({"messages": [{"role": "x", "content": "y"}]}, openai.BadRequestError, r"messages\[0\].role must be"),
        ({"frequency_penalty": 1.0}, openai.BadRequestError, "frequency_penalty = 1.0 is not supported"),
        ({"max_tokens": 10_000_000}, openai.BadRequestError, "shorten the prompt or lower max_tokens"),
        ({"stop": [1]}, openai.BadRequestError, "stop must be a text"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(client, changes, kind, message):
    with pytest.raises(kind, match=message):
        ask(client, **changes)


def test_a_prompt_beyond_the_context(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=[{"role": "user", "content": "word " * 20_000}])
    assert caught.value.code == "context_length_exceeded"


def test_what_is_no_json(url):
    response = httpx2.post(f"{url}/v1/chat/completions", content=b"{")
    assert response.status_code == 400
    assert "not JSON" in response.json()["error"]["message"]
    assert httpx2.post(f"{url}/v1/chat/completions", content=b"[]").status_code == 400
    assert httpx2.get(f"{url}/health").status_code == 200


def test_adapters_come_and_go(url, client, sampler, tmp_path):
    base = sampler.network.config
    folder = tmp_path / write_adapter(tmp_path, base, "random:0", LORA, adapter(base, 9))

    def post(what, **body):
        return httpx2.post(f"{url}/v1/{what}_lora_adapter", json=body)

    assert post("load", lora_name="new", lora_path=str(folder)).status_code == 200
    assert ask(client, model="new").choices[0].message.content == text_of(sampler, expected(sampler, name="new"))
    again = post("load", lora_name="new", lora_path=str(folder))
    assert again.status_code == 400
    assert "already been loaded" in again.json()["error"]["message"]
    assert post("load", lora_name="new", lora_path=str(folder), load_inplace=True).status_code == 200
    assert post("load", lora_name="x", lora_path=str(tmp_path)).json()["error"]["param"] == "lora_path"
    assert post("load", lora_name="x").status_code == 400
    assert post("unload", lora_name="new").status_code == 200
    assert post("unload", lora_name="new").status_code == 404
    with pytest.raises(openai.NotFoundError):
        ask(client, model="new")


def test_a_failing_engine_is_an_error_of_the_server(client, sampler, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(sampler), "sample", fails)
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        ask(client, messages=[{"role": "user", "content": "something new"}])
    with pytest.raises(openai.APIError, match="out of memory"):
        list(ask(client, stream=True))
