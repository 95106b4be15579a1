"""Token ids equal reference tokenizers' (see third_party/make_golden.py); special tokens come from templates alone."""

import functools
import gzip
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from optimas_jax.checkpoints.sources import WeightsError, resolve
from optimas_jax.checkpoints.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_gguf
from optimas_jax.checkpoints.weights import RANDOM_CONFIG

GOLDEN = Path(__file__).parents[1] / "golden"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("Ġ", "a"), ("a", "b"), ("ab", "c"), ("1", "2"), ("12", "3"), ("e", "a")]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_end|>>"]
TOKENS = [*ALPHABET, *("".join(pair) for pair in MERGES), "1234", *CONTROL, "<think>"]


def gguf_metadata(pre: str = "gpt-2", **changes) -> dict:
    """A byte-level vocabulary with a few merges as GGUF metadata."""
    metadata = {
        "model": "gpt2",
        "pre": pre,
        "tokens": TOKENS,
        "token_type": [1] * (len(TOKENS) - 5) + [3, 3, 3, 3, 4],
        "merges": [" ".join(pair) for pair in MERGES],
        "eos_token_id": TOKENS.index("<|im_end|>"),
        **changes,
    }
    metadata = {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}
    return {"tokenizer.chat_template": CHATML, **metadata}


def write_folder(path: Path, **settings) -> Path:
    """The same vocabulary as a Hugging Face folder: tokenizer.json and tokenizer_config.json."""
    vocab = {token: index for index, token in enumerate(TOKENS[: -len(CONTROL) - 1])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in CONTROL])
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    path.mkdir(exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": CHATML, **settings}
    (path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    (path / "config.json").write_text("{}")
    return path


@functools.cache
def small() -> Tokenizer:
    return tokenizer_from_gguf(gguf_metadata())


def ids_of(tokenizer: Tokenizer, *tokens: str) -> list[int]:
    return [tokenizer.backend.convert_tokens_to_ids(token) for token in tokens]


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


# The embedded model's


@pytest.fixture(scope="module")
def smollm(embedded_gguf) -> Tokenizer:
    return load_tokenizer(resolve(str(embedded_gguf)))


@pytest.fixture(scope="module")
def stored() -> dict:
    return json.loads(gzip.decompress((GOLDEN / "smollm2_tokens.json.gz").read_bytes()))


@pytest.mark.embedded
def test_ids_of_a_thousand_strings(smollm, stored):
    differ = [text for text, ids in zip(stored["strings"], stored["ids"], strict=True) if smollm.encode(text) != ids]
    assert len(set(stored["strings"])) == 1000
    assert not differ


@pytest.mark.embedded
def test_decoding_gives_the_text_back(smollm, stored):
    """But for a few control characters, for which the model's vocabulary has no token and which are dropped."""
    lacking = {char for char in map(chr, range(128)) if not smollm.encode(char)}
    assert lacking <= set(map(chr, range(32))) - set("\t\n\r")
    for text in stored["strings"]:
        assert smollm.decode(smollm.encode(text)) == "".join(char for char in text if char not in lacking)


@pytest.mark.embedded
def test_chats_are_rendered_and_encoded_like_the_reference(smollm, stored):
    assert len(stored["chats"]) >= 5
    for chat in stored["chats"]:
        assert smollm.render_chat(chat["messages"]) == chat["text"]
        assert smollm.encode_chat(chat["messages"]) == chat["ids"]


@pytest.mark.embedded
def test_a_saved_folder_gives_the_ids_of_the_gguf_file(smollm, stored, tmp_path):
    smollm.backend.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    folder = load_tokenizer(resolve(str(tmp_path)))
    assert (folder.eos_ids, folder.pad_id) == (smollm.eos_ids, smollm.pad_id) == ((2, 0), 2)
    for text, ids in zip(stored["strings"], stored["ids"], strict=True):
        assert folder.encode(text) == ids
    for chat in stored["chats"]:
        assert folder.encode_chat(chat["messages"]) == chat["ids"]


@pytest.mark.embedded
def test_no_special_token_of_the_embedded_model_comes_from_text(smollm):
    special = set(smollm.backend.all_special_ids) | set(range(17))
    for index in range(17):
        token = smollm.backend.convert_ids_to_tokens(index)
        for text in (token, f"a {token} b", token + token, f"{token[:3]}{token}{token[3:]}"):
            ids = smollm.encode(text)
            assert not special & set(ids), text
            assert smollm.decode(ids) == text
            plain, chat = smollm.encode_chat(user("x")), smollm.encode_chat(user(text))
            assert [i for i in chat if i in special] == [i for i in plain if i in special], text
            assert smollm.backend.decode(chat) == smollm.render_chat(user(text))


# Special tokens


PIECES = st.lists(
    st.sampled_from([*CONTROL, "<|", "im_end", "|>", "<think>", "\ufdd0", "\ufdd1", " ", "é"]), max_size=6
)


@given(PIECES)
def test_text_never_becomes_a_special_token(pieces):
    tokenizer, text = small(), "".join(pieces)
    ids = tokenizer.encode(text)
    assert not set(ids) & set(ids_of(tokenizer, *CONTROL))
    assert tokenizer.decode(ids) == text


@given(PIECES, PIECES)
def test_special_tokens_of_a_chat_are_its_templates(first, second):
    tokenizer, texts = small(), ["".join(first), "".join(second)]
    start, end = ids_of(tokenizer, "<|im_start|>", "<|im_end|>")
    expected = []
    for text in texts:
        expected += [start, *tokenizer.encode("user\n" + text), end, *tokenizer.encode("\n")]
    expected += [start, *tokenizer.encode("assistant\n")]
    assert tokenizer.encode_chat([*user(texts[0]), *user(texts[1])]) == expected


def test_a_role_cannot_smuggle_special_tokens_either():
    tokenizer = small()
    ids = tokenizer.encode_chat([{"role": "x<|im_end|>", "content": ""}])
    assert ids.count(*ids_of(tokenizer, "<|im_end|>")) == 1


def test_one_character_special_tokens_are_kept_apart(tmp_path):
    write_folder(tmp_path, eos_token="☃", chat_template="{% for m in messages %}{{ m.content }}☃{% endfor %}")
    tokenizer = load_tokenizer(resolve(str(tmp_path)))
    (end,) = ids_of(tokenizer, "☃")
    assert tokenizer.encode_chat(user("a☃b")) == [*tokenizer.encode("a☃b"), end]
    assert end not in tokenizer.encode("a☃b")


def test_the_longer_of_two_special_tokens_is_meant(tmp_path):
    write_folder(tmp_path, chat_template="{% for m in messages %}{{ m.content }}<|im_end|>>{% endfor %}")
    tokenizer = load_tokenizer(resolve(str(tmp_path)))
    assert tokenizer.encode_chat(user("a")) == ids_of(tokenizer, "a", "<|im_end|>>")


def test_templates_see_messages_as_they_are(tmp_path):
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1] | trim }}<|im_end|>{% endfor %}"
    tokenizer = load_tokenizer(resolve(str(write_folder(tmp_path, chat_template=template))))
    expected = [*tokenizer.encode("b <|im_end|> c"), *ids_of(tokenizer, "<|im_end|>")]
    assert tokenizer.encode_chat(user("a</think>  b <|im_end|> c \n")) == expected


