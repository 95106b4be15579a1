"""Forms of the results of a run (``results.json``) and of its search (``optimized.json``)."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict
from typing_extensions import TypedDict

from optimas_jax.core.folder.parts import Amount, Count, Interval, Label, Settings, Usage, ValueData
from optimas_jax.core.text.json_text import check_form


class Change(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]  # named after the split: gains there
    iteration: Count
    component: str
    kind: str
    value: ValueData
    val_gain: float
    val_score: NotRequired[float]


class Confirmed(TypedDict):
    n: Count
    changes: Count | None
    verdict: str


class LabelUse(TypedDict):
    labelled_runs: Count
    effective_runs: float
    local_reward: bool


class Controls(TypedDict):
    shorter: float
    loglik: float
    majority: NotRequired[float]


class Alignment(TypedDict):
    pair_accuracy: float
    ci95: Interval | None
    n_pairs: Count
    n_inputs: Count
    spearman: float
    controls: Controls
    ceiling: NotRequired[float | None]


class Estimate(TypedDict):
    mean: float
    ci95: Interval


class Point(TypedDict):
    changes: Count
    component: str
    configuration: str
    score: Estimate
    dollars: Estimate
    tokens: Estimate
    seconds: Estimate | None
    reward: Estimate
    exceeds: list[str]
    dominated: bool
    kept: bool


class Blamed(TypedDict):
    first: Count
    share: float


class BlamedRun(TypedDict):
    id: str
    component: str
    shares: dict[str, float]
    percentiles: dict[str, float | None]
    reason: str


class Blame(TypedDict):
    passing: NotRequired[Count]
    failing: NotRequired[Count]
    reason: NotRequired[str]
    components: NotRequired[dict[str, Blamed]]
    examples: NotRequired[list[BlamedRun]]


def _whole(blame: Any) -> Any:
    """Checks blame: of a search without local rewards it is empty, otherwise it has all fields."""
    missing = [name for name in ("passing", "failing", "reason", "components", "examples") if name not in blame]
    if blame and missing:
        raise ValueError(f"{missing[0]} is missing")
    return blame


class Optimized(TypedDict):
    reward: str
    alignment: dict[str, Alignment]
    label_use: dict[str, LabelUse]
    dropped: dict[str, dict[str, Count]]
    accepted: list[Change]
    confirmed: Confirmed | None
    pareto: NotRequired[list[Point]]
    blame: NotRequired[Annotated[Blame, AfterValidator(_whole)]]


class Gain(TypedDict):
    mean: float
    ci95: Interval
    p_value: float


class Side(TypedDict):
    mean: float
    ci95: Interval
    scores: list[float]


class Mean(TypedDict):
    mean: float
    scores: NotRequired[list[float]]


class MeanGain(TypedDict):
    mean: float
    ci95: NotRequired[Interval]
    p_value: NotRequired[float]


class OtherMetric(TypedDict):
    chance: float
    baseline: Mean
    optimized: Mean
    gain: MeanGain


class Unconfirmed(TypedDict):
    mean: float
    gain: Gain


class Kind(TypedDict):
    n: Count
    baseline: float
    optimized: float


class Bill(TypedDict):
    calls: Count
    paid_calls: Count
    prompt_tokens: Count
    completion_tokens: Count
    usd: Amount


class Spent(TypedDict):
    spent: Usage
    predicted: dict[str, Usage] | None


class Brought(TypedDict):
    gain: Gain | None
    local_gain: Gain | None


class Objective(TypedDict):
    settings: Settings
    gain: Gain
    costs: dict[str, dict[str, Estimate]]


class Answers(TypedDict):
    baseline: Count
    optimized: Count
    answers: Count


class ResultFields(TypedDict):
    label: NotRequired[Label]
    evaluation: NotRequired[Settings]
    benchmark: str
    variant: str
    split: Label
    n: Count
    metric: str
    chance: float
    baseline: Side
    optimized: Side
    gain: Gain
    confirmed: Confirmed | None
    unconfirmed: NotRequired[Unconfirmed | None]
    other_metrics: NotRequired[dict[str, OtherMetric]]
    by_kind: dict[str, Kind]
    outcomes: dict[str, Count]
    unread: NotRequired[dict[str, Answers]]
    cut: NotRequired[dict[str, Answers]]
    alignment: dict[str, Alignment]
    label_use: NotRequired[dict[str, LabelUse]]
    dropped: NotRequired[dict[str, dict[str, Count]]]
    accepted: list[Change]
    objective: NotRequired[Objective]
    pareto: NotRequired[list[Point]]
    blame: NotRequired[Annotated[Blame, AfterValidator(_whole)]]
    ledger: dict[str, dict[str, Bill]]
    spent: NotRequired[dict[str, Spent]]
    paid_calls: Count
    wall_seconds: Amount
    peak_rss_mb: Count


def _agree(results: Any) -> Any:
    """Checks fields against each other: gains of each change on the split, tests of metrics, scores of both sides."""
    for change in results["accepted"]:
        if results["split"] in change:
            check_form(Brought, change[results["split"]])
    for metric in results.get("other_metrics", {}).values():
        if "ci95" in metric["gain"]:
            check_form(Gain, metric["gain"])
    before, after = (len(results[side]["scores"]) for side in ("baseline", "optimized"))
    if before != after:
        raise ValueError(f"baseline has {before} scores, and optimized {after}")
    return results


Results = Annotated[ResultFields, AfterValidator(_agree)]
