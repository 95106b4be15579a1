import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from optimas_jax.engine.batching import ContinuousBatch
from optimas_jax.engine.decode_batch import DecodeBatch
from optimas_jax.engine.memory import wanted_slots
from optimas_jax.engine.prefill import Prefiller
from optimas_jax.engine.sampler import ContextOverflow, SampleRequest
from optimas_jax.engine.sampling import Rows, decode, empty_cache, sample_tokens
from optimas_jax.engine.stop_texts import StopTexts, answer_text, certain, crossing
from optimas_jax.models.backbone import merge_model
from optimas_jax.models.cpu import weight_first
from optimas_jax.models.flat import bucket
from optimas_jax.models.forward import _run_layer, forward
from optimas_jax.models.layout import BLOCK
from optimas_jax.models.numerics import matmul


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
    hidden = forward(sampler.network, sampler.params, *tiny.plain(ids))
    return jax.nn.log_softmax(merge_model(sampler.network, sampler.params).logits(hidden))


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


@pytest.mark.parametrize("shape", [(192, 576), (1536, 576), (576, 1536)])
def test_products_of_few_rows_have_the_same_bits_in_every_size_of_a_batch(shape):
    rng, product, sizes = np.random.default_rng(0), jax.jit(weight_first), tiny.F32.decode_rows
    weight, x = (rng.normal(size=size).astype(np.float32) for size in (shape, (sizes[-1], shape[1])))
    whole = product(x, weight)
    np.testing.assert_allclose(whole, matmul(x, weight), atol=1e-3)
    for rows in sizes:
        np.testing.assert_array_equal(product(x[:rows], weight), whole[:rows])


def test_what_is_kept_of_earlier_prompts_changes_nothing(sampler):
    """Keys and values of what prompts share are computed once; every request gets the bits that it gets alone."""
    rng = np.random.default_rng(1)
    prefixes = [tuple(rng.integers(1, 500, size).tolist()) for size in (20, 70, 130)]
    everything = [
        dataclasses.replace(one, prompt_ids=prefixes[i % 3] + one.prompt_ids)
        for i, one in enumerate(requests(sampler, 15))
    ]
    together = tiny.sampler().generate(everything)
    assert together == [tiny.sampler().generate([one])[0] for one in everything]
    warm = tiny.sampler()
    assert warm.generate(everything) == together
    computed = tokens_computed(warm, everything)
    assert computed <= 16 * len(everything)  # all but the last block of each
    assert warm.generate(everything[::-1]) == together[::-1]


def test_a_full_prefix_cache_changes_nothing(sampler):
    small = tiny.sampler(dataclasses.replace(tiny.F32, prefix_tokens=256))
    everything = requests(sampler, 20)
    assert small.generate(everything) == sampler.generate(everything)
    assert small.generate(everything) == sampler.generate(everything)


def tokens_computed(sampler, everything):
    """Tokens that prefilling these prompts would compute now."""
    [table] = sampler._prefiller.prefixes.tables
    return sum(len(one.prompt_ids) - 1 - len(table.match(one.prompt_ids[:-1])) * BLOCK for one in everything)


def test_equal_prompts_are_prefilled_once(sampler, monkeypatch):
    passes, run = [], Prefiller._compute

    def counted(self, one):
        passes.append(len(one.members[0]))
        return run(self, one)

    monkeypatch.setattr(Prefiller, "_compute", counted)
    same = [SampleRequest((5, 6, 7, 8), 8, temperature=1.0, seed=seed) for seed in range(6)]
    together = sampler.generate([*same, SampleRequest((5, 6, 7, 9), 8)])
    assert passes == [1]  # the last one differs in the last token only, which decoding reads
    assert together[:6] == [sampler.generate([one])[0] for one in same]


def test_prompts_that_begin_alike_wait_for_the_first_of_them(monkeypatch):
    passes, run = [], Prefiller._compute

    def counted(self, one):
        passes.append([(part.length, part.start) for part in one.sequences[0]])
        return run(self, one)

    monkeypatch.setattr(Prefiller, "_compute", counted)
    common = tuple(range(1, 101))
    fresh = tiny.sampler()
    fresh.generate([SampleRequest((*common, 200 + i, 300, 400), 4) for i in range(5)])
    assert passes == [[(102, 0)], [(102, 96)] * 4]


def test_a_failed_pass_leaves_nothing_behind(sampler, monkeypatch):
    def fail(*arguments, **settings):
        raise MemoryError

    fresh = tiny.sampler()
    [one] = requests(sampler, 1)
    monkeypatch.setattr("optimas_jax.engine.prefill.keys_values", fail)
    with pytest.raises(MemoryError):
        fresh.generate([one])
    monkeypatch.undo()
    assert tokens_computed(fresh, [one]) == len(one.prompt_ids) - 1
    assert fresh.generate([one]) == sampler.generate([one])


