"""Both clients against servers that check the wire format and fail on demand."""

import asyncio
import dataclasses
import gc
import logging

import pytest
from api_servers import ApiServers
from served import serving_app

from optimas_jax.core.types import Outcome, StopRun
from optimas_jax.llm.accounts.ledger import Budget, Ledger, OverBudget
from optimas_jax.llm.attempts import Persistent, Retries, ServerError
from optimas_jax.llm.base import CompletionRequest, Message
from optimas_jax.llm.clients.anthropic import AnthropicCompleter
from optimas_jax.llm.clients.openai import OpenAICompleter
from optimas_jax.llm.clients.remote import ServerConfig
from optimas_jax.llm.forms.answers import AnswerType
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter

CHAT = (Message("system", "Be short."), Message("user", "Where is it?"), Message("assistant", "Here."))
CHAT = (*CHAT, Message("user", "And where is the other one now?"))
KEYS = {"openai": "sk-planted-openai-key", "anthropic": "sk-planted-anthropic-key"}
HASTY = Retries(attempts=3, first_wait=0.01)


@pytest.fixture(scope="module")
def served():
    servers = ApiServers()
    with serving_app(servers.app, log_level="critical") as address:
        yield servers, address


@pytest.fixture(autouse=True)
def keys(monkeypatch):
    for name, key in KEYS.items():
        monkeypatch.setenv(f"{name.upper()}_API_KEY", key)


@pytest.fixture(params=["openai", "anthropic"])
def api(request, served):
    """(provider, servers, makes a completer)."""
    name, (servers, address) = request.param, served
    servers.bodies.clear()
    servers.problems.clear()
    servers.faults.clear()

    def make(**changes):
        said = changes.pop("say", lambda text: None)
        url = f"{address}/v1" if name == "openai" else address
        config = ServerConfig(**{"base_url": url, "retries": HASTY, **changes})
        return (OpenAICompleter if name == "openai" else AnthropicCompleter)(config, say=said)

    yield name, servers, make
    assert not servers.problems


def request_to(name, **changes):
    model = {"openai": "openai:gpt-4o-mini", "anthropic": "anthropic:claude-3-haiku-20240307"}[name]
    return CompletionRequest(**{"model": model, "messages": CHAT, "max_tokens": 8, "temperature": 0.5, **changes})


def complete(completer, *requests):
    persistent = Persistent(completer)

    async def all_of_them():
        return await asyncio.gather(*(persistent.complete(one) for one in requests))

    return asyncio.run(all_of_them())


def test_an_answer_comes_with_its_tokens_and_its_price(api):
    name, servers, make = api
    [completion] = complete(make(), request_to(name, seed=0, stop=("\n",)))
    assert (completion.text, completion.outcome) == ("And where is the", Outcome.OK)
    assert (completion.prompt_tokens, completion.completion_tokens) == (7, 4)
    dollars = {"openai": (7 * 0.15 + 4 * 0.6) / 1e6, "anthropic": (7 * 0.25 + 4 * 1.25) / 1e6}
    assert completion.usd == pytest.approx(dollars[name]) and completion.seconds > 0
    [body] = servers.bodies
    assert body["model"] == request_to(name).model.partition(":")[2] and body["temperature"] == 0.5
    if name == "anthropic":
        assert body["system"] == "Be short." and body["max_tokens"] == 8
        assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    else:
        assert (body["max_tokens"], body["stop"], body["seed"]) == (8, ["\n"], 0)


@pytest.mark.parametrize("fault", ["429", "500", "503", "529", "drop", "not JSON"])
def test_a_fault_that_passes_is_asked_again(api, fault):
    name, servers, make = api
    servers.faults.extend([fault, fault])
    [completion] = complete(make(), request_to(name))
    assert completion.outcome is Outcome.OK and len(servers.bodies) == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("429", r"refuses for its limits .*3 attempts.*requests_per_minute.*same command again"),
        ("529", r"failed with status 529 .*same command again"),
        ("drop", r"does not answer .*3 attempts.*same command again"),
        ("not JSON", r"not JSON: .*Bad gateway.*3 attempts"),
    ],
)
def test_a_fault_that_stays_stops_the_run_with_the_way_out(api, fault, message):
    name, servers, make = api
    servers.faults.extend([fault] * 3)
    with pytest.raises(StopRun, match=message) as raised:
        complete(make(), request_to(name))
    assert len(servers.bodies) == 3 and KEYS[name] not in str(raised.value)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("401", r"wants a key that it accepts in [A-Z]+_API_KEY"), ("404", "asked for"), ("overflow", "lower max_tokens")],
)
def test_what_the_first_request_meets_and_will_not_pass_stops_a_run_at_once(api, fault, message):
    name, servers, make = api
    servers.faults.append(fault)
    with pytest.raises(ServerError, match=message):
        complete(make(), request_to(name))
    assert len(servers.bodies) == 1


