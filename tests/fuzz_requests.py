"""Random requests for a server, most of them nearly right, and what every answer to one must be."""

import concurrent.futures
import json
import random
import threading

import httpx2

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
WORDS = ["hi", "", " ", "\n", "日本", "😀", "\ud800", "\x00", "<|end|>", "yes no", "a" * 300, "\u202e", '"', "\\"]
ODD = [None, True, False, 0, 1, -1, 3, 2**63, 2**64, -(2**70), 0.5, 1.5, float("nan"), float("inf"), 1e308]
ODD += ["", "x", "\ud83d", [], {}, [None], [1], ["a"], {"a": 1}, [[]], [{"type": "text", "text": "x"}], "a" * 2000]
FIELDS = ["model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed", "n", "logprobs"]
FIELDS += ["stream", "stream_options", "response_format", "return_token_ids", "user", "tools", "min_p", "logit_bias"]
FIELDS += ["top_logprobs", "echo", "suffix", "best_of", "messages", "prompt", "of_next_year", "\ud800"]
FORMS = [{"type": "json_object"}, {"type": "text"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}}]
FORMS += [
    {"type": "json_schema", "json_schema": {"name": "p", "schema": schema}}
    for schema in (
        {},
        {"type": "object"},
        {"type": "x"},
        {"type": "string", "pattern": "(("},
        {"enum": []},
        {"$ref": "#/a"},
    )
]


def some_body(rng):
    """A body for chat or text: a right one with a few changes."""
    chat = rng.random() < 0.6
    body = {
        "model": "m",
        "max_tokens": rng.choice([1, 2, 4]),
        "temperature": rng.choice([0, 0.7, 2]),
        "seed": rng.randrange(9),
    }
    turns = [
        {"role": rng.choice(["user", "system", "assistant"]), "content": rng.choice(WORDS)}
        for _ in range(rng.randint(1, 3))
    ]
    body |= {"messages": turns} if chat else {"prompt": rng.choice([rng.choice(WORDS), [rng.choice(WORDS), "b"]])}
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
        name = rng.choice(FIELDS)
        body[name] = rng.choice(FORMS) if name == "response_format" and rng.random() < 0.7 else rng.choice(ODD + WORDS)
    if rng.random() < 0.1 and chat and isinstance(body.get("messages"), list) and body["messages"]:
        body["messages"][0] = rng.choice([*ODD, {"role": rng.choice(ODD), "content": rng.choice(ODD)}])
    for name in rng.sample(list(body), rng.choice([0, 0, 0, 1])):
        del body[name]
    return CHAT if chat else TEXT, body


def some_content(rng):
    """Path and bytes of a request."""
    path, body = some_body(rng)
    content = json.dumps(body).encode()
    kind = rng.random()
    if kind < 0.05:
        content = content[: rng.randrange(len(content))]
    elif kind < 0.08:
        position = rng.randrange(len(content))
        content = content[:position] + rng.randbytes(3) + content[position + 1 :]
    elif kind < 0.1:
        content = rng.choice(
            [b"", b"null", b"[" * 50_000, b'{"a":' * 5000, b"9" * 5000, b"\xef\xbb\xbf{}", b"[" + b"[]," * 200_000]
        )
    elif kind < 0.12:
        path = rng.choice(
            ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/models", "/v2", "/v1/../health", "/%00"]
        )
    return path, content


def check(response):
    """Asserts that an answer is right in form, or a refusal in JSON."""
    status, kind = response.status_code, response.headers.get("content-type", "")
    if status == 200:
        if kind.startswith("text/event-stream"):
            events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
            assert events[-1] == "[DONE]" and all("error" not in json.loads(event) for event in events[:-1])
            return "stream"
        answer = response.json()
        assert answer["choices"] and answer["usage"]["total_tokens"] > 0
        return "answer"
    assert 400 <= status < 500, (status, response.text[:500])
    error = response.json()["error"]
    assert kind == "application/json" and isinstance(error["message"], str) and error["message"]
    return str(status)


def fuzz(url, seed, count, clients=8):
    """Sends requests from some clients at once; returns how many answers there were of each kind."""
    kinds, lock = {}, threading.Lock()

    def send(number):
        rng = random.Random(seed * 1000 + number)
        with httpx2.Client(base_url=url, timeout=120) as client:
            for _ in range(count // clients):
                path, content = some_content(rng)
                try:
                    kind = check(client.post(path, content=content))
                except Exception as error:
                    error.add_note(f"{path} {content[:2000]!r}")
                    raise
                with lock:
                    kinds[kind] = kinds.get(kind, 0) + 1

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(send, range(clients)))
    return kinds
