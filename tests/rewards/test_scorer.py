"""Training makes names; scoring under a name changes nothing but its memo on the tape."""

import asyncio
import dataclasses
import hashlib
import io

import numpy as np
import pytest
from rich.console import Console
from systems import group, system, tool

from optimas_jax.core.selection import LIKELIHOOD
from optimas_jax.core.types import StopRun
from optimas_jax.engine.pool import Engines
from optimas_jax.learn.config import BatchShape, LossConfig
from optimas_jax.learn.reward_model import RewardFunctions
from optimas_jax.learn.store import CheckpointStore
from optimas_jax.learn.train_state import learning_rate
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.models.config import LoraConfig
from optimas_jax.parallel.mesh import MeshConfig
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.rewards.engine import reward_engine
from optimas_jax.rewards.scorer import InstanceScorer, score_outputs
from optimas_jax.rewards.text import text_group

QUIET = ConsoleProgress(quiet=True)
SYSTEM = system(
    tool("a", ("q",), lambda q, x: x, grid=(1, 2)), tool("b", ("a_out",), lambda a, x: x, grid=(1, 2)), output="b_out"
)
GROUPS = [
    group(({"a_out": f"good {i}"}, 1.0), ({"a_out": f"bad {i}"}, 0.0), component="a", name=f"e{i}") for i in range(4)
]
CONFIG = RewardConfig("random:0", lora=LoraConfig(rank=4, alpha=8.0), learning_rate=1e-2, epochs=2)
MODELS = Engines(MeshConfig(data=1), QUIET)


def engine(folder, config=CONFIG, progress=QUIET):
    tape = Tape(folder / "tape.sqlite")
    return reward_engine(config, SYSTEM.tunable, MODELS, tape, CheckpointStore(folder / "checkpoints"), progress), tape


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    rewards, tape = engine(folder)
    name, metadata = rewards.trainer.train(SYSTEM, None, GROUPS, GROUPS[:1], epochs=2, seed=0)
    yield folder, rewards, tape, name, metadata
    tape.close()


def texts(groups):
    return [text_group(SYSTEM, g.component, g.inputs, [c.outputs for c in g.candidates]) for g in groups]


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("tape.sqlite")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_scoring_leaves_all_but_its_memo_as_it_was(trained):
    folder, rewards, tape, name, _ = trained
    before, completions, cost = contents(folder), len(tape), tape.usage()
    first = rewards.scorer.scores(name, texts(GROUPS))
    logliks = rewards.scorer.logliks(texts(GROUPS))
    assert (contents(folder), len(tape), tape.usage()) == (before, completions, cost)
    again, other_tape = engine(folder)  # nothing is loaded: every answer is on the tape
    again.scorer._batches._engines = None
    assert again.scorer.scores(name, texts(GROUPS)) == first
    assert again.scorer.logliks(texts(GROUPS)) == logliks
    other_tape.close()


def test_a_score_does_not_depend_on_what_was_scored_before(trained, tmp_path):
    folder, rewards, _, name, _ = trained
    whole = rewards.scorer.scores(name, texts(GROUPS))
    CheckpointStore(tmp_path / "checkpoints").folder.symlink_to(folder / "checkpoints")
    fresh, tape = engine(tmp_path)
    assert [fresh.scorer.scores(name, texts([one]))[0] for one in reversed(GROUPS)] == whole[::-1]
    tape.close()


def test_outputs_are_scored_in_groups_of_as_many_as_a_batch_allows(trained):
    _, rewards, _, name, _ = trained
    outputs = [{"a_out": str(i)} for i in range(11)]
    rows = score_outputs(rewards.scorer, SYSTEM, name, "a", [({"q": 1}, outputs), ({"q": 2}, []), ({"q": 3}, outputs)])
    assert [len(row) for row in rows] == [11, 0, 11]
    assert len({*rows[0], *rows[2]}) == 22
    whole = [text_group(SYSTEM, "a", {"q": 3}, outputs)]
    assert rewards.scorer.scores(name, whole) == rows[2:]
    assert len(rewards.scorer.logliks(whole)[0]) == 11


def test_a_choice_per_instance_gets_the_scores_of_the_search(trained):
    _, rewards, _, name, _ = trained
    outputs = [c.outputs for c in GROUPS[0].candidates]
    one_by_one = InstanceScorer(rewards.scorer, SYSTEM, seed=0)
    scores = asyncio.run(one_by_one.scores("a", "e", GROUPS[0].inputs, outputs, name))
    assert scores == rewards.scorer.scores(name, texts(GROUPS[:1]))[0]
    with pytest.raises(StopRun, match="no local reward 'other'"):
        asyncio.run(one_by_one.scores("a", "e", GROUPS[0].inputs, outputs, "other"))