@pytest.mark.parametrize(("fault", "asked"), [("overflow", 2), ("404", 3)])
def test_what_one_request_alone_meets_is_its_outcome(api, fault, asked):
    """A prompt that is too long is known to be at fault; else the last request that was answered is asked again."""
    name, servers, make = api
    servers.faults.extend(["", fault])
    completer = make()
    complete(completer, request_to(name))
    [failed] = complete(completer, request_to(name, seed=1))
    assert (failed.outcome, failed.text, failed.completion_tokens) == (Outcome.REFUSED, "", 0) and failed.detail
    assert len(servers.bodies) == asked


def test_a_fault_that_all_requests_meet_from_some_time_on_stops_the_run(api):
    name, servers, make = api
    completer = make()
    complete(completer, request_to(name))
    servers.faults.extend(["not JSON"] * 6)  # three attempts, and three at the one that was answered
    with pytest.raises(ServerError, match="cannot be read"):
        complete(completer, request_to(name, seed=1))
    assert len(servers.bodies) == 7


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [("refusal", Outcome.REFUSED), ("truncated", Outcome.TRUNCATED), ("empty", Outcome.OK)],
)
def test_how_an_answer_ended_is_its_outcome(api, fault, outcome):
    name, servers, make = api
    servers.faults.append(fault)
    [completion] = complete(make(), request_to(name))
    assert completion.outcome is outcome and bool(completion.text) == (fault != "empty")


def test_a_slow_answer_is_asked_again(api):
    name, servers, make = api
    servers.faults.append("slow")
    [completion] = complete(make(timeout=0.5), request_to(name))
    assert completion.outcome is Outcome.OK and len(servers.bodies) == 2


def test_a_setting_that_the_model_does_not_take_is_left_out_and_said_once(api):
    name, servers, make = api
    servers.faults.append("no temperature")
    said = []
    completer = make(say=said.append)
    complete(completer, request_to(name))
    complete(completer, request_to(name, max_tokens=9))
    assert ["temperature" in body for body in servers.bodies] == [True, False, False]
    assert len(said) == 1 and "temperature" in said[0]


POINT = AnswerType("p", {"x": int, "tags": list[str]}).schema
OPEN = AnswerType("p", {"x": int, "counts": dict[str, int]}).schema
FORM = {"openai": "response_format", "anthropic": "output_config"}


def test_a_schema_goes_along_in_the_words_of_the_api(api):
    name, servers, make = api
    complete(make(), request_to(name, schema=POINT), request_to(name, schema=OPEN), request_to(name))
    by_schema = sorted((body.get(FORM[name]) for body in servers.bodies), key=str)
    if name == "openai":
        formats = [one["json_schema"] for one in by_schema if one]
        assert {one["strict"]: one["schema"] for one in formats} == {True: POINT, False: OPEN}
        return
    assert by_schema.count(None) == 2  # keys that are not named are not in Anthropic's subset
    assert by_schema[-1] == {"format": {"type": "json_schema", "schema": POINT}}


def test_a_schema_that_the_server_refuses_is_left_out_and_said_once(api):
    name, servers, make = api
    servers.faults.extend(["no form"])
    said = []
    completer = make(say=said.append)
    for tokens in (8, 9):
        complete(completer, request_to(name, schema=POINT, max_tokens=tokens))
    assert [FORM[name] in body for body in servers.bodies] == [True, False, False]
    assert len(said) == 1 and f"the form {FORM[name]}: it is left out, and answers are checked here" in said[0]


def test_one_schema_that_is_too_much_for_a_server_says_nothing_about_others(api):
    name, servers, make = api
    servers.faults.append("invalid schema")
    completer = make()
    for schema in (POINT, POINT, AnswerType("p", int).schema):
        complete(completer, request_to(name, schema=schema))
    assert [FORM[name] in body for body in servers.bodies] == [True, False, False, True]


def test_a_schema_for_a_text_to_continue_goes_to_openai_alone(served):
    servers, address = served
    servers.bodies.clear()
    completer = OpenAICompleter(ServerConfig(f"{address}/v1"))
    complete(completer, request_to("openai", messages=(Message("text", "Once upon"),), schema=POINT))
    assert servers.bodies[0]["response_format"]["json_schema"]["schema"] == POINT and not servers.problems


