import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from optimas_jax.models.sampler import ContextOverflow, SampleRequest, cache_bucket, length_bucket
from optimas_jax.models.sampling import decode, prefill, sample_tokens


@pytest.fixture(scope="module")
def sampler():
    return tiny.sampler()


def requests(sampler, count=12, **settings):
    rng = np.random.default_rng(0)
    settings = {"max_tokens": 10, **settings}
    return [
        SampleRequest(
            tuple(rng.integers(1, 500, rng.integers(1, 150)).tolist()),
            temperature=(0.0, 0.7, 1.3)[i % 3],
            top_p=(1.0, 0.8)[i % 2],
            seed=i,
            **settings,
        )
        for i in range(count)
    ]


def full_logprobs(sampler, ids):
    model = nnx.merge(sampler.graphdef, sampler.params)
    row = np.zeros((1, 192), np.int32)
    row[0, : len(ids)] = ids
    hidden, _ = model.hidden(row, np.arange(192)[None], None)
    return jax.nn.log_softmax(model.logits(hidden)[0])


def test_cached_decoding_equals_the_full_forward_pass(sampler):
    for request in requests(sampler, 4, stop=()):
        sample = sampler.generate([request])[0]
        ids = [*request.prompt_ids, *sample.ids]
        logprobs = full_logprobs(sampler, ids)
        start = len(request.prompt_ids) - 1
        expected = [float(logprobs[start + i, token]) for i, token in enumerate(sample.ids)]
        np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)
        if request.temperature == 0:
            assert list(sample.ids) == [int(logprobs[start + i].argmax()) for i in range(len(sample.ids))]


def test_a_request_gets_the_same_bits_whatever_shares_its_batch(sampler):
    everything = requests(sampler, 20)
    together = sampler.generate(everything)
    assert [sampler.generate([request])[0] for request in everything[:6]] == together[:6]
    assert sampler.generate(everything[::-1]) == together[::-1]
    assert sampler.generate(everything[5:14]) == together[5:14]


def test_seeds_name_the_stream(sampler):
    prompt = (5, 6, 7)
    first, again, other = sampler.generate(
        [SampleRequest(prompt, 12, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    )
    assert first == again
    assert first.ids != other.ids
    greedy = sampler.generate([SampleRequest(prompt, 12, seed=seed) for seed in (1, 2)])
    assert greedy[0] == greedy[1]


def test_limits_are_each_requests_own(sampler):
    samples = sampler.generate([SampleRequest((9, 8, 7), n, temperature=2.0, seed=3) for n in (1, 3, 9)])
    lengths = [len(sample.ids) for sample in samples]
    assert all(length <= limit for length, limit in zip(lengths, (1, 3, 9), strict=True))
    assert samples[2].ids[: lengths[1]] == samples[1].ids
    assert samples[0].finish == "length" or samples[0].ids[-1] in sampler.tokenizer.eos_ids


def test_stop_texts_end_the_answer_and_are_cut_off(sampler):
    prompts = [SampleRequest((i + 1, i + 2), 30, temperature=1.5, seed=i) for i in range(8)]
    for request, free in zip(prompts, sampler.generate(prompts), strict=True):
        if not (stop := next((char for char in free.text[2:] if char.isascii() and char.isalnum()), "")):
            continue
        [cut] = sampler.generate([SampleRequest(**{**vars(request), "stop": (stop,)})])
        place = free.text.find(stop)
        assert cut.text == free.text[:place]
        assert cut.finish == "stop"
        assert len(cut.ids) <= len(free.ids)


def test_white_space_before_the_answer_does_not_end_it(sampler):
    newline = sampler.tokenizer.encode("\n")[0]
    other = sampler.tokenizer.encode("q")[0]
    vocab = sampler.config.vocab_size
    cache = tuple((jnp.zeros((8, 2, 16, 96)), jnp.zeros((8, 2, 96, 16))) for _ in range(sampler.config.num_layers))
    logits = jnp.full((8, vocab), -50.0).at[0, newline].set(50.0).at[1, other].set(50.0)
    stops = np.zeros((8, vocab), np.int8)
    stops[:, newline] = 1
    blank = np.zeros((vocab,), bool)
    blank[newline] = True
    rows = {
        "logits": logits,
        "lengths": np.ones(8, np.int32),
        "limits": np.asarray([3, 3, 0, 0, 0, 0, 0, 0], np.int32),
        "seeds": np.zeros(8, np.uint32),
        "temperatures": np.zeros(8, np.float32),
        "top_p": np.ones(8, np.float32),
        "stops": stops,
        "blank": blank,
    }
    out, _ = decode(sampler.graphdef, sampler.params, cache, rows, 64)
    assert out["tokens"][0, 0] == newline
    assert out["counts"][0] > 1  # the newline came first: the answer had not begun
    assert out["counts"].tolist()[2:] == [0] * 6


def test_a_prompt_longer_than_the_context_is_refused(sampler):
    with pytest.raises(ContextOverflow, match=r"prompt of 8190 tokens and answer of up to 3 exceed.*context of 8192"):
        sampler.generate([SampleRequest((1,) * 8190, 3)])


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"top_p": 0.0}, {"temperature": -1.0}, {"prompt_ids": ()}])
def test_impossible_requests_are_refused(sampler, wrong):
    with pytest.raises(ValueError, match="a request needs"):
        sampler.generate([SampleRequest(**{"prompt_ids": (1,), "max_tokens": 1, **wrong})])