def test_a_training_call_is_named_by_what_goes_in(trained):
    folder, rewards, _, name, metadata = trained
    before = contents(folder)
    assert rewards.trainer.train(SYSTEM, None, GROUPS, GROUPS[:1], epochs=2, seed=0) == (name, metadata)
    assert contents(folder) == before
    assert [set(row) >= {"loss", "held_out_pair_accuracy"} for row in metadata["history"]] == [True, True]
    other, _ = rewards.trainer.train(SYSTEM, None, GROUPS, GROUPS[:1], epochs=2, seed=1)
    assert other != name


def test_groups_without_a_pair_teach_nothing_and_name_nothing(trained):
    folder, rewards, _, name, metadata = trained
    before = contents(folder)
    noise = dataclasses.replace(CONFIG, loss=LossConfig(threshold=0.5))
    tied = [group(({"a_out": 1}, 0.5), ({"a_out": 2}, 0.5))]
    close = [group(({"a_out": 1}, 0.5), ({"a_out": 2}, 1.0))]
    assert rewards.trainer.train(SYSTEM, name, tied, (), epochs=1, seed=0)[0] == name
    quiet, tape = engine(folder, noise)
    assert quiet.trainer.train(SYSTEM, name, close, (), epochs=1, seed=0)[0] == name
    tape.close()
    assert rewards.trainer.train(SYSTEM, None, [*GROUPS, *tied], GROUPS[:1], epochs=2, seed=0) == (name, metadata)
    assert contents(folder) == before


def test_adaptation_goes_on_at_a_constant_rate_below_the_peak(trained):
    _, rewards, _, _, _ = trained
    rates = [rewards.trainer._adaptation_rate(step, 40) for step in range(40)]
    assert rates[:4] == pytest.approx([0.00075, 0.0015, 0.00225, 0.003])
    assert rates[3:] == pytest.approx([0.3 * CONFIG.learning_rate] * 37)
    assert rewards.trainer._adaptation_rate(0, 3) == pytest.approx(0.003)


def test_only_the_first_training_follows_the_schedule(trained, monkeypatch):
    """Warm-up to the peak and decay; a further training stays at its lower rate."""
    _, rewards, _, name, _ = trained
    rates, step = [], RewardFunctions.train_step

    def noting(self, state, params, parts, rate, lanes=None):
        rates.append(rate)
        return step(self, state, params, parts, rate, lanes)

    monkeypatch.setattr(RewardFunctions, "train_step", noting)
    monkeypatch.setattr(
        "optimas_jax.rewards.trainer._TRAINING_GROUP", rewards.trainer._batches.max_tokens
    )  # one a step
    rewards.trainer.train(SYSTEM, None, GROUPS, (), epochs=5, seed=5)
    first, peak, total = rates.copy(), CONFIG.learning_rate, 5 * len(GROUPS)
    assert first == pytest.approx([learning_rate(index, total, peak) for index in range(total)])
    assert max(first) == pytest.approx(peak) and first[-1] < 0.2 * peak
    rates.clear()
    rewards.trainer.train(SYSTEM, name, GROUPS, (), epochs=5, seed=5)
    lower = CONFIG.adapt_rate * peak
    assert len(rates) == total and lower < peak
    assert rates == pytest.approx([lower / 2, *[lower] * (total - 1)])


def test_a_group_that_is_too_long_keeps_the_task(tmp_path):
    """Of the prefix the inputs are cut, not the line that tells components apart."""
    described = dataclasses.replace(SYSTEM.by_name["a"], description="Says " + "very, " * 20 + "much.")
    some_system = dataclasses.replace(SYSTEM, components=(described, SYSTEM.by_name["b"]))
    small = dataclasses.replace(CONFIG, batch=BatchShape(tokens=256, group_tokens=256, candidates=2))
    rewards, tape = engine(tmp_path, small)
    batches = rewards.trainer._batches
    text = text_group(some_system, "a", {"q": "long " * 200}, [{"a_out": "yes"}, {"a_out": "no"}])
    task = batches.model.tokenizer.encode(text.task)
    short = batches.fit(text, batches.token_group(text))
    tape.close()
    assert 128 < len(task) < 192 and short.length == 256
    assert list(short.prefix_ids[: len(task)]) == list(task)


