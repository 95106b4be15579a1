"""Whole searches over agents that are already there: a planted gain is found, kept, and loaded into the same agent."""

import json
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from api_servers import ApiServers
from served import serving_app
from starlette.responses import JSONResponse
from tool_agents import SYSTEM, tool_loop

import optimas_jax as oj
from optimas_jax.llm.component import LanguageModel
from optimas_jax.report.console import ConsoleProgress

AGENT = str(Path(__file__).parents[1] / "outside_agent.py")
RULE = "Answer in capital letters."
CLIENT = oj.client()


def completion(kind, body):
    """A model that asks for the tool once, and answers in capital letters where its instruction says so."""
    if kind != "chat":
        return None
    system, last = body["messages"][0]["content"], body["messages"][-1]
    message = {"role": "assistant", "content": "Do the task well.", "refusal": None}
    if "tools" in body and last["role"] == "user":
        function = {"name": "add", "arguments": json.dumps({"x": len(last["content"])})}
        message |= {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}
    elif "tools" in body:
        text = f"it is {last['content']}"
        message["content"] = text.upper() if "capital letters" in system else text
    choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "message": message}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    frame = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
    return JSONResponse({**frame, "choices": [choice], "usage": usage})


def grade(example, outputs):
    right = outputs == example["wanted"]
    return float(right), "" if right else RULE


async def unchanged(question):
    return await tool_loop(CLIENT, question)


def in_a_process(question):
    variables = {"PATH": "/usr/bin:/bin", "OPENAI_BASE_URL": oj.base_url()}
    done = subprocess.run([sys.executable, AGENT, question], env=variables, capture_output=True, text=True, check=False)
    return done.stdout.strip()


ROWS = [{"question": "q" * (number % 6 + 1) + str(number), "wanted": ""} for number in range(36)]
ROWS = [{**row, "wanted": f"IT IS {len(row['question']) + 1}"} for row in ROWS]
SETTINGS = {
    "reward.model": "random:0",
    "optimize.iterations": 1,
    "optimize.instructions": 0,
    "optimize.demo_sets": 0,
    "offline.groups": 0,
    "optimize.score": "off",
    "optimize.proposers": "feedback",
    "concurrency": 8,
}


@pytest.fixture
def served():
    servers = ApiServers()
    servers.odd = completion
    with serving_app(servers.app, log_level="critical") as address:
        yield servers, f"{address}/v1"


@pytest.mark.parametrize(("function", "start"), [(unchanged, "Use the tool."), (unchanged, ""), (in_a_process, "")])
def test_a_planted_gain_is_found_and_loaded_back_into_the_unchanged_agent(served, tmp_path, function, start):
    servers, address = served
    program = oj.program(function, components=[oj.agent("adder", start)], timeout=60)
    model = LanguageModel("openai:served")
    result = oj.optimize(
        program,
        grade,
        ROWS,
        model=model,
        workdir=tmp_path / "run",
        config={**SETTINGS, "server.base_url": address},
        progress=ConsoleProgress(quiet=True),
    )
    assert not servers.problems
    assert result.gain == 1.0 and result.results["baseline"]["mean"] == 0.0
    assert result.best["adder"].instruction == f"{start or SYSTEM}\n{RULE}"
    assert result.best(question="qqqq") == "IT IS 5"
    loaded = oj.load(tmp_path / "run", program)
    assert loaded["adder"] == result.best["adder"] and loaded(question="qqq") == "IT IS 4"
    with oj.proxy(loaded) as url:  # the same, outside of all runs
        client = openai.OpenAI(base_url=url, api_key="none")
        asked = {"messages": servers.bodies[-1]["messages"][1:], "tools": servers.bodies[-1]["tools"]}
        answer = client.chat.completions.create(model="adder", **asked)
        client.close()
    assert answer.choices[0].message.content == "IT IS 4"