def test_compilations_equal_the_buckets_used(sampler):
    lengths = (3, 20, 64, 65, 90, 96, 100, 128, 160)
    prefills, decodes = prefill._cache_size(), decode._cache_size()
    buckets = {length_bucket(n) for n in lengths}
    for n in lengths:
        sampler.generate([SampleRequest((7,) * n, 300)])  # a token limit that no other test uses
    assert prefill._cache_size() - prefills <= len(buckets)
    used = {cache_bucket(n) for n in lengths}
    assert decode._cache_size() - decodes == len(used)


@pytest.mark.parametrize("bucket", [length_bucket, cache_bucket])
def test_buckets_hold_their_lengths_and_waste_little(bucket):
    for length in range(1, 5000):
        size = bucket(length)
        assert size >= length
        assert bucket(size) == size
        assert length <= 128 or size <= 1.5 * length


def test_sampling_follows_the_distribution():
    logits = jnp.log(jnp.asarray([0.5, 0.25, 0.15, 0.1] + [0.0] * 300))[None].repeat(4000, 0)
    uniform = jax.random.uniform(jax.random.key(0), (4000,))
    tokens = sample_tokens(logits, jnp.ones(4000), jnp.ones(4000), uniform)
    np.testing.assert_allclose(np.bincount(tokens, minlength=4) / 4000, [0.5, 0.25, 0.15, 0.1], atol=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.6, 2), (0.75, 2), (0.8, 3), (1.0, 4)])
def test_top_p_keeps_the_smallest_sufficient_set(top_p, kept):
    logits = jnp.log(jnp.asarray([0.1, 0.5, 0.15, 0.25]))[None].repeat(400, 0)
    uniform = (jnp.arange(400) + 0.5) / 400
    tokens = sample_tokens(logits, jnp.ones(400), jnp.full(400, top_p), uniform)
    assert set(np.asarray(tokens).tolist()) == set([1, 3, 2, 0][:kept])


def test_temperature_zero_and_extreme_logits():
    logits = jnp.asarray([[-1e9, 3.0, 2.999], [1e4, -1e4, 0.0]])
    tokens = sample_tokens(logits, jnp.asarray([0.0, 5.0]), jnp.ones(2), jnp.asarray([0.5, 0.999999]))
    assert tokens.tolist() == [1, 0]
