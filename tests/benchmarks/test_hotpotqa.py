import asyncio
import collections
import json
import re
from pathlib import Path

import pytest
from fakes import ScriptedCompleter
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ROOT

from optimas_jax.benchmarks import countries
from optimas_jax.benchmarks.countries import Article, Country
from optimas_jax.benchmarks.data import DataConfig, DataError, Dataset, read_rows
from optimas_jax.benchmarks.hotpotqa import SystemConfig, answer_f1, build, build_search, kinds, load, parse_row
from optimas_jax.core.types import Example
from optimas_jax.core.values import Hyperparameters
from optimas_jax.llm.component import LanguageModel

PARAGRAPHS = [("Peru", ["Peru is a country.", " Its capital is Lima."]), ("Lima", ["Lima is a city. "])]
OFFICIAL = {
    "_id": "1",
    "question": "What is the capital of Peru?",
    "answer": "Lima",
    "type": "bridge",
    "context": [[title, sentences] for title, sentences in PARAGRAPHS],
}
HUB = {
    **{key: value for key, value in OFFICIAL.items() if key != "_id"},
    "id": "1",
    "context": {"title": [t for t, _ in PARAGRAPHS], "sentences": [s for _, s in PARAGRAPHS]},
}
OBJECTS = {**HUB, "context": [{"title": title, "sentences": sentences} for title, sentences in PARAGRAPHS]}
REAL = ROOT.parent / "shared" / "data" / "hotpotqa" / "dev.jsonl"


def row(number, **changes):
    return {**OBJECTS, "id": f"id{number:03d}", "question": f"Question {number}?", **changes}


def jsonl(path, *rows):
    """Writes rows, each an object or a text to write as it is."""
    file = path / "rows.jsonl"
    lines = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def read(file):
    return read_rows(file, parse_row)


def load_path(file, train=2, val=1, test=1, seed=0):
    return load(DataConfig("hotpotqa", str(file), train, val, test, seed=seed))


# Rows


def test_the_three_shapes_of_a_row_are_read_alike(tmp_path):
    official, hub, objects = read(jsonl(tmp_path, OFFICIAL, HUB, OBJECTS))
    assert official == hub == objects
    example, articles = official
    assert (example.id, example.gold, example.kind) == ("1", {"answer": "Lima"}, "bridge")
    assert articles == (
        Article("Peru", "Peru is a country. Its capital is Lima."),
        Article("Lima", "Lima is a city."),
    )


def test_the_official_file_is_one_array(tmp_path):
    file = tmp_path / "hotpot_dev.json"
    file.write_text(json.dumps([OFFICIAL, {**OFFICIAL, "_id": "2"}], indent=1), encoding="utf-8")
    assert [one.id for one, _ in read(file)] == ["1", "2"]


def test_only_line_feeds_end_a_row(tmp_path):
    text = "one\u2028two\x85three"
    [(first, _), (second, _)] = read(jsonl(tmp_path, row(0, answer=text), "", row(1), "  "))
    assert (first.gold["answer"], second.id) == (text, "id001")


def test_a_broken_line_is_named(tmp_path):
    with pytest.raises(DataError, match=r"rows\.jsonl, line 3: not JSON \(.*\) at column 9"):
        read(jsonl(tmp_path, row(0), row(1), '{"id": 1'))


