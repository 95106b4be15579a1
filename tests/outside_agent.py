"""An agent in a process of its own, with nothing but the standard library: a tool loop on chat completions.

python outside_agent.py QUESTION [--parallel N]; the base URL is in OPENAI_BASE_URL, the key in OPENAI_API_KEY.
"""

import concurrent.futures
import json
import os
import sys
import urllib.error
import urllib.request

TOOL = {
    "name": "add",
    "description": "Adds one.",
    "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}


def complete(messages):
    body = {"model": "adder", "messages": messages, "tools": [{"type": "function", "function": TOOL}]}
    headers = {"content-type": "application/json", "authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"}
    url = f"{os.environ['OPENAI_BASE_URL']}/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["choices"][0]["message"]
    except urllib.error.HTTPError as error:
        sys.exit(error.read().decode())


def answer(question):
    messages = [{"role": "system", "content": "You add numbers."}, {"role": "user", "content": question}]
    while True:
        message = complete(messages)
        if not message.get("tool_calls"):
            return message["content"]
        messages.append(message)
        for call in message["tool_calls"]:
            result = str(json.loads(call["function"]["arguments"])["x"] + 1)
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})


if __name__ == "__main__":
    question, *rest = sys.argv[1:]
    parts = [f"{question}{'x' * number}" for number in range(int(rest[1]))] if rest else [question]
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as pool:
        print(" ".join(pool.map(answer, parts)))