def test_added_tokens_that_are_not_special_are_matched_in_text():
    tokenizer = small()
    assert tokenizer.encode("a<think>") == ids_of(tokenizer, "a", "<think>")
    assert tokenizer.decode(tokenizer.encode("a<think>")) == "a<think>"


# Sources


def test_a_folder_and_a_gguf_file_of_one_vocabulary_agree(tmp_path):
    folder = load_tokenizer(resolve(str(write_folder(tmp_path))))
    texts = ["", "abc abc", "a 12 123", "<think>x<|im_end|>", "naïve 日本"]
    for text in texts:
        assert folder.decode(folder.encode(text)) == text
        assert folder.backend.convert_ids_to_tokens(folder.encode(text)) == small().backend.convert_ids_to_tokens(
            small().encode(text)
        )
    assert folder.render_chat(user("a")) == small().render_chat(user("a"))


def test_chat_ids_of_a_folder_equal_transformers(tmp_path):
    tokenizer = load_tokenizer(resolve(str(write_folder(tmp_path))))
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    messages = [{"role": "system", "content": "abc"}, *user(" 12 <think> é\n")]
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert tokenizer.encode_chat(messages) == expected


def test_every_token_that_ends_an_answer_is_known(tmp_path):
    write_folder(tmp_path, pad_token="<|endoftext|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    tokenizer = load_tokenizer(resolve(str(tmp_path)))
    end, text_end = ids_of(tokenizer, "<|im_end|>", "<|endoftext|>")
    assert tokenizer.eos_ids == (end, 1, 2, text_end)
    assert tokenizer.pad_id == text_end
    gguf = tokenizer_from_gguf(gguf_metadata(eot_token_id=7, eom_token_id=8))
    assert gguf.eos_ids == (*ids_of(gguf, "<|im_end|>"), 7, 8, *ids_of(gguf, "<|endoftext|>"))
    assert gguf.pad_id == gguf.eos_ids[0]


def test_a_template_in_a_file_of_its_own(tmp_path):
    write_folder(tmp_path, chat_template=None)
    with pytest.raises(WeightsError, match="has no chat template: use an instruction-tuned model"):
        load_tokenizer(resolve(str(tmp_path)))
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert load_tokenizer(resolve(str(tmp_path))).render_chat(user("a")) == small().render_chat(user("a"))


def test_folders_whose_tokenizer_cannot_be_read(tmp_path):
    with pytest.raises(WeightsError, match="names no end-of-sequence token"):
        load_tokenizer(resolve(str(write_folder(tmp_path, eos_token=None))))
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(WeightsError, match="the tokenizer could not be read"):
        load_tokenizer(resolve(str(tmp_path)))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"has no tokenizer\.json"):
        load_tokenizer(resolve(str(tmp_path)))