@pytest.mark.parametrize("field", ["id", "question", "answer", "context"])
def test_a_row_without_a_field_is_named_with_the_field(tmp_path, field):
    broken = {key: value for key, value in row(1).items() if key != field}
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: lacks {field} \(a row needs"):
        read(jsonl(tmp_path, row(0), broken))


@pytest.mark.parametrize(
    ("value", "said"), [("", "lacks answer"), (None, "lacks answer"), (7, "field answer is 7, expected a text")]
)
def test_an_answer_must_be_a_text(tmp_path, value, said):
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: {said}"):
        read(jsonl(tmp_path, row(0), row(1, answer=value)))


def test_all_missing_fields_are_named_at_once(tmp_path):
    with pytest.raises(DataError, match="line 1: lacks id, question, context"):
        read(jsonl(tmp_path, {"answer": 7}))


@pytest.mark.parametrize(
    "context",
    [
        *(5, "text", [["only a title"]], [{"title": "t"}], {"title": ["t"], "sentences": []}, [["t", [1]]]),
        *([[None, ["x"]]], [[5, ["x"]]], [[["t"], ["x"]]], ["ab", "cd"], [["t", "text"]], {"title": 5, "sentences": 5}),
    ],
)
def test_a_context_of_another_shape_is_named(tmp_path, context):
    with pytest.raises(DataError, match=r"line 2: context is not a list of titles with sentences"):
        read(jsonl(tmp_path, row(0), row(1, context=context)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'"text"', r"line 1: expected an object, got str"),
        ("rows.jsonl", b'{"id": "\xff"}', r"rows\.jsonl is not UTF-8 text"),
        ("rows.json", b'[{"id":\n', r"rows\.json, line 2: not JSON"),
        ("rows.json", b"{}", r"rows\.json holds dict, expected an array"),
        ("rows.json", b"[]", r"rows\.json holds no rows"),
        ("rows.jsonl", b"\n", r"rows\.jsonl holds no rows"),
        ("rows.json", b"[[]]", r"rows\.json, item 0: expected an object, got list"),
        ("rows.jsonl", b"\n" + b"[" * 100_000, r"rows\.jsonl, line 2: lists and objects are nested"),
        ("rows.jsonl", b'{"n": ' + b"9" * 5000 + b"}", r"rows\.jsonl, line 1: a whole number of 5,000 digits"),
        ("rows.jsonl", b'{"id": "\\ud800"}', r"rows\.jsonl, line 1: a text holds half of a character"),
        ("rows.jsonl", b'{"id": NaN}', r"rows\.jsonl, line 1: NaN is no number"),
        ("rows.jsonl", b'{"id": 1\x00}', r"rows\.jsonl, line 1: not JSON .* at column 9"),
        ("rows.json", b"[" * 100_000, r"rows\.json: lists and objects are nested"),
    ],
)
def test_files_that_hold_something_else_say_so(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_a_missing_file_says_what_to_set(tmp_path):
    with pytest.raises(DataError, match=r"no file .*nowhere\.jsonl'.*--config\.data\.path"):
        load_path(tmp_path / "nowhere.jsonl")


# Splits


def test_splits_are_disjoint_and_seeded(tmp_path):
    file = jsonl(tmp_path, *[row(i) for i in range(12)])
    splits = load_path(file, 5, 3, 4).splits
    assert {name: len(examples) for name, examples in splits.items()} == {"train": 5, "val": 3, "test": 4}
    ids = [example.id for examples in splits.values() for example in examples]
    assert len(set(ids)) == 12
    assert all(example.split == name for name, examples in splits.items() for example in examples)
    assert load_path(file, 5, 3, 4).splits == splits
    assert load_path(file, 5, 3, 4, seed=1).splits != splits


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    forth = load_path(jsonl(tmp_path, *[row(i) for i in range(8)])).splits
    assert load_path(jsonl(tmp_path, *[row(i) for i in reversed(range(8))])).splits == forth


def test_equal_questions_count_once(tmp_path):
    file = jsonl(tmp_path, *[row(i) for i in range(4)], row(9, question="Question 0?"))
    splits = load_path(file).splits
    questions = [example.inputs["question"] for examples in splits.values() for example in examples]
    assert sorted(questions) == [f"Question {i}?" for i in range(4)]
    with pytest.raises(DataError, match="4 different examples, 5 asked for"):
        load_path(file, train=3)


def test_one_id_for_two_questions_is_refused(tmp_path):
    rows = [row(number) for number in range(4)]
    with pytest.raises(DataError, match="1 ids stand for several examples, the first is 'id003'"):
        load_path(jsonl(tmp_path, *rows, row(5, id="id003")))


def test_rows_without_any_paragraph_are_refused(tmp_path):
    with pytest.raises(DataError, match="nothing to retrieve from"):
        load_path(jsonl(tmp_path, *(row(number, context=[]) for number in range(4))))


def test_a_byte_order_mark_is_skipped(tmp_path):
    file = jsonl(tmp_path, *(row(number) for number in range(4)))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert sum(map(len, load_path(file).splits.values())) == 4


def test_articles_are_in_the_corpus_once(tmp_path):
    articles = load_path(jsonl(tmp_path, *[row(i) for i in range(4)])).corpus
    assert [article.title for article in articles] == ["Peru", "Lima"]


@pytest.mark.skipif(not REAL.is_file(), reason="no real rows on this machine")
def test_real_rows_are_read():
    data = load_path(REAL, 150, 50, 51)
    assert sum(map(len, data.splits.values())) == 251
    assert kinds(data.splits["train"]) in (("bridge", "comparison"), ("comparison", "bridge"))
    assert len(data.corpus) == 2489
    assert all(article.text for article in data.corpus)


# Embedded questions

KNOWN = countries.load_countries()
MIX = {"one-hop": 0.5, "bridge": 0.3, "comparison": 0.2}
ARTICLES = {article.title: article.text for article in countries.articles(KNOWN)}
FACT = "(capital|currency|calling code|population|area)"
# What each question asks: pattern with the fact, and the fact that names the country.
QUESTION_PATTERNS = [
    (rf"What is the {FACT} of the country whose capital is (.+)\?", "capital"),
    (rf"What is the {FACT} of (.+)\?", "name"),
]
COMPARED = {
    r"Which country has the larger population, (.+) or (.+)\?": "population",
    r"Which country has the larger area, (.+) or (.+)\?": "area",
}


def stated(name, fact):
    """What a country's article says."""
    return re.search(rf"The {fact} of {re.escape(name)} is (.+?)\.(?: The |$)", ARTICLES[name])[1]


def understand(question):
    """All answers that the articles allow, and the countries that the question is about."""
    for pattern, named in QUESTION_PATTERNS:
        if match := re.fullmatch(pattern, question):
            about = [country.name for country in KNOWN if getattr(country, named) == match[2]]
            return {stated(name, match[1]) for name in about}, set(about)
    for pattern, number in COMPARED.items():
        if match := re.fullmatch(pattern, question):
            pair = sorted(
                (country for country in KNOWN if country.name in match.groups()), key=lambda c: getattr(c, number)
            )
            assert getattr(pair[1], number) >= 1.5 * getattr(pair[0], number)
            return {pair[1].name}, {country.name for country in pair}
    raise AssertionError(question)


def embedded(seed=0, mix=MIX, sizes=(40, 20, 40)):
    return load(DataConfig("embedded", "", *sizes, mix=mix, seed=seed)).splits


@settings(max_examples=5)
@given(st.integers(0, 1000))
def test_embedded_questions_have_one_answer_and_no_country_in_two_splits(seed):
    about = {}
    for split, examples in embedded(seed).items():
        about[split] = set()
        for example in examples:
            answers, named = understand(example.inputs["question"])
            assert answers == {example.gold["answer"]}
            about[split] |= named
    assert not about["train"] & about["val"]
    assert not about["train"] & about["test"]
    assert not about["val"] & about["test"]


def test_embedded_splits_share_no_question_and_no_id():
    everything = [example for examples in embedded().values() for example in examples]
    assert len({example.inputs["question"] for example in everything}) == len(everything) == 100
    assert len({example.id for example in everything}) == 100


def test_embedded_kinds_come_in_their_shares():
    counts = {
        split: dict(collections.Counter(e.kind for e in examples)) for split, examples in embedded(mix=MIX).items()
    }
    assert counts["train"] == {"one-hop": 20, "bridge": 12, "comparison": 8}
    assert counts["val"] == {"one-hop": 10, "bridge": 6, "comparison": 4}
    [only] = {example.kind for example in embedded(mix={"comparison": 1.0})["val"]}
    assert only == "comparison"


@given(st.dictionaries(st.sampled_from(countries.KINDS), st.floats(0.01, 1), min_size=1), st.integers(0, 20))
def test_as_many_embedded_questions_as_asked_for_whatever_the_mix(mix, size):
    examples = countries.questions(KNOWN, "train", size, mix, 0)
    assert len(examples) == size
    assert {example.kind for example in examples} <= set(mix)


def test_the_kind_of_a_question_is_what_it_says():
    for example in (example for examples in embedded().values() for example in examples):
        question = example.inputs["question"]
        bridge, comparison = "whose" in question, "Which" in question
        assert example.kind == ("bridge" if bridge else "comparison" if comparison else "one-hop")


def test_embedded_data_follow_their_seed():
    assert embedded(1) == embedded(1)
    assert embedded(1) != embedded(2)


def test_more_embedded_questions_than_there_are_say_how_many():
    with pytest.raises(ValueError, match=r"the val split has 150 one-hop questions, 151 were asked for"):
        embedded(mix={"one-hop": 1.0}, sizes=(1, 151, 1))


@pytest.mark.parametrize(
    ("split", "mix"), [("dev", MIX), ("train", {"riddle": 1.0}), ("train", {}), ("train", {"bridge": -1.0})]
)
def test_unknown_splits_and_kinds_are_refused(split, mix):
    with pytest.raises(ValueError, match="must be one of train, val, test, confirm and mix have keys one-hop, bridge"):
        countries.questions(KNOWN, split, 1, mix, 0)


def test_an_article_states_every_fact():
    chad = Country("Chad", "N'Djamena", "Sub-Saharan Africa", "XAF", "235", 13_214_000, 999)
    country, capital = countries.articles([chad])
    assert country == Article(
        "Chad",
        "Chad is a country in Sub-Saharan Africa. The capital of Chad is N'Djamena. The currency of Chad is XAF. The "
        "calling code of Chad is 235. The population of Chad is 13.2 million. The area of Chad is 999 square "
        "kilometres.",
    )
    assert capital == Article("N'Djamena", "N'Djamena is the seat of the government of Chad.")


def test_facts_that_name_a_country_name_only_one():
    for field in ("name", "capital"):
        assert len({getattr(country, field) for country in KNOWN}) == len(KNOWN)
    assert len(KNOWN) > 150


# Retrieval

SEARCH = build_search(countries.articles(KNOWN))


@pytest.mark.parametrize("country", KNOWN[::20], ids=lambda country: country.name)
def test_the_capital_finds_its_country_and_its_own_article(country):
    titles = [text.split(":")[0] for text in SEARCH(f"capital {country.capital}", 2)]
    assert set(titles) == {country.name, country.capital}


def test_as_many_articles_as_asked_for_best_first():
    search = build_search([Article("a", "apple pear"), Article("b", "apple"), Article("c", "plum")])
    assert search("apple", 1) == ("b: apple",)  # the shorter article says it more densely
    assert search("apple pear", 2) == ("a: apple pear", "b: apple")
    assert len(search("plum", 3)) == len(search("plum", 9)) == 3
    assert search("plum", 9)[0] == "c: plum"
    assert search("plum", 0) == ()


def test_equally_good_articles_keep_their_order():
    search = build_search([Article("x", "apple"), Article("y", "apple"), Article("z", "plum")])
    assert search("apple", 2) == ("x: apple", "y: apple")


@pytest.mark.parametrize("query", ["", "  ", "the", "zzzqq", "?!"])
def test_words_that_no_article_has_find_nothing(query):
    assert SEARCH(query, 5) == ()


@given(st.text(max_size=40), st.integers(0, 5))
def test_searching_never_fails_and_always_finds_the_same(query, k):
    passages = SEARCH(query, k)
    assert len(passages) in (0, k)
    assert SEARCH(query, k) == passages


# The system


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [("The Lima.", "lima", 1.0), ("city of Lima", "Lima", 0.5), ("Quito", "Lima", 0.0), ("yes it is", "yes", 0.0)],
)
def test_the_metric_is_the_f1_of_the_answer(answer, gold, score):
    assert answer_f1({"answer": answer}, {"answer": gold}) == pytest.approx(score)


