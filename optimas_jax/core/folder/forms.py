"""Forms of the JSON files of a run folder: the fields that readers rely on, and the way out if a file is damaged.

Other fields are ignored, because a later version may add some, and an earlier version may lack some.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

from annotated_types import Len
from pydantic import AfterValidator
from typing_extensions import TypedDict

from optimas_jax.core.folder.parts import (
    MOST,
    Amount,
    Count,
    Date,
    Index,
    Name,
    Settings,
    Usage,
    ValueData,
)
from optimas_jax.core.folder.results import Change, Optimized, Results

TRACKERS = "trackers"  # folder of a run's trackers


class Server(TypedDict):
    base_url: NotRequired[str]


class System(TypedDict):
    language_model: NotRequired[Settings]


class Optimize(TypedDict):
    objective: NotRequired[Settings]


class Config(TypedDict):
    benchmark: NotRequired[str]
    seed: NotRequired[int]
    system: NotRequired[System]
    server: NotRequired[Server]
    anthropic: NotRequired[Server]
    data: NotRequired[Settings]
    optimize: NotRequired[Optimize]
    evaluate: NotRequired[Settings]


class Part(TypedDict):
    command: str
    started: Date
    seconds: Amount | None
    peak_rss_mb: NotRequired[Count]
    paid_calls: NotRequired[Count]


class Record(TypedDict):
    command: str
    commit: str | None
    started: Date
    finished: Date | None
    versions: dict[str, str]
    platform: str
    seconds: Amount
    peak_rss_mb: Count
    paid_calls: Count
    tokens: Count
    usd: Amount
    uncertain: NotRequired[Usage]
    devices: NotRequired[Settings | None]
    parts: list[Part]


class Price(TypedDict):
    prices: str
    baseline_runs: Count
    confirm_runs: Count
    test_runs: Count
    first: Usage
    baseline: Usage
    final: Usage
    largest: Usage


def _request(request: list[Any]) -> list[Any]:
    role, key, *costs = request
    whole, parts = [*costs[:3], *costs[5:]], costs[3:5]
    right = isinstance(role, str) and isinstance(key, str) and len(costs) == 7
    if not (right and all(type(cost) is int for cost in whole) and all(type(cost) in (int, float) for cost in parts)):
        raise ValueError("a role, a key and seven costs are expected")
    if not all(0 <= cost <= MOST for cost in costs):
        raise ValueError(f"costs are numbers from 0 to {MOST}")
    return request


class Cut(TypedDict):
    executed: Usage
    requests: list[Annotated[list[Any], Len(9, 9), AfterValidator(_request)]]


class Trained(TypedDict):
    name: Name
    history: list[dict[str, float | None]]


class Refreshed(TypedDict):
    name: Name
    configuration: dict[str, ValueData]


class Traces(TypedDict):
    files: dict[str, str]
    calls: Count
    left_out: dict[str, Count]
    demos: dict[str, ValueData]


class Steps(TypedDict):
    steps: dict[str, dict[str, Usage]]


class Plan(TypedDict):
    config: str
    host: Steps


class Identity(TypedDict):
    declared: dict[str, str]
    code: dict[str, str]
    hooks: NotRequired[list[str]]


class Described(TypedDict):
    name: str
    description: str
    inputs: list[str]
    outputs: list[str]
    tuned: bool
    value: ValueData | None


class SystemParts(TypedDict):
    program: bool
    inputs: list[str]
    components: list[Described]


class Place(TypedDict):
    file: NotRequired[str]
    relative: NotRequired[str]
    name: NotRequired[str]
    reason: NotRequired[str]


def _place(place: Any) -> Any:
    if "reason" not in place and not ("name" in place and ("file" in place or "relative" in place)):
        raise ValueError("a name and a file are expected, or the reason why there is none")
    return place


class File(TypedDict):
    file: NotRequired[str]
    relative: NotRequired[str]


class Declarations(TypedDict):
    components: list[str]
    files: list[File]


class Source(TypedDict):
    program: NotRequired[Annotated[Place, AfterValidator(_place)]]
    metric: NotRequired[Annotated[Place, AfterValidator(_place)]]
    local_reward: NotRequired[Annotated[Place, AfterValidator(_place)]]
    declarations: NotRequired[Declarations]


class Unfinished(TypedDict):
    reason: str
    accepted: list[Change]
    spent: Usage
    uncertain: Usage
    go_on: str


class Bar(TypedDict):
    label: str
    done: Count
    total: Count
    seconds: Amount


class Live(TypedDict):
    id: Name
    title: str
    state: Literal["running", "pausing", "paused", "stopping"]
    step: str
    iteration: Count
    iterations: Count
    component: str
    proposal: str
    score: float | None
    start: float | None
    spent: Usage
    steps: dict[str, Usage]
    seconds: Amount
    left: Amount | None
    bars: list[Bar]


class Control(TypedDict):
    id: Name
    wish: Literal["pause", "resume", "stop"]


class Task(TypedDict):
    optimizer: str
    config: Config


class Clock(TypedDict):
    search: NotRequired[Amount]
    rewards: NotRequired[Amount]


class Points(TypedDict):
    points: dict[str, Config]


class Saved(TypedDict):
    configuration: dict[str, ValueData]
    settings: NotRequired[Config]


class Tracked(TypedDict):
    id: str
    logged: Count


class Call(TypedDict):
    component: str
    occurrence: NotRequired[Count]
    inputs: Settings
    outputs: Settings
    outcome: str
    detail: NotRequired[str]
    reasoning: NotRequired[str]


class Run(TypedDict):
    outputs: Settings
    feedback: str
    score: NotRequired[float]
    parts: NotRequired[dict[str, float]]
    outcome: NotRequired[str]
    calls: NotRequired[list[Call]]


class Outcome(TypedDict):
    score: float
    runs: Annotated[list[Run], Len(1)]


class ExampleRow(TypedDict):
    id: str
    kind: str
    inputs: Settings
    gold: Settings
    before: Outcome
    after: Outcome


class ProposalRow(TypedDict):
    id: str
    iteration: NotRequired[Count]
    component: NotRequired[str]
    parent: NotRequired[str]
    optimiser: NotRequired[str]
    digest: NotRequired[str]
    text: NotRequired[str]
    value: NotRequired[ValueData | None]
    verdict: NotRequired[str]
    reason: NotRequired[str]
    race: Settings | None
    gate: Settings | None


class Event(TypedDict):
    event: str
    time: NotRequired[float]
    iteration: NotRequired[Count]
    component: NotRequired[str]


class Form(NamedTuple):
    """The type of the data in a file, and the way out if the data has another type."""

    kind: Any
    way_out: str


_AGAIN = "delete it: the command that made the run makes it again, from answers that are on the tape"
_FORMS = {
    r"config(-\d+)?\.json": Form(Config, "put it back as it was, or use another --workdir"),
    r"run(-\d+)?\.json": Form(Record, "delete it: it only tells what commands took"),
    r"(used|spent)\.json": Form(dict[str, Usage], _AGAIN),
    r"price\.json": Form(Price, _AGAIN),
    r"budget_cuts\.json": Form(dict[str, Cut], _AGAIN),
    r"rows\.json": Form(list[str], "delete it: the command that made the run notes its rows again"),
    r"traces\.json": Form(Traces, "delete it and run --stage=collect again"),
    r"reward\.json": Form(Trained, "delete it and run --stage=train again"),
    r"optimized\.json": Form(Optimized, "delete it and run --stage=optimize again"),
    r"refreshed\.json": Form(Refreshed, "delete it and run --stage=refresh again"),
    r"unfinished\.json": Form(Unfinished, "delete it: the command that made the run goes on"),
    r"control\.json": Form(Control, "delete it: it only tells a command to pause or to stop"),
    r"live\.json": Form(Live, "delete it: a command that runs writes it again"),
    r"results\.json": Form(Results, "delete it and run --stage=evaluate again"),
    r"plan\.json": Form(Plan, "delete it, or plan again (--plan)"),
    r"identity\.json": Form(Identity, "delete it: the next command notes what the program is made of"),
    r"system\.json": Form(SystemParts, "delete it: the next command writes it again"),
    r"observed\.json": Form(dict[str, Annotated[list[list[str]], Len(2, 2)]], _AGAIN),
    r"program\.json": Form(Source, "delete it and run the program's optimisation again, or pass the program"),
    r"sweep\.json": Form(Points, "put it back as it was, or use another --workdir"),
    r"jobs\.json": Form(dict[str, dict[Index, str]], "delete it when none of the sweep's jobs is running any more"),
    r"task\.json": Form(Task, "delete it: the comparison writes it again"),
    r"cell\.json": Form(Settings, "delete it: the comparison makes it again from the cell's tape"),
    r"seconds\.json": Form(Clock, "delete it: it only tells how long the search took"),
    r"configuration\.json": Form(Saved, "delete its folder and run --stage=optimize again"),
    r"journal\.jsonl": Form(Event, "the command that made the run mends it"),
    r"proposals\.jsonl": Form(ProposalRow, "the command that made the run mends it"),
}
_EVALUATION = Form(Results, "delete it and run --stage=evaluate again")
_EXAMPLES = Form(ExampleRow, "delete it with the .json file of its name and run --stage=evaluate again")
_TRACKER = Form(Tracked, "delete it: the tracker then logs the run from its beginning, as another run")
_ANY = Form(Any, "delete it and run the stage that makes it again")


def form_of(folder: str, name: str) -> Form:
    """The form of a file, by the names of its folder and of the file."""
    if folder == "evaluations" and name.endswith((".json", ".jsonl")):
        return _EXAMPLES if name.endswith("l") else _EVALUATION
    if folder == TRACKERS and name.endswith(".json"):
        return _TRACKER
    return next((form for pattern, form in _FORMS.items() if re.fullmatch(pattern, name)), _ANY)