def test_requests_join_and_leave_a_running_batch(sampler):
    """One after another, in any company: the answers are those of each request alone."""
    everything = requests(sampler, 14)
    batch, samples = sampler.batch(), {}
    waiting = [(index, sampler.row_request(one)) for index, one in enumerate(everything)]
    turn = 0
    while len(samples) < len(everything):
        turn += 1
        admitted = batch.admit(waiting[:turn])
        waiting = [one for one in waiting if one[0] not in admitted]
        samples |= {index: sampler.sample(everything[index], *rest) for index, *rest in batch.step()}
    assert turn > 2
    alone = sampler.generate(everything)
    assert [samples[index] for index in range(len(everything))] == alone


def test_lanes_change_speed_and_nothing_else(sampler, monkeypatch):
    monkeypatch.setattr("optimas_jax.engine.batching._ALONE", 4)
    monkeypatch.setattr("optimas_jax.engine.batching._BESIDE", 4)
    monkeypatch.setattr("optimas_jax.engine.prefill.WORTH_DEALING", 64)
    everything = requests(sampler, 14)
    two = tiny.sampler(dataclasses.replace(tiny.F32, lanes=2))
    batch = two.batch()
    batch.admit([(index, two.row_request(one)) for index, one in enumerate(everything)])
    assert all(lane.active for lane in batch._batches)
    assert two.generate(everything) == sampler.generate(everything)


def test_a_batch_forgets_what_it_is_told_to_forget(sampler):
    batch = sampler.batch()
    [one] = requests(sampler, 1)
    batch.admit([("first", sampler.row_request(one))])
    batch.clear()
    assert batch.active == []
    assert batch.step() == []
    batch.admit([("second", sampler.row_request(one))])
    assert batch.active == ["second"]


def test_requests_too_large_for_the_batch_wait_for_room():
    sampler = tiny.sampler()
    batch: ContinuousBatch = sampler.batch()
    small = [(i, sampler.row_request(SampleRequest((i + 1, 2), 20))) for i in range(3)]
    large = ("large", sampler.row_request(SampleRequest((3,) * 200, 20)))
    assert batch.admit([*small, large]) == [0, 1, 2]
    assert batch.admit([large, small[0]]) == [0]  # what fits goes first
    assert batch.admit([large]) == ["large"]  # nothing else waits: the batch grows
    finished = {}
    while batch.active:
        finished |= {key: tokens.tolist() for key, tokens, _ in batch.step()}
    assert finished["large"] == list(sampler.generate([SampleRequest((3,) * 200, 20)])[0].ids)


def test_a_batch_has_slots_for_what_was_answered_and_some_more(sampler, monkeypatch):
    """With a limit of 280 tokens: slots for the first 16, then four times as many; fewer once it is alone again."""
    monkeypatch.setattr("optimas_jax.engine.memory._FIRST_TOKENS", 16)
    for module in ("memory", "decode_batch"):
        monkeypatch.setattr(f"optimas_jax.engine.{module}.slot_bucket", lambda slots: slots)
    long, short = SampleRequest((1, 2), 280, 1.0, seed=4), SampleRequest((7, 8, 9), 10, 1.0, seed=5)
    rows = {key: sampler.row_request(request) for key, request in (("long", long), ("short", short))}
    batch, finished, slots = sampler.own_batch(), {}, []
    for entry in rows.items():
        batch.admit([entry])
    while batch.active:
        finished |= {key: tokens.tolist() for key, tokens, _ in batch.step(40)}
        slots += [batch._batches[0].shape[1]]
    answer = list(sampler.generate([long])[0].ids)
    assert finished == {"long": answer, "short": list(sampler.generate([short])[0].ids)}
    needed = {0: 17, 16: 65, 64: 257, 256: 281}  # by tokens so far
    assert [*dict.fromkeys(slots)] == [room for tokens, room in needed.items() if tokens < len(answer)]
    batch.admit([("long", rows["long"])])
    for _ in range(3):
        batch.step(200)
    batch.admit([("short", rows["short"])])
    assert batch._batches[0].shape[1] == 257
    batch.drop(["long"])
    batch.step(1)
    assert batch._batches[0].shape[1] == 12