def test_a_stop_text_that_the_server_did_not_mind_is_cut_here(api):
    name, _, make = api
    [completion] = complete(make(), request_to(name, stop=(" the",)))
    assert completion.text == "And where is"


def test_what_anthropic_cannot_be_asked_is_refused_at_once(served):
    completer = AnthropicCompleter(ServerConfig(served[1]))
    with pytest.raises(ServerError, match=r"style = chat"):
        complete(completer, request_to("anthropic", messages=(Message("text", "Once upon"),)))
    with pytest.raises(ServerError, match=r"weights of a local model"):
        complete(completer, request_to("anthropic", tokens=True))


def test_a_request_in_flight_when_a_run_ends_is_kept(api, tmp_path):
    """Cancelled while it waits for its answer: the answer is paid for, and is on the tape."""
    name, servers, make = api
    servers.faults.append("slow")
    tape = Tape(tmp_path / "tape.sqlite")
    completer = TapedCompleter(tape, Ledger(), make())

    async def interrupted():
        task = asyncio.create_task(completer.complete(request_to(name)))
        while not servers.bodies:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    assert tape.get(request_to(name)) is not None and len(servers.bodies) == 1
    tape.close()


def test_nothing_is_said_of_other_requests_in_flight_when_a_server_refuses(api, caplog):
    name, servers, make = api
    servers.faults.extend(["503", "503", "401"])

    async def all_in_a_group():
        async with asyncio.TaskGroup() as group:
            for seed in range(6):
                group.create_task(completer.complete(request_to(name, seed=seed)))

    completer = make(connections=3, retries=Retries(first_wait=1.0))  # two wait to be sent again, three to be sent
    with pytest.raises(ExceptionGroup):
        asyncio.run(all_in_a_group())
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio" and record.levelno > logging.DEBUG]


def test_a_budget_is_never_overrun_and_a_higher_one_goes_on(api, tmp_path):
    name, servers, make = api
    requests = [request_to(name, max_tokens=4, seed=seed) for seed in range(12)]

    def run(budget):
        tape = Tape(tmp_path / "tape.sqlite")
        try:
            complete(TapedCompleter(tape, Ledger(budget, tape.usage()), make()), *requests)
        finally:
            cost = tape.usage()
            tape.close()
        return cost

    with pytest.raises(OverBudget, match=r"config.budget.calls = 5\): .*5 calls so far.*raise the limit"):
        run(Budget(calls=5))
    assert len(servers.bodies) == 5
    with pytest.raises(OverBudget):  # what the first command paid counts in the second
        run(Budget(calls=5))
    assert len(servers.bodies) == 5
    assert run(Budget(calls=12, tokens=100_000, usd=1.0)).calls == 12 == len(servers.bodies)
    assert run(Budget(calls=12)).calls == 12 == len(servers.bodies)  # all from the tape


@pytest.mark.parametrize("field", ["usd", "tokens"])
def test_budgets_of_tokens_and_dollars_hold(api, tmp_path, field):
    name, _, make = api
    tape = Tape(tmp_path / "tape.sqlite")
    ledger = Ledger()
    one = ledger.most(request_to(name))
    budget = Budget(**{field: type(getattr(one, field))(getattr(one, field) * 2)})
    completer = TapedCompleter(tape, Ledger(budget), make())
    with pytest.raises(OverBudget, match=rf"config.budget.{field}"):
        complete(completer, *[request_to(name, seed=seed) for seed in range(50)])
    spent = getattr(tape.usage(), field)
    assert 0 < spent <= getattr(budget, field)
    tape.close()


def test_used_tokens_are_the_same_in_every_repetition(api, tmp_path):
    name, servers, make = api
    requests = [request_to(name, seed=seed % 3) for seed in range(6)]
    used = []
    for _ in range(2):
        tape, ledger = Tape(tmp_path / "tape.sqlite"), Ledger()
        complete(TapedCompleter(tape, ledger, make()), *requests)
        [row] = [row for roles in ledger.to_json().values() for row in roles.values()]
        used.append(row["prompt_tokens"] + row["completion_tokens"])
        tape.close()
    assert used[0] == used[1] > 0 and len(servers.bodies) == 3


def test_a_dollar_budget_needs_a_price(tmp_path):
    ledger = Ledger(Budget(usd=1.0))
    with pytest.raises(OverBudget, match=r"set config.prices to openai:unheard-of="):
        ledger.most(dataclasses.replace(request_to("openai"), model="openai:unheard-of"))