def test_candidates_that_truncation_made_alike_are_counted(tmp_path):
    said = io.StringIO()
    small = dataclasses.replace(CONFIG, batch=BatchShape(tokens=64, group_tokens=12, candidates=8), epochs=1)
    rewards, tape = engine(tmp_path, small, ConsoleProgress(Console(file=said, width=200)))
    many = group(*(({"a_out": "x" * 40 + str(n) + "x" * n}, float(n > 2)) for n in range(4)), component="a")
    _, metadata = rewards.trainer.train(SYSTEM, None, [*GROUPS[:1], many], (), epochs=1, seed=0)
    tape.close()
    assert (metadata["groups"], metadata["alike"]) == (2, 1)
    assert (
        "1 of 2 groups have candidates that are alike within config.reward.batch.group_tokens = 12" in said.getvalue()
    )


def test_a_local_reward_of_another_backbone_is_refused(trained):
    folder, _, _, name, _ = trained
    other, tape = engine(folder, dataclasses.replace(CONFIG, lora=LoraConfig(rank=8, alpha=8.0)))
    with pytest.raises(StopRun, match=r"was trained as .*'rank': 4.*make it .*'rank': 8"):
        other.scorer.check(name)
    tape.close()


@pytest.mark.parametrize("heads", ["fitted", "trained"])
def test_groups_of_more_candidates_than_a_batch_holds_are_learned_from(tmp_path, heads):
    few = dataclasses.replace(CONFIG, heads=heads, batch=dataclasses.replace(CONFIG.batch, candidates=2))
    rated = [("good", 1.0), ("fair", 0.5), ("bad", 0.0)]
    many = [group(*(({"a_out": f"{word} {i}"}, reward) for word, reward in rated), name=f"e{i}") for i in range(4)]
    rewards, tape = engine(tmp_path / "few", few)
    name, metadata = rewards.trainer.train(SYSTEM, None, many, (), epochs=1, seed=0)
    assert metadata["groups"] == len(many)
    if heads == "fitted":
        whole, other = engine(tmp_path / "whole", dataclasses.replace(CONFIG, heads=heads))
        scores = whole.scorer.scores(whole.trainer.train(SYSTEM, None, many, (), epochs=1, seed=0)[0], texts(many))
        for row, expected in zip(rewards.scorer.scores(name, texts(many)), scores, strict=True):
            assert row == pytest.approx(expected, rel=1e-3, abs=1e-3)
        other.close()
    tape.close()


def test_fitted_heads_are_scored_beside_the_likelihood(tmp_path):
    """Their name depends on the groups alone, and without a pair they order by likelihood."""
    rewards, tape = engine(tmp_path, dataclasses.replace(CONFIG, heads="fitted"))
    name, metadata = rewards.trainer.train(SYSTEM, None, GROUPS, GROUPS[:1], epochs=2, seed=0)
    again = rewards.trainer.train(SYSTEM, name, GROUPS, GROUPS[:1], epochs=9, seed=1)
    assert again == (name, metadata) and metadata["history"][0]["pair_accuracy"] == 1.0
    [scores, logliks] = rewards.scorer.scores(name, texts(GROUPS)), rewards.scorer.logliks(texts(GROUPS))
    head = np.asarray(rewards.trainer._checkpoints.load(name, rewards.trainer._batches.shapes)["head"]["kernel"])
    states = rewards.trainer.by_group("hidden", rewards.trainer._tokens(SYSTEM, GROUPS)[0])
    for row, likely, hidden in zip(scores, logliks, states, strict=True):
        assert row == pytest.approx(hidden @ head[:, 0] + metadata["base"][0] * np.array(likely), rel=1e-4, abs=1e-4)
    held_out = rewards.scorer.held_out(name)[GROUPS[0].component]
    assert [one.rewards for one in held_out] == [list(group.rewards) for group in GROUPS]
    assert [one.example_id for one in held_out] == [group.example_id for group in GROUPS]
    assert [one.logliks for one in held_out] == [pytest.approx(row, rel=1e-4) for row in logliks]
    assert {len(one.scores) - len(one.agreement) for one in held_out} == {0}
    assert rewards.scorer.held_out("none of that name") == {}
    nothing, empty = rewards.trainer.train(SYSTEM, None, [], (), epochs=1, seed=0)
    [row] = rewards.scorer.scores(nothing, texts(GROUPS[:1]))
    assert empty["history"] == [] and row == pytest.approx(empty["base"][0] * np.array(logliks[0]))
    assert rewards.scorer.scores(LIKELIHOOD, texts(GROUPS)) == logliks
    rewards.scorer.check(LIKELIHOOD)
    tape.close()