def test_requests_that_keep_coming_do_not_pass_a_large_one_for_ever(monkeypatch):
    """Under steady load some small request always fits. The batch has no room for the large one beside others."""
    monkeypatch.setattr("optimas_jax.engine.decode_batch._MOST_PASSES", 3)
    sampler = tiny.sampler(dataclasses.replace(tiny.F32, cache_tokens=1024))
    batch: ContinuousBatch = sampler.batch()
    wanted = {i: SampleRequest((i + 1, 2), 12 + i % 5) for i in range(60)} | {"large": SampleRequest((3,) * 300, 20)}
    rows = {key: sampler.row_request(one) for key, one in wanted.items()}
    coming, waiting, finished, passes = iter(range(60)), [], {}, 0
    batch.admit([(key, rows[key]) for key in (next(coming) for _ in range(6))])
    waiting.append(("large", rows["large"]))
    while "large" in dict(waiting):
        waiting += [(key, rows[key]) for key in (next(coming), next(coming))]
        admitted = batch.admit(waiting)
        waiting = [one for one in waiting if one[0] not in admitted]
        passes += bool(admitted) and admitted[0] != "large"
        finished |= {key: tokens.tolist() for key, tokens, _ in batch.step()}
    assert passes == 3
    while batch.active:
        admitted = batch.admit(waiting)
        waiting = [one for one in waiting if one[0] not in admitted]
        finished |= {key: tokens.tolist() for key, tokens, _ in batch.step()}
    alone = sampler.generate([wanted[key] for key in finished])
    assert list(finished.values()) == [list(sample.ids) for sample in alone]


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
        assert cut.text == free.text[: free.text.find(stop)]
        assert cut.finish == "stop"
        assert len(cut.ids) <= len(free.ids)


def stopping_requests(sampler, limit=40):
    """Answers without a stop text, and requests for the same with stop texts from their middle."""
    free = sampler.generate([SampleRequest((i + 1, i + 2), limit, temperature=1.5, seed=i) for i in range(8)])
    wanted = []
    for index, sample in enumerate(free):
        for start, size in ((2, 2), (4, 3), (6, 8)):
            stop = sample.text[start : start + size]
            if len(stop) == size and "\ufffd" not in stop:
                wanted.append((sample, SampleRequest((index + 1, index + 2), limit, 1.5, seed=index, stop=(stop,))))
    return wanted


def test_a_stop_text_that_crosses_tokens_ends_the_answer_at_once(sampler):
    wanted = stopping_requests(sampler)
    answers = sampler.generate([request for _, request in wanted])
    across = 0
    for (free, request), answer in zip(wanted, answers, strict=True):
        [stop] = request.stop
        held = next(n for n in range(len(free.ids) + 1) if stop in answer_text(sampler.tokenizer, free.ids[:n]))
        assert answer.ids == free.ids[:held]  # what is billed, and trained on
        assert answer.logprobs == free.logprobs[:held]
        assert answer.text == free.text[: free.text.find(stop)]
        assert answer.finish == "stop"
        across += not sampler._stop_ids(request.stop)[answer.ids[-1]]
    assert across > 2


def test_decoding_ends_soon_after_a_stop_text(sampler, monkeypatch):
    [(_, request), *_] = [pair for pair in stopping_requests(sampler) if len(pair[0].ids) == 40]
    counts, run = [], DecodeBatch._decode

    def counted(self, *arguments):
        run(self, *arguments)
        counts.append(int(self._rows.count.max()))

    monkeypatch.setattr(DecodeBatch, "_decode", counted)
    [answer] = sampler.generate([dataclasses.replace(request, max_tokens=300)])
    assert max(counts) < len(answer.ids) + 16
    counts.clear()
    sampler.generate([dataclasses.replace(request, stop=("\n",))])
    assert len(counts) == 1  # one byte is inside of one token: nothing to look for on the host


def test_special_tokens_do_not_hide_a_stop_text(sampler):
    tokenizer = sampler.tokenizer
    silent = next(token for token, text in enumerate(tokenizer.token_texts) if not text)
    ids = [*tokenizer.encode("so a"), *[silent] * 9, *tokenizer.encode("bc and")]
    stops = StopTexts(("ab",), tokenizer)
    held = next(n for n in range(len(ids)) if "ab" in tokenizer.decode(ids[:n]))
    for checked in range(held):
        assert stops.stopped_at(ids, checked) == held
    assert StopTexts(("abd",), tokenizer).stopped_at(ids, 0) is None
    assert crossing(("\n", "\n\n", "é")) == ("\n\n", "é")


@pytest.mark.parametrize(
    ("text", "sure"),
    [
        ("one", "one"),
        ("one E", "one "),
        ("one EN", "one "),
        ("one END", "one "),
        ("one END two", "one "),
        ("one E two", "one E two"),
        ("one \n", "one "),
        ("caf\ufffd", "caf"),
    ],
)
def test_what_may_begin_a_stop_text_is_not_certain(text, sure):
    assert certain(text, ("END", "\n\n")) == sure


