"""Answers that keep to a schema: of a random model, which would never write JSON by itself."""

import dataclasses
import datetime
import enum
import json
import uuid
from typing import Annotated, Any, Literal, Optional

import jax
import numpy as np
import pytest
import tiny
from pydantic import BaseModel, Field
from typed_answers import answer_request

from optimas_jax.checkpoints.sources import resolve
from optimas_jax.checkpoints.tokenizer import load_tokenizer
from optimas_jax.engine.constrain import Constrainer, SchemaError
from optimas_jax.engine.pool import Engines, network_on
from optimas_jax.engine.sampler import SampleRequest
from optimas_jax.llm.forms.answers import AnswerType
from optimas_jax.models.backbone import init_lora
from optimas_jax.parallel.mesh import MeshConfig, make_mesh
from optimas_jax.parallel.sharding import place
from optimas_jax.report.console import ConsoleProgress


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: float
    tag: str = ""


class Number(BaseModel):
    value: int


class Sum(BaseModel):
    left: "Number | Sum"
    right: "Number | Sum"


class Node(BaseModel):
    name: Annotated[str, Field(min_length=3, max_length=6)]
    children: list["Node"]
    best: Optional["Node"] = None


class Everything(BaseModel):
    ok: bool
    points: Annotated[list[Point], Field(min_length=1)]
    colour: Colour
    kind: Literal["alpha", "b"]
    note: str | None
    size: Annotated[int, Field(ge=1000, le=2000)]
    share: Annotated[float, Field(gt=5.5, lt=6)]
    day: datetime.date
    code: Annotated[str, Field(pattern=r"^[A-Z]{3}-\d{4}$")]
    counts: dict[str, int]
    word: int | str | None
    pair: tuple[int, str]


def schema_of(kind):
    return json.dumps(AnswerType("a", kind).schema)


def tokenizer():
    return load_tokenizer(resolve("random:0"))


@pytest.fixture(scope="module")
def constrainer():
    words = tokenizer()
    return Constrainer(words, len(words.backend) + 70)  # a model's vocabulary is often padded