@pytest.mark.parametrize(
    ("pre", "text", "tokens"),
    [
        ("gpt-2", "12345", ["123", "4", "5"]),  # merges run through the whole number
        ("smollm", "12345", ["1", "2", "3", "4", "5"]),
        ("qwen2", "12345", ["1", "2", "3", "4", "5"]),
        ("llama-bpe", "12345", ["123", "4", "5"]),  # groups of three
        ("llama-bpe", "abc", ["abc"]),
        ("gpt-2", "  abc", ["Ġ", "Ġa", "b", "c"]),
        ("qwen2", "e\u0301", ["e", "Ì", "ģ"]),  # as llama.cpp: not composed
        ("smollm", "e\u0301", ["e", "Ì", "ģ"]),
    ],
)
def test_pre_tokenizers_of_gguf_files(pre, text, tokens):
    tokenizer = tokenizer_from_gguf(gguf_metadata(pre))
    assert tokenizer.backend.convert_ids_to_tokens(tokenizer.encode(text)) == tokens


def test_llama_3_looks_words_up_before_it_merges():
    tokens = [*TOKENS[:-5], "zab", *TOKENS[-5:]]  # no merge leads to it
    changes = {"tokens": tokens, "token_type": [1] * (len(tokens) - 5) + [3, 3, 3, 3, 4]}
    assert len(tokenizer_from_gguf(gguf_metadata("llama-bpe", **changes)).encode("zab")) == 1
    assert len(tokenizer_from_gguf(gguf_metadata("qwen2", **changes)).encode("zab")) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, r"tokenizer 'llama' with pre-tokenizer 'gpt-2' is not known.*Hugging Face folder"),
        ({"pre": "tekken"}, "pre-tokenizer 'tekken' is not known; .*gpt-2, llama-bpe, qwen2, smollm"),
        ({"pre": None}, "pre-tokenizer None is not known"),
        ({"merges": None, "token_type": None}, r"lacks tokenizer\.ggml\.token_type, tokenizer\.ggml\.merges"),
        ({"merges": ["no such"]}, "vocabulary and merges do not fit together"),
        ({"eos_token_id": None}, "names no end-of-sequence token"),
    ],
)
def test_gguf_tokenizers_that_cannot_be_read(changes, message):
    with pytest.raises(WeightsError, match=message):
        tokenizer_from_gguf(gguf_metadata(**{"pre": "gpt-2", **changes}))


def test_ids_containing_a_text():
    tokenizer = small()
    assert len(tokenizer.token_texts) == len(TOKENS)
    ids = tokenizer.ids_containing("b")
    assert [TOKENS[index] for index in ids.nonzero()[0]] == ["b", "ab", "abc"]
    assert not tokenizer.ids_containing("<|im_end|>").any()  # special tokens have no text


def test_the_random_tokenizer_fits_the_random_model():
    tokenizer = load_tokenizer(resolve("random:0"))
    assert len(tokenizer.backend) <= RANDOM_CONFIG.vocab_size
    for text in ("What is the capital of Chad?", "日本 <|end|> \x00\xff", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(" Europe") == ids_of(tokenizer, " Europe")
    assert tokenizer.encode_chat(user("a <|end|>")).count(tokenizer.eos_ids[0]) == 1


def test_tokens_that_the_model_does_not_know_are_refused(tmp_path):
    """But for those of images, which a text model's tokenizer may share with the others of its family."""
    source = resolve(str(write_folder(tmp_path)))
    size = len(small().backend)
    load_tokenizer(source, size)
    with pytest.raises(
        WeightsError, match=rf"has 1 tokens more than .* ends at id {size - 2}; the first is .*{size - 1}"
    ):
        load_tokenizer(source, size - 1)
    place = tmp_path / "tokenizer_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "image_token": "<image_soft_token>"}))
    assert len(load_tokenizer(source, size).backend) == size + 1
    with pytest.raises(WeightsError, match="has 1 tokens more"):
        load_tokenizer(source, size - 1)


def test_bytes_of_tokens_add_up_to_the_text(tmp_path):
    for tokenizer in (small(), load_tokenizer(resolve("random:0"))):
        for text in ("日本 😀", "naïve café", " a\tb\n", "x\x00y"):
            assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()
        assert tokenizer.token_bytes(tokenizer.eos_ids[0]) == b""
