"""When tuning of weights goes on, what it keeps, and when it ends: with a policy of numbers."""

import pytest

from optimas_jax.core.schema import ConfigError, from_dict
from optimas_jax.policy.config import PolicyConfig
from optimas_jax.policy.engine import Update
from optimas_jax.policy.tune import count_updates, tune


class Numbers:
    """Adapters are numbers: an update adds one, ``kl`` and ``scores`` are looked up by them."""

    def __init__(self, scores, kl=None, skipped=()):
        self.scores, self.kls, self.skipped, self.validated = scores, kl or {}, skipped, []
        self.updated = []

    def rollout(self, adapter, number):
        assert int(adapter) == number  # a rollout never runs on a stale adapter
        return adapter

    def update(self, state, rollout, number):
        assert state == f"state {rollout}"
        self.updated.append(int(rollout))
        adapter = str(int(rollout) + 1)
        metrics = {"kl": self.kl(state, rollout), "skipped": float(number in self.skipped)}
        return Update(f"state {adapter}", adapter, metrics)

    def kl(self, state, rollout):
        return self.kls.get(int(rollout), 0.0)

    def validate(self, adapter):
        self.validated.append(int(adapter))
        return self.scores.get(int(adapter), 0.0)


def run(policy, updates=6, every=2, budget=1.0):
    return tune(policy, Update("state 0", "0", {}), updates=updates, validate_every=every, kl_budget=budget)


def test_the_best_validated_adapter_is_kept():
    policy = Numbers({2: 0.5, 4: 0.9, 6: 0.7}, kl={0: 0.125, 4: 0.25})
    tuned = run(policy)
    assert (tuned.adapter, tuned.score, tuned.before, tuned.updates) == ("4", 0.9, 0.0, 6)
    assert tuned.kl == 0.25
    assert policy.validated == [0, 2, 4, 6]


def test_the_last_adapter_is_looked_at_too():
    policy = Numbers({5: 0.9})
    assert run(policy, updates=5).adapter == "5"
    assert policy.validated == [0, 2, 4, 5]


def test_without_a_better_one_the_first_is_kept():
    tuned = run(Numbers({0: 0.5, 2: 0.5, 4: 0.4}, kl={0: 0.125}))
    assert (tuned.adapter, tuned.kl) == ("0", 0.125)


def test_tuning_ends_where_the_budget_ends():
    policy = Numbers({2: 0.5, 4: 0.9}, kl={3: 0.5, 4: 1.5})
    tuned = run(policy)
    assert tuned.adapter == "2"  # 4 would be better, and is too far away
    assert policy.validated == [0, 2]
    assert tuned.updates == 4


def test_nothing_is_scored_or_trained_only_to_be_dropped():
    """An update scores its rollout. The last rollout, and one whose KL is too large, serve KL alone."""
    policy = Numbers({})
    run(policy, updates=4)
    assert policy.updated == [0, 1, 2, 3]
    policy = Numbers({}, kl={3: 1.5})
    run(policy)
    assert policy.updated == [0, 1, 2]


def test_the_last_adapter_must_be_within_the_budget():
    assert run(Numbers({6: 0.9}, kl={6: 1.5})).adapter == "0"


def test_updates_that_learned_nothing_are_counted_and_told():
    tuned = run(Numbers({}, skipped=(1, 4)))
    assert (tuned.updates, tuned.learned) == (6, 4)
    assert count_updates(tuned) == "6 updates, 2 of which learned nothing (all answers of a prompt scored alike),"
    assert count_updates(run(Numbers({}))) == "6 updates"


@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "reinforce"])
def test_one_answer_a_prompt_is_refused_where_it_enters(algorithm):
    with pytest.raises(ConfigError, match=r"samples is 1: an answer is scored against the other.*2 or more"):
        from_dict(PolicyConfig, {"samples": 1, "loss": {"algorithm": algorithm}}, "config.policy")


def test_a_batch_of_a_policy_has_no_setting_that_only_local_rewards_read():
    assert from_dict(PolicyConfig, {"batch": {"tokens": 768}}, "config.policy").batch.tokens == 768
    for name in ("group_tokens", "candidates"):
        with pytest.raises(ConfigError, match=name):
            from_dict(PolicyConfig, {"batch": {name: 8}}, "config.policy")
