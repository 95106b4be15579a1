import asyncio
import base64

import pytest
import tiny
from api_servers import ApiServers
from fakes import ScriptedCompleter
from served import serving_app

import optimas_jax as oj
from optimas_jax.core.running import event_loop
from optimas_jax.core.types import Example
from optimas_jax.core.values import Prompt
from optimas_jax.llm.base import CompletionRequest, Message, count_prompt
from optimas_jax.llm.clients.anthropic import AnthropicCompleter
from optimas_jax.llm.clients.openai import OpenAICompleter
from optimas_jax.llm.clients.remote import ServerConfig
from optimas_jax.llm.local import EngineError, LocalCompleter
from optimas_jax.rewards.text import text_group

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
DATA = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
WEB = "https://example.org/a.jpg"

look = oj.prompt("What is it?")


@oj.component
def size(image: oj.Image) -> int:
    return len(image.image_url)


async def program(photo):
    image = oj.Image(photo)
    assert await size(image) == len(image.image_url)
    return await look(photo=image, more=[oj.Image(WEB), {"inside": image}], question="Where?")


def run(answer=lambda request: "A house.", configuration=None):
    asked = ScriptedCompleter(answer)
    system = oj.program(program).system(lambda outputs: 0.0, ("photo",), oj.LanguageModel("scripted", max_tokens=8))
    example = Example("e", {"photo": DATA}, {}, "train")
    trace = event_loop.run(system.using(asked).run(configuration or system.default_configuration(), example, 0))
    return system, trace, asked.requests


def test_an_image_is_recorded_with_its_content_and_sent_with_a_mark():
    system, trace, [request] = run()
    recorded = trace.calls[1].inputs["photo"]
    assert recorded == {"image_url": DATA, "sha256": oj.Image(DATA).sha256}
    message = request.messages[-1]
    assert message.content == 'Photo: [image]\nMore: [image]\n{"inside": "[image]"}\nQuestion: Where?'
    assert message.images == (DATA, WEB, DATA)
    group = text_group(system, "look", trace.calls[1].inputs, [trace.calls[1].outputs])
    assert "Photo: [image]" in group.inputs and "base64" not in group.inputs


def test_demonstrations_come_with_their_images():
    demo = oj.Demo({"photo": {"image_url": WEB, "sha256": ""}, "question": "Where?"}, {"look": "Here."})
    _, _, [request] = run(configuration={"look": Prompt("Look.", (demo,))})
    assert [(message.role, len(message.images)) for message in request.messages] == [
        ("system", 0),
        ("user", 1),
        ("assistant", 0),
        ("user", 3),
    ]


def test_images_are_read_from_files_bytes_and_addresses(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    assert oj.Image(tmp_path / "a.png") == oj.Image(str(tmp_path / "a.png")) == oj.Image(PNG)
    assert oj.Image(PNG).image_url == DATA and oj.Image(WEB).image_url == WEB and len(repr(oj.Image(PNG))) < 100
    with pytest.raises(ValueError, match=r"content of 3 bytes begins with b'abc': PNG, JPEG"):
        oj.Image(b"abc")
    with pytest.raises(FileNotFoundError):
        oj.Image(tmp_path / "b.png")


def test_images_are_part_of_the_key_where_there_are_any():
    plain = CompletionRequest("m", (Message("user", "x"),), 8)
    shown = CompletionRequest("m", (Message("user", "x", (WEB,)),), 8)
    assert plain.to_json()["messages"] == [["user", "x"]] and shown.to_json()["messages"] == [["user", "x", [WEB]]]
    assert shown.most().prompt_tokens == plain.most().prompt_tokens + 50_000


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_apis_get_parts_of_a_message(name, monkeypatch):
    monkeypatch.setenv(f"{name.upper()}_API_KEY", "key")
    servers = ApiServers()
    with serving_app(servers.app, log_level="critical") as address:
        make = OpenAICompleter if name == "openai" else AnthropicCompleter
        completer = make(ServerConfig(f"{address}/v1" if name == "openai" else address))
        request = CompletionRequest(f"{name}:m", (Message("user", "Look: [image]", (DATA, WEB)),), 8)
        asyncio.run(completer.complete(request))
    assert not servers.problems
    text, *images = servers.bodies[0]["messages"][-1]["content"]
    assert text == {"type": "text", "text": "Look: [image]"}
    if name == "openai":
        assert [one["image_url"]["url"] for one in images] == [DATA, WEB]
    else:
        inside = {"type": "base64", "media_type": "image/png", "data": DATA.partition(",")[2]}
        assert [one["source"] for one in images] == [inside, {"type": "url", "url": WEB}]


def test_a_local_model_refuses_images_by_name():
    completer = LocalCompleter("random:0", tiny.sampler)
    request = CompletionRequest("random:0", (Message("user", "Look: [image]", (DATA,)),), 8)
    for ask in (lambda: count_prompt(completer, request), lambda: asyncio.run(completer.complete(request))):
        with pytest.raises(EngineError, match="random:0 reads no images: ask a provider's model"):
            ask()
