"""A server that loads, evicts and names adapters as vLLM does, with our engine behind it."""

import asyncio
import contextlib
import json
from pathlib import Path

import httpx2
import jax
import pytest
import tiny
from served import serving, serving_app
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from optimas_jax.checkpoints.peft import write_adapter
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.clients.errors import Unknown
from optimas_jax.llm.clients.openai import OpenAICompleter
from optimas_jax.llm.clients.remote import ServerConfig, ServerError
from optimas_jax.llm.local import LocalCompleter
from optimas_jax.models.backbone import init_lora
from optimas_jax.models.config import LoraConfig

LORA = LoraConfig(rank=4, alpha=8.0)
TEXT, CHAT = (Message("text", "The first"),), (Message("user", "Where is it?"),)


def error(status, message, kind="BadRequestError"):
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)


class Vllm:
    """vLLM's handling of adapters before a server that answers.

    Attributes:
      allowed: whether ``VLLM_ALLOW_RUNTIME_LORA_UPDATING`` is set.
      most_rank: ``--max-lora-rank``.
      loaded: adapters that it names.
      answers_base: a proxy before it sends every request to the base.
      tells: fields of an answer that it changes.
    """

    def __init__(self, behind):
        self.behind, self.allowed, self.most_rank = httpx2.AsyncClient(base_url=behind, timeout=60), True, 16
        self.loaded, self.loads, self.answers_base, self.tells = set(), [], False, {}

    def app(self):
        routes = [
            Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
            Route("/v1/chat/completions", self.answer, methods=["POST"]),
            Route("/v1/completions", self.answer, methods=["POST"]),
        ]
        return Starlette(routes=routes, lifespan=self.lifespan)

    @contextlib.asynccontextmanager
    async def lifespan(self, _):
        async with self.behind:
            yield

    async def load(self, request):
        if not self.allowed:  # the route is not there
            return JSONResponse({"detail": "Not Found"}, 404)
        body = await request.json()
        name, folder = body["lora_name"], Path(body["lora_path"])
        self.loads.append(name)
        if name in self.loaded and not body.get("load_inplace"):
            return error(
                400,
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True.",
                "InvalidUserInput",
            )
        if not (folder / "adapter_config.json").is_file():
            return error(404, f"Loading lora {name} failed: No adapter found for {folder}", "NotFoundError")
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if rank > self.most_rank:
            return error(400, f"LoRA rank {rank} is greater than max_lora_rank {self.most_rank}.")
        loaded = await self.behind.post("/v1/load_lora_adapter", json={**body, "load_inplace": True})
        assert loaded.status_code == 200, loaded.text
        self.loaded.add(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def answer(self, request):
        body = await request.json()
        if body["model"] not in {"base", *self.loaded}:
            return error(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        sent = {**body, "model": "base"} if self.answers_base else body
        answer = (await self.behind.post(request.url.path, json=sent)).json() | self.tells
        if request.url.path.endswith("chat/completions") and "choices" in answer:  # there the prompt's are at the top
            answer["prompt_token_ids"] = next(one.pop("prompt_token_ids", None) for one in answer["choices"])
        return JSONResponse(answer)


@pytest.fixture(scope="module")
def sampler():
    return tiny.sampler()


@pytest.fixture(scope="module")
def adapters(sampler, tmp_path_factory):
    folder, base = tmp_path_factory.mktemp("adapters"), sampler.network.config
    for seed in range(2):
        params = tiny.random_lora(init_lora(base, LORA, jax.random.key(0)), seed)
        write_adapter(folder, base, "random:0", LORA, params)
    return folder


@pytest.fixture
def vllm(sampler):
    with serving(sampler, "base") as behind:
        stub = Vllm(behind)
        with serving_app(stub.app()) as address:
            stub.url = f"{address}/v1"
            yield stub


def asked(completer, *requests):
    async def all_of_them():
        return await asyncio.gather(*map(completer.complete, requests))

    return asyncio.run(all_of_them())


def request(adapter="", messages=TEXT, model="openai:base"):
    return CompletionRequest(model, messages, max_tokens=8, tokens=True, adapter=adapter)


def names(adapters):
    return sorted(path.name for path in adapters.iterdir())


@pytest.mark.parametrize("messages", [TEXT, CHAT], ids=["completions", "chat"])
def test_adapters_are_loaded_once_and_answer_with_their_tokens(vllm, sampler, adapters, messages):
    completer = OpenAICompleter(ServerConfig(vllm.url), adapters)
    requests = [request(name, messages) for name in ["", *names(adapters)]]
    answers = asked(completer, *requests, *requests)
    local = LocalCompleter("openai:base", lambda: sampler, adapters)
    expected = asked(local, *requests)
    local.close()
    assert [answer.tokens.ids for answer in answers] == [one.tokens.ids for one in expected] * 2
    assert [answer.tokens.prompt_ids for answer in answers[:3]] == [one.tokens.prompt_ids for one in expected]
    assert sorted(vllm.loads) == names(adapters)


def test_an_adapter_that_another_client_loaded_is_used(vllm, adapters):
    name = names(adapters)[0]
    for _ in range(2):
        asked(OpenAICompleter(ServerConfig(vllm.url), adapters), request(name))
    assert vllm.loads == [name, name]  # the second time it says that it has it


def test_an_adapter_that_was_evicted_is_loaded_again(vllm, adapters):
    completer, name = OpenAICompleter(ServerConfig(vllm.url), adapters), names(adapters)[0]
    first = asked(completer, request(name))
    vllm.loaded.clear()  # evicted, or the server started anew
    assert asked(completer, request(name))[0].text == first[0].text
    assert vllm.loads == [name, name]


def test_what_stands_against_loading_is_told_with_the_way_out(vllm, adapters, tmp_path):
    completer, name = OpenAICompleter(ServerConfig(vllm.url), adapters), names(adapters)[0]
    vllm.allowed = False
    with pytest.raises(ServerError, match=r"start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        asked(completer, request(name))
    vllm.allowed, vllm.most_rank = True, 2
    with pytest.raises(ServerError, match=r"LoRA rank 4 is greater than max_lora_rank 2"):
        asked(completer, request(name))
    with pytest.raises(ServerError, match=r"No adapter found for .*it must see this folder under the same path"):
        asked(OpenAICompleter(ServerConfig(vllm.url), tmp_path), request(name))


def test_an_unknown_model_is_named(vllm):
    with pytest.raises(Unknown, match=r"The model `other` does not exist.*asked for 'openai:other'"):
        asked(OpenAICompleter(ServerConfig(vllm.url)), request(model="openai:other"))


def test_an_answer_of_another_model_than_the_adapter_is_refused(vllm, adapters):
    """A proxy before the server that sends all to the base: the answer says which model it is of."""
    completer, name = OpenAICompleter(ServerConfig(vllm.url), adapters), names(adapters)[0]
    vllm.answers_base = True
    with pytest.raises(ServerError, match=rf"asked for the adapter {name}, and the answer is of the model 'base'"):
        asked(completer, request(name))


def test_a_server_that_does_not_tell_tokens_is_refused(vllm, adapters):
    vllm.tells = {"choices": [{"index": 0, "text": "x", "finish_reason": "stop", "logprobs": None}]}
    with pytest.raises(ServerError, match=r"return_token_ids and logprobs.*launch/serve.py and vLLM do"):
        asked(OpenAICompleter(ServerConfig(vllm.url), adapters), request(names(adapters)[0]))