SMALLEST = {
    "int": (int, '{"a": 0}'),
    "union": (str | int | None, '{"a": null}'),
    "list": (list[Point], '{"a": []}'),
    "map": (dict[str, Point], '{"a": {}}'),
    "point": (Point, '{"x": 0, "y": 0, "tag": ""}'),
    "recursive": (Number | Sum, '{"a": {"value": 0}}'),
    "node": (Node, '{"name": "aaa", "children": [], "best": null}'),
    "words": (Annotated[list[Annotated[str, Field(min_length=2)]], Field(min_length=2)], '{"a": ["aa", "aa"]}'),
    "uuid": (uuid.UUID, '{"a": "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa"}'),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_answer_of_a_type(constrainer, name):
    kind, text = SMALLEST[name]
    plan = constrainer.start(schema_of(kind), 1000)._plan
    assert constrainer.tokenizer.decode(plan[:-1]) == text and plan[-1] == constrainer.tokenizer.eos_ids[0]
    AnswerType("a", kind).read(text)


def drawn(constrainer, schema, limit, rng, choose=None):
    """An answer drawn from what is allowed, evenly; and how often tokens were taken back."""
    constraint, ids, returned = constrainer.start(schema, limit), [], 0
    allowed = np.zeros(-(-constrainer.vocab // 32), np.int32)
    while not ids or ids[-1] not in constrainer.tokenizer.eos_ids:
        constraint.fill(allowed)
        tokens = np.flatnonzero(np.unpackbits(allowed.view(np.uint8), bitorder="little"))
        assert tokens.max() < len(constrainer.tokenizer.backend)
        wanted = [token for token in tokens.tolist() if choose and choose(constrainer.text_of(token))]
        ids.append(int(rng.choice(wanted or tokens)))
        back = constraint.append(ids[-1])
        returned += back > 0
        ids = ids[: len(ids) - back]
        assert constraint.settled <= len(ids) <= limit
    return constrainer.tokenizer.decode(ids), returned


@pytest.mark.parametrize(
    "kind", [*(kind for kind, _ in SMALLEST.values()), Everything, {"n": int, "e": list[Everything]}]
)
def test_drawn_answers_end_within_their_limit_and_are_of_the_type(constrainer, kind):
    rng, answers, schema = np.random.default_rng(0), AnswerType("a", kind), schema_of(kind)
    smallest = len(constrainer.start(schema, 1000)._plan)
    for spare in (0, 1, 2, 5, 20, 60):
        answers.read(drawn(constrainer, schema, smallest + spare, rng)[0])


def test_an_answer_that_only_opens_is_closed(constrainer):
    """Every bracket raises what the end needs: tokens are taken back, and the answer ends from where it could."""
    rng, schema = np.random.default_rng(0), schema_of(list[Node])
    text, returned = drawn(constrainer, schema, 150, rng, choose=lambda text: text in (b"[", b"{"))
    assert returned == 1 and text.count("{") > 2
    AnswerType("a", list[Node]).read(text)


def test_what_cannot_be_kept_to_is_named(constrainer):
    with pytest.raises(SchemaError, match=r'max_tokens is 8, and the smallest answer .* has 9 tokens \(\{"a": 0\}\)'):
        constrainer.start(schema_of(int), 8)
    with pytest.raises(SchemaError, match=r"cannot keep to the schema .*look-around"):
        constrainer.start(json.dumps({"type": "string", "pattern": "^(?!a)b$"}), 100)
    with pytest.raises(SchemaError, match="cannot keep to the schema"):
        constrainer.start(json.dumps({"type": "object", "propertyNames": {"pattern": "^a"}}), 100)


@pytest.fixture(scope="module")
def sampler():
    return tiny.sampler()


def requests(count=6, **settings):
    schemas = ["", schema_of(Point), schema_of(list[Colour])]
    return [
        SampleRequest(
            tuple(range(1 + i, 20 + 3 * i)),
            max_tokens=40 + i,
            temperature=(1.0, 0.0, 1.3)[i % 3],
            top_p=(1.0, 0.9)[i % 2],
            seed=i,
            **{"schema": schemas[i % 3], **settings},
        )
        for i in range(count)
    ]


def test_an_answer_has_the_same_bits_whatever_shares_its_batch(sampler):
    """Others that are constrained, others that are not, and none; and log-probs are those of the model."""
    everything = requests()
    together = sampler.generate(everything)
    assert [sampler.generate([one])[0] for one in everything] == together
    assert sampler.generate(everything[::-1]) == together[::-1]
    for one, sample in zip(everything, together, strict=True):
        if one.schema:
            assert sample.finish == "stop" and len(sample.ids) <= one.max_tokens
            json.loads(sample.text)
            free = sampler.generate([dataclasses.replace(one, schema="", max_tokens=1, temperature=0.0)])[0]
            assert sample.logprobs[0] <= free.logprobs[0]  # of all tokens, not of those that are allowed


def test_stop_texts_cut_an_answer_as_ever(sampler):
    [whole] = sampler.generate([SampleRequest((5, 6), 60, temperature=1.0, schema=schema_of(Point))])
    for stop in (",", '"y": '):
        [sample] = sampler.generate([SampleRequest((5, 6), 60, temperature=1.0, schema=schema_of(Point), stop=(stop,))])
        assert sample.finish == "stop" and sample.text == whole.text[: whole.text.index(stop)]


def test_lanes_change_nothing(sampler):
    everything = requests(6)
    expected = sampler.generate(everything)
    assert tiny.sampler(dataclasses.replace(tiny.F32, lanes=2)).generate(everything * 5) == expected * 5


@pytest.mark.long
def test_rows_are_cut_among_devices(sampler):
    mesh = make_mesh(MeshConfig(8, 1))
    network = network_on(mesh, sampler.network.config, sampler.network.compute)
    cut = dataclasses.replace(sampler, network=network, params=place(sampler.params, mesh))
    few = requests(2)
    assert [one.ids for one in cut.generate(few)] == [one.ids for one in sampler.generate(few)]


def test_adapters_answer_by_schema_too():
    sampler = tiny.sampler()
    params = tiny.random_lora(init_lora(sampler.network.config, tiny.LORA, jax.random.key(0)))
    sampler.adapters.load("own", tiny.LORA, params)
    plain = requests(2)[1]
    adapted = dataclasses.replace(plain, adapter="own")
    [alone] = sampler.generate([adapted])
    beside, of_base = sampler.generate([adapted, plain])
    assert alone == beside and alone.ids != of_base.ids
    assert json.loads(alone.text).keys() == json.loads(of_base.text).keys()


def test_any_value_is_json(constrainer):
    rng = np.random.default_rng(1)
    for _ in range(5):
        json.loads(drawn(constrainer, schema_of(dict[str, Any]), 40, rng)[0])


@pytest.mark.long
@pytest.mark.embedded
def test_the_embedded_model_answers_by_nested_schemas(embedded_gguf):
    sampler = Engines(MeshConfig(data=1), ConsoleProgress(quiet=True)).sampler(str(embedded_gguf))
    asked = [answer_request(sampler, number, max_tokens=64) for number in (1, 3)]
    samples = sampler.generate([request for _, request in asked])
    for (answers, request), sample in zip(asked, samples, strict=True):
        answers.restore(answers.read(sample.text))
        assert sample.finish == "stop" and len(sample.ids) <= request.max_tokens
