import dataclasses

import jax
import numpy as np
import pytest
import tiny

from optimas_jax.engine.multi_lora import AdapterStore, make_stack
from optimas_jax.engine.sampler import Sampler, SampleRequest
from optimas_jax.models.backbone import init_lora
from optimas_jax.models.config import LoraConfig
from optimas_jax.models.lora import merge_lora

CONFIGS = {
    "first": LoraConfig(rank=4, alpha=8.0),
    "second": LoraConfig(rank=2, alpha=1.0, last_layers=1),
    "third": LoraConfig(rank=3, alpha=3.0, targets=("q", "v", "down")),
}


def weights(base, name):
    return tiny.random_lora(init_lora(base, CONFIGS[name], jax.random.key(0)), seed=len(name))


def loaded(sampler, *names):
    for name in names:
        sampler.adapters.load(name, CONFIGS[name], weights(sampler.network.config, name))
    return sampler


def merged(sampler, name):
    """The same model with the adapter merged into its weights."""
    if not name:
        return sampler
    params = merge_lora(sampler.params, weights(sampler.network.config, name), CONFIGS[name].scale)
    return Sampler(sampler.network, params, sampler.tokenizer)


def requests(adapter="", count=3):
    """Prompts that share their beginning, whatever the adapter."""
    rng = np.random.default_rng(0)
    shared = rng.integers(5, 500, 40).tolist()
    return [
        SampleRequest((*shared, *rng.integers(5, 500, 5 + 3 * n).tolist()), 12, adapter=adapter) for n in range(count)
    ]


def test_requests_with_different_adapters_share_a_batch():
    sampler = loaded(tiny.sampler(), *CONFIGS)
    names = ["", *CONFIGS]
    mixed = [request for group in zip(*(requests(name) for name in names), strict=True) for request in group]
    samples = sampler.generate(mixed)
    answers = set()
    for name in names:
        expected = merged(tiny.sampler(), name).generate(requests())
        mine = [sample for sample, request in zip(samples, mixed, strict=True) if request.adapter == name]
        for one, other in zip(mine, expected, strict=True):
            assert one.ids == other.ids
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-3)
        answers.add(mine[0].ids)
    assert len(answers) == len(names)


def test_what_one_adapter_left_is_not_read_by_another():
    sampler = loaded(tiny.sampler(), "first", "third")
    for name in ("first", "third", "", "first"):
        [sample] = sampler.generate(requests(name, 1))
        [expected] = merged(tiny.sampler(), name).generate(requests(count=1))
        assert sample.ids == expected.ids


def test_a_request_in_flight_keeps_its_adapter():
    sampler = loaded(tiny.sampler(), "first", "third")
    [expected] = sampler.generate(requests("first", 1))
    row = sampler.row_request(requests("first", 1)[0])
    sampler.adapters.load("first", CONFIGS["third"], weights(sampler.network.config, "third"))
    sampler.adapters.unload("third")
    batch = sampler.batch()
    batch.admit([(0, row)])
    [(_, tokens, _)] = batch.step()
    assert tuple(tokens.tolist()) == expected.ids


def test_the_base_alone_has_no_adapters_to_multiply_with():
    sampler = loaded(tiny.sampler(), "first")
    assert sampler.adapters.stack([None, None]) is None


def test_adapters_side_by_side():
    base = tiny.sampler().network.config
    store = AdapterStore(base)
    for name, config in CONFIGS.items():
        store.load(name, config, weights(base, name))
    stack = store.stack([store.get("third"), None, store.get("first")])
    assert [adapter.name for adapter in stack.adapters] == ["first", "third"]
    assert stack.config.rank == 8  # 4 + 3, rounded up
    gate = stack.gate([None, store.get("third"), store.get("first")])
    np.testing.assert_array_equal(gate[0], np.zeros(8))
    np.testing.assert_array_equal(gate[1], [0, 0, 0, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(gate[2], [2, 2, 2, 2, 0, 0, 0, 0])
    assert store.stack([store.get("first"), store.get("third")]) is stack
    assert not np.asarray(stack.params["layers"][0]["up"]["lora_a"])[:, 4:].any()  # the third has none


def test_unknown_adapters_are_named():
    sampler = loaded(tiny.sampler(), "first")
    with pytest.raises(ValueError, match="unknown adapter 'other'; loaded are first"):
        sampler.generate(requests("other", 1))
    with pytest.raises(ValueError, match="unknown adapter 'other'"):
        sampler.adapters.unload("other")


def test_adapters_of_another_base_or_rank_are_refused():
    base = tiny.sampler().network.config
    store, lora = AdapterStore(base), weights(base, "first")
    with pytest.raises(ValueError, match="made for another base or rank"):
        store.load("x", dataclasses.replace(CONFIGS["first"], rank=8), lora)
    with pytest.raises(ValueError, match="its configuration says"):
        store.load("x", dataclasses.replace(CONFIGS["first"], targets=("q",)), lora)
    deeper = dataclasses.replace(base, num_layers=base.num_layers - 1)
    with pytest.raises(ValueError, match=r"adapts layers \[\d\]"):
        AdapterStore(deeper).load("x", CONFIGS["first"], lora)
    wider = dataclasses.replace(base, mlp_dim=2 * base.mlp_dim)
    with pytest.raises(ValueError, match="made for another base"):
        AdapterStore(wider).load("x", CONFIGS["first"], lora)
    assert store.names == []


def test_a_stack_of_one_is_that_adapter():
    base = tiny.sampler().network.config
    store = AdapterStore(base)
    store.load("second", CONFIGS["second"], weights(base, "second"))
    stack = make_stack(base, [store.get("second")])
    assert stack.config.first(base.num_layers) == base.num_layers - 1
    assert list(stack.params["layers"]) == [base.num_layers - 1]
