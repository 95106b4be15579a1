"""The two sides of the suite ``hostloop``, started as processes: one round of a search (``ours``), and the same
requests by the ``openai`` client alone (``bare``)."""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optimas_jax.bench.calls import INPUTS, call_number, instruction, question
from optimas_jax.bench.serve import Run, serve

_MODEL = "openai:stub"
_MAX_TOKENS = 64


def prepare_ours(work: dict[str, Any]) -> tuple[Run, str]:
    """Our side. Work: ``latencies`` of all calls, ``concurrency``, and the ``url`` of a server, or "" for a completer
    that sleeps in this process."""
    from optimas_jax.core.types import Outcome
    from optimas_jax.llm.base import Completion

    class Sleeping:
        async def complete(self, request: Any) -> Any:
            number = call_number(request.messages[0].content.encode() + request.messages[-1].content.encode())
            await asyncio.sleep(work["latencies"][number])
            return Completion("an answer", Outcome.OK, 500, 20)

    def completer() -> Any:
        if not work["url"]:
            return Sleeping()
        from optimas_jax.llm.clients.openai import OpenAICompleter
        from optimas_jax.llm.clients.remote import ServerConfig

        return OpenAICompleter(ServerConfig(work["url"]))

    def run(repeat: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            seconds, cpu, calls = _one_round(completer(), Path(folder), len(work["latencies"]), work["concurrency"])
        assert calls == len(work["latencies"]), calls
        return {"seconds": seconds, "cpu": cpu}

    return run, ""


def _one_round(completer: Any, folder: Path, calls: int, concurrency: int) -> tuple[float, float, int]:
    """Labels and races proposals with an empty tape; returns seconds, processor seconds, and number of paid calls."""
    from optimas_jax.core.system import System
    from optimas_jax.core.types import Example, Outcome
    from optimas_jax.core.values import Prompt
    from optimas_jax.llm.accounts.ledger import Ledger
    from optimas_jax.llm.base import Completion
    from optimas_jax.llm.component import LanguageModel, llm_component
    from optimas_jax.llm.tapes.tape import Tape
    from optimas_jax.llm.tapes.taped import TapedCompleter
    from optimas_jax.loop.config import OptimizeConfig
    from optimas_jax.loop.context import Host
    from optimas_jax.loop.state import Proposal, State
    from optimas_jax.loop.steps.race import label, race
    from optimas_jax.report.console import ConsoleProgress

    class Silent:
        async def complete(self, request: Any) -> Any:
            return Completion("none", Outcome.OK, 0, 0)

    component = llm_component(
        name="answer",
        description="answers",
        inputs=("q",),
        output="a",
        instruction="Answer.",
        language_model=LanguageModel(_MODEL, max_tokens=_MAX_TOKENS),
    )
    bare = System((component,), ("q",), ("a",), lambda outputs, gold: 0.0)
    examples = [Example(f"e{i}", {"q": question(i)}, {}, "train") for i in range(INPUTS)]
    configuration = bare.default_configuration()
    quick = bare.using(Silent())
    traces = [asyncio.run(quick.run(configuration, example, 0)) for example in examples]
    proposals = [Proposal("bench", Prompt(instruction(i))) for i in range(calls // INPUTS)]
    tape, ledger = Tape(folder / "tape.sqlite"), Ledger()
    taped = TapedCompleter(tape, ledger, completer)
    unused: Any = None
    host = Host(
        system=bare.using(taped),
        completer=taped,
        splits={},
        components=("answer",),
        folder=unused,
        ledger=ledger,
        progress=ConsoleProgress(quiet=True),
        seed=0,
        concurrency=concurrency,
    )
    config = OptimizeConfig.improved(score="off", labels=INPUTS, rounds=1)
    state = State(configuration, "", (), ())
    runs = list(zip(examples, traces, strict=True))
    gc.collect()
    start, started = time.perf_counter(), time.process_time()
    labels = label(host, config, state, "answer", proposals, runs, 1)
    race(host, unused, config, state, "answer", proposals, labels, runs, 1)
    seconds, cpu = time.perf_counter() - start, time.process_time() - started
    tape.close()
    return seconds, cpu, ledger.paid_calls


def prepare_bare(work: dict[str, Any]) -> tuple[Run, str]:
    """The same work by ``openai.AsyncOpenAI`` with its own settings, except that it waits for connections as long as we
    do: otherwise, on a busy machine, many requests would time out and be repeated."""
    import openai

    pairs = itertools.product(range(len(work["latencies"]) // INPUTS), range(INPUTS))
    prompts = [(instruction(variant), question(number)) for variant, number in pairs]

    def run(repeat: int) -> dict[str, Any]:
        start, started = time.perf_counter(), time.process_time()
        client = openai.AsyncOpenAI(base_url=work["url"], api_key="none", timeout=600.0)
        asyncio.run(_ask_all(client, prompts, work["concurrency"]))
        return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - started}

    return run, ""


async def _ask_all(client: Any, prompts: Sequence[tuple[str, str]], concurrency: int) -> None:
    slots = asyncio.Semaphore(concurrency)

    async def ask(system: str, user: str) -> None:
        async with slots:
            await client.chat.completions.create(
                model="stub",
                messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
                temperature=0.0,
                max_completion_tokens=_MAX_TOKENS,
            )

    async with client:
        await asyncio.gather(*(ask(*prompt) for prompt in prompts))


if __name__ == "__main__":
    serve({"ours": prepare_ours, "bare": prepare_bare}[sys.argv[1]])