def test_the_chain_runs_as_in_the_paper():
    answers = {
        "question_rewriter": "Which city is the capital of Peru?",
        "keyword_extractor": "Peru capital",
        "hint_generator": "The capital of Peru is Lima.",
        "answer_generator": "Lima city",
    }
    completer = ScriptedCompleter(lambda request: answers[request.role])
    system = build(
        Dataset({}, corpus=countries.articles(KNOWN)), SystemConfig(LanguageModel("m"), k_grid=(1, 2, 4), k=2)
    ).using(completer)
    question = Example("e", {"question": "What is the capital of Peru?"}, {"answer": "Lima"}, "train")
    configuration = system.default_configuration()
    trace = asyncio.run(system.run(configuration, question, 0))
    assert trace.score == pytest.approx(2 / 3)
    assert [call.component for call in trace.calls] == [*list(answers)[:2], "context_retriever", *list(answers)[2:]]
    assert [text.split(":")[0] for text in trace.first("context_retriever").outputs["passages"]] == ["Peru", "Lima"]
    # components behind the rewriter do not see the question itself
    assert [question.inputs["question"] in str(r.messages) for r in completer.requests] == [True, False, False, False]
    fewer = configuration.replace("context_retriever", Hyperparameters({"k": 1}))
    assert len(asyncio.run(system.run(fewer, question, 0)).first("context_retriever").outputs["passages"]) == 1
    with pytest.raises(ValueError, match="is not on the grid"):
        system.check(configuration.replace("context_retriever", Hyperparameters({"k": 3})))


def test_kinds_are_listed_as_they_appear():
    examples = [Example(str(i), {}, {}, "test", kind) for i, kind in enumerate(("b", "", "a", "b"))]
    assert kinds(examples) == ("b", "a")


def test_a_folder_or_a_name_that_no_file_can_have_is_no_file(tmp_path):
    for path in (tmp_path, Path("x" * 400), Path("a\0b")):
        with pytest.raises(DataError, match=r"no file .*--config\.data\.path"):
            read(path)


def test_rows_of_one_input_are_counted(tmp_path):
    rows = [row(number) for number in range(6)]
    again = [{**rows[1], "id": "other"}, {**rows[2], "id": "third", "answer": "something else"}]
    path = jsonl(tmp_path, *rows, *again)
    origin = load(DataConfig(path=str(path), train=2, val=2, test=2)).origin
    assert origin == f"{path}, without 2 rows whose inputs other rows have, 1 of them with another answer"


def test_articles_without_a_word_are_refused():
    with pytest.raises(DataError, match="the 2 articles have no word that can be searched for"):
        build_search([Article("the", "of"), Article("", "")])
