"""Clients that people use, against a server: python clients_program.py URL. Needs litellm and instructor."""

import json
import sys
from typing import Literal

import instructor
import litellm
import openai
from pydantic import BaseModel

URL = sys.argv[1]
MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Where is it?"}]


class Place(BaseModel):
    country: Literal["France", "Ghana"]
    number: int


def with_litellm():
    settings = {"model": "openai/m", "api_base": URL, "api_key": "none", "messages": MESSAGES, "seed": 1}
    plain = litellm.completion(**settings, max_tokens=8, temperature=0)
    assert plain.choices[0].message.content and plain.usage.completion_tokens
    parts = litellm.completion(**settings, max_tokens=8, temperature=0, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == plain.choices[0].message.content
    logged = litellm.completion(**settings, max_tokens=4, logprobs=True)
    assert len(logged.choices[0].logprobs.content) == logged.usage.completion_tokens
    form = litellm.completion(**settings, max_tokens=80, response_format=Place)
    Place.model_validate_json(form.choices[0].message.content)
    try:
        litellm.completion(**{**settings, "model": "openai/other"}, max_tokens=4)
    except litellm.NotFoundError as error:
        assert "no model 'other'" in str(error)
    else:
        raise AssertionError("an unknown model was answered")


def with_instructor():
    client = instructor.from_openai(openai.OpenAI(base_url=URL, api_key="none"), mode=instructor.Mode.JSON_SCHEMA)
    place = client.chat.completions.create(model="m", messages=MESSAGES, response_model=Place, max_tokens=80, seed=2)
    assert isinstance(place, Place)


def with_openai():
    client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
    assert client.models.retrieve("m").id == "m"
    answer = client.chat.completions.parse(model="m", messages=MESSAGES, response_format=Place, max_tokens=80)
    assert isinstance(answer.choices[0].message.parsed, Place)
    text = client.completions.create(model="m", prompt="The", max_tokens=4, logprobs=0)
    assert len(text.choices[0].logprobs.tokens) == text.usage.completion_tokens


for check in (with_openai, with_litellm, with_instructor):
    check()
print(json.dumps({"litellm": "ok", "instructor": instructor.__version__}))