def test_white_space_before_the_answer_does_not_end_it(sampler):
    """A model whose every logit is the embedding of the last token: after a newline comes a newline."""
    vocab = sampler.network.config.vocab_size
    newline, other = sampler.tokenizer.encode("\n")[0], sampler.tokenizer.encode("q")[0]
    params = jax.tree.map(jnp.zeros_like, sampler.params)
    table = np.zeros(params["embed"].shape, np.float32)
    table[newline, 0] = table[other, 1] = 100.0
    params["embed"] = jnp.asarray(table)
    params["final_norm"] = sampler.params["final_norm"]
    stops, blank = np.zeros((8, vocab), np.int8), np.zeros((vocab,), bool)
    stops[:, newline], blank[newline] = 1, True
    rows = Rows(
        limits=np.asarray([3, 3, 3, 0, 0, 0, 0, 0], np.int32),
        seeds=np.zeros(8, np.uint32),
        temperatures=np.zeros(8, np.float32),
        top_p=np.ones(8, np.float32),
        stops=stops,
        token=np.asarray([newline, newline, other, 0, 0, 0, 0, 0], np.int32),
        position=np.zeros(8, np.int32),
        count=np.zeros(8, np.int32),
        begun=np.asarray([False, True] + [False] * 6),
        done=np.asarray([False] * 3 + [True] * 5),
        tokens=np.zeros((8, 64), np.int32),
        logprobs=np.zeros((8, 64), np.float32),
    )
    cache = empty_cache(sampler.network, 8, 64)
    out, _ = decode(sampler.network, None, params, {}, None, cache, rows, blank, np.int32(8), np.int32(100))
    assert out.tokens[0, :3].tolist() == [newline] * 3  # the answer had not begun: the limit ended it
    assert out.count.tolist() == [3, 1, 3, 0, 0, 0, 0, 0]  # row 1 had begun: the first newline ended it
    assert out.tokens[2, :3].tolist() == [other] * 3
    assert out.done.all()


def test_a_prompt_longer_than_the_context_is_refused(sampler):
    with pytest.raises(ContextOverflow, match=r"prompt of 8190 tokens and answer of up to 3 exceed.*context of 8192"):
        sampler.generate([SampleRequest((1,) * 8190, 3)])


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"top_p": 0.0}, {"temperature": -1.0}, {"prompt_ids": ()}])
def test_impossible_requests_are_refused(sampler, wrong):
    with pytest.raises(ValueError, match="a request needs"):
        sampler.generate([SampleRequest(**{"prompt_ids": (1,), "max_tokens": 1, **wrong})])


def test_compilations_equal_the_buckets_used(sampler):
    lengths = (3, 20, 64, 65, 90, 96, 100, 128, 129, 200)
    sampler.generate([SampleRequest((7,) * 4, 260)])  # slots that other tests use, too
    layers, decodes = _run_layer._cache_size(), decode._cache_size()
    for n in lengths:
        sampler.generate([SampleRequest((7,) * (n + 1), 400)])
    # One prompt in one row: as many slots as tokens.
    assert _run_layer._cache_size() - layers <= len({bucket(n, 64) for n in lengths})
    slots = {wanted_slots(n + 1, 400, count) for n in lengths for count in (0, 256)}
    assert decode._cache_size() - decodes == len(slots - {wanted_slots(4, 260)}) == 2


@pytest.mark.parametrize(("least", "per_doubling", "waste"), [(1, 2, 0.5), (16, 2, 0.5), (64, 4, 0.25)])
def test_buckets_hold_their_sizes_and_waste_little(least, per_doubling, waste):
    for size in range(1, 5000):
        room = bucket(size, least, per_doubling)
        assert room >= size
        assert bucket(room, least, per_doubling) == room
        assert room - size < least or room <= (1 + waste) * size


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


@pytest.mark.parametrize("cpu_forms", [False, True])
@pytest.mark.parametrize("vocab", [1, 5, 128, 300, 1024])
def test_temperature_zero_takes_the_first_of_the_largest(vocab, cpu_forms):
    logits = np.random.default_rng(vocab).integers(-3, 4, (5, vocab)).astype(np.float32)
    zeros, ones = np.zeros(5, np.float32), np.ones(5, np.float32)
    tokens = sample_tokens(logits, zeros, ones, zeros, cpu_forms)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))


def test_temperature_zero_and_extreme_logits():
    logits = jnp.asarray([[-1e9, 3.0, 2.999], [1e4, -1e4, 0.0]])
    tokens = sample_tokens(logits, jnp.asarray([0.0, 5.0]), jnp.ones(2), jnp.asarray([0.5, 0.999999]))
    assert tokens.tolist() == [1, 0]
