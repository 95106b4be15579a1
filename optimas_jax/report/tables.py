"""The tables of a run, for the console and ``report.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from optimas_jax.report.page.text import interval
from optimas_jax.report.pareto import pareto_table, shows_pareto


def tables(results: Mapping[str, Any]) -> list[Table]:
    """All tables, the most important one last, as a console shows them."""
    accepted = results["accepted"]
    return [
        *([alignment_table(results["alignment"])] if results["alignment"] else []),
        ledger_table(results["ledger"]),
        *([spent_table(results["spent"])] if results.get("spent") else []),
        *([label_table(results["label_use"], results.get("score", "local"))] if results.get("label_use") else []),
        *([dropped_table(results["dropped"])] if results.get("dropped") else []),
        *([accepted_table(accepted, results["split"])] if accepted else []),
        *([blame_table(results["blame"])] if results.get("blame") else []),
        *([pareto_table(results["pareto"])] if shows_pareto(results) else []),
        result_table(results),
    ]


def confirmation_line(results: Mapping[str, Any]) -> str:
    """Verdict of the confirmation; empty for a run without one."""
    confirmed = results.get("confirmed")
    if not confirmed:
        return ""
    seen = f"on {confirmed['n']} examples that no gate has seen: " if confirmed["n"] else ""
    return f"{seen}{confirmed['verdict']}"


def result_table(results: Mapping[str, Any]) -> Table:
    """Scores before and after, with intervals."""
    title = f"{results['benchmark']}:{results['variant']}, {results['split']} split, n = {results['n']}"
    table = Table(title=f"{title}, {results['metric']}, chance {results['chance']:.2f}")
    for column in ("", "mean", "95 % interval", "p (gain)"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("baseline", "optimized"):
        row = results[name]
        table.add_row(name, f"{row['mean']:.3f}", interval(row["ci95"]), "")
    gain = results["gain"]
    table.add_row("gain", f"{gain['mean']:+.3f}", interval(gain["ci95"]), f"{gain['p_value']:.3f}", style="bold")
    unconfirmed = results.get("unconfirmed")
    if unconfirmed:
        change = unconfirmed["gain"]
        table.add_row(
            "unconfirmed",
            f"{unconfirmed['mean']:.3f} ({change['mean']:+.3f})",
            interval(change["ci95"]),
            f"{change['p_value']:.3f}",
        )
    table.caption = confirmation_line(results) or None
    if objective := results.get("objective"):
        change = objective["gain"]
        cells = f"{change['mean']:+.3f}", interval(change["ci95"]), f"{change['p_value']:.3f}"
        table.add_row("gain of the objective", *cells)
    for name, row in results.get("other_metrics", {}).items():
        before, after = (row[side]["mean"] for side in ("baseline", "optimized"))
        tested = "ci95" in row["gain"]
        bounds, p_value = (interval(row["gain"]["ci95"]), f"{row['gain']['p_value']:.3f}") if tested else ("", "")
        table.add_row(f"{name}, chance {row['chance']:.2f}", f"{before:.3f} -> {after:.3f}", bounds, p_value)
    for kind, row in results["by_kind"].items():
        table.add_row(f"  {kind} (n = {row['n']})", f"{row['baseline']:.3f} -> {row['optimized']:.3f}", "", "")
    problems = {"unread": "that cannot be read", "cut": "cut at max_tokens"}
    for field, problem in problems.items():
        for name, row in results.get(field, {}).items():
            counts = f"{row['baseline']} -> {row['optimized']}"
            table.add_row(f"answers of {name} {problem}, of {row['answers'] // 2}", counts, "", "")
    failed = {outcome: count for outcome, count in results.get("outcomes", {}).items() if outcome != "ok"}
    runs = sum(results.get("outcomes", {}).values())
    for outcome, count in failed.items():
        table.add_row(f"optimized runs that failed: {outcome}", f"{count} of {runs}", "", "")
    return table


def alignment_table(alignment: Mapping[str, Mapping[str, Any]]) -> Table:
    """Alignment of local rewards with the global reward, on report inputs under the final configuration."""
    table = Table(title="Alignment on inputs not trained on (pair accuracy; chance 0.5)")
    measured = ("local reward", "95 % interval", "pairs", "inputs", "Spearman")
    for column in ("component", *measured, "shorter", "likelier", "majority", "ceiling"):
        table.add_column(column, justify="left" if column == "component" else "right")
    for name, row in alignment.items():
        table.add_row(
            name,
            f"{row['pair_accuracy']:.3f}",
            interval(row["ci95"]),
            str(row["n_pairs"]),
            str(row["n_inputs"]),
            f"{row['spearman']:.2f}",
            f"{row['controls']['shorter']:.3f}",
            f"{row['controls']['loglik']:.3f}",
            f"{row['controls']['majority']:.3f}" if "majority" in row["controls"] else "",
            "" if row.get("ceiling") is None else f"{row['ceiling']:.3f}",
        )
    return table


def probe_table(probe: Mapping[str, Any]) -> Table:
    """Headroom of each component: gain of a random value, and what a perfect local reward could order."""
    table = Table(title="Headroom by random values")
    for column in ("component", "gain, screening", "gain, fresh inputs", "95 % interval", "p", "inputs", "ceiling"):
        table.add_column(column, justify="left" if column == "component" else "right")
    for row in probe["components"]:
        screened = "none" if row["value"] is None else f"{row['screened']:+.3f}"
        tested = ["", "", "", ""]
        if row["gain"] is not None:
            tested = [f"{row['gain']:+.3f}", interval(row["ci95"]), f"{row['p_value']:.3f}", str(row["inputs"])]
        ceiling = "" if row["ceiling"] is None else f"{row['ceiling']:.2f}"
        table.add_row(row["name"], screened, *tested, ceiling)
    return table


def label_table(label_use: Mapping[str, Mapping[str, Any]], score: str = "local") -> Table:
    """Labelled runs of each component's races, and effective runs with its local reward, or with the score that
    replaces it (``score``, see ``loop.config.OptimizeConfig``)."""
    table = Table(title="Labelled runs, and runs of equal precision without the local reward")
    for column in ("component", "labelled runs", "effective runs", "local reward"):
        table.add_column(column, justify="left" if column in ("component", "local reward") else "right")
    for name, row in label_use.items():
        source = "used" if score == "local" else f"{score} in its place"
        weight = "with the weight that labels support, maybe 0"
        used = f"{source}, {weight}" if row["local_reward"] else "not used: ranked by labels alone"
        table.add_row(name, str(row["labelled_runs"]), f"{row['effective_runs']:.1f}", used)
    return table


def dropped_table(dropped: Mapping[str, Mapping[str, int]]) -> Table:
    """Dropped proposals of each component, by reason, the most frequent reason first."""
    table = Table(title="Proposals that came to nothing")
    for column in ("component", "reason", "proposals"):
        table.add_column(column, justify="right" if column == "proposals" else "left")
    for name, reasons in dropped.items():
        for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
            table.add_row(name, reason, str(count))
    return table


def accepted_table(accepted: Sequence[Mapping[str, Any]], split: str) -> Table:
    """Accepted changes, with the gain of each over the configuration before it."""
    table = Table(title=f"Accepted changes, and the gain of each on the {split} split")
    for column in (
        "iteration",
        "component",
        "kind",
        "validation",
        "score",
        "95 % interval",
        "local reward",
        "95 % interval",
    ):
        table.add_column(column, justify="left" if column in ("component", "kind") else "right")
    for change in accepted:
        cells = [str(change["iteration"] + 1), change["component"], change["kind"], f"{change['val_gain']:+.3f}"]
        on_split = change.get(split, {})
        for row in (on_split.get("gain"), on_split.get("local_gain")):
            cells += ["", ""] if row is None else [f"{row['mean']:+.3f}", interval(row["ci95"])]
        table.add_row(*cells)
    return table


def blame_table(blame: Mapping[str, Any]) -> Table:
    """Components by how often they are likeliest at fault in validation runs that failed."""
    title = f"Likeliest at fault in {blame['failing']} failing validation runs, beside {blame['passing']} that passed"
    table = Table(title=title)
    for column in ("component", "first", "mean share of the blame"):
        table.add_column(column, justify="left" if column == "component" else "right")
    for name, row in sorted(blame["components"].items(), key=lambda item: -item[1]["share"]):
        table.add_row(name, str(row["first"]), f"{row['share']:.2f}")
    table.caption = blame["reason"] or None
    return table


def ledger_table(ledger: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """Calls and tokens per phase."""
    table = Table(title="Completions")
    for column in ("phase", "calls", "paid now", "prompt tokens", "completion tokens", "USD"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase, roles in ledger.items():
        keys = ("calls", "paid_calls", "prompt_tokens", "completion_tokens")
        sums = [f"{sum(row[key] for row in roles.values()):,}" for key in keys]
        table.add_row(phase, *sums, f"{sum(row['usd'] for row in roles.values()):.4f}")
    return table


_COSTS = (("calls", "{:,.0f}"), ("tokens", "{:,.0f}"), ("usd", "{:.4f}"), ("seconds", "{:,.0f}"))


def plan_table(plan: Mapping[str, Any]) -> Table:
    """What the host loop of a run is expected to take, by step (``loop.forecast.plan.Plan``)."""
    host = plan["host"]
    table = Table(title=f"Plan of {plan['title']}: host loop, expected (low to high)")
    for column in ("step", "calls", "tokens", "USD", "seconds"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for step, costs in host["steps"].items():
        table.add_row(step, *(_range(costs, cost, form) for cost, form in _COSTS))
    table.add_row("all", *(_range(host["total"], cost, form) for cost, form in _COSTS), style="bold")
    return table


def _range(costs: Mapping[str, Any], cost: str, form: str) -> str:
    low, expected, high = (form.format(costs[name][cost]) for name in ("low", "expected", "high"))
    return expected if low == high else f"{expected} ({low} to {high})"


def spent_table(spent: Mapping[str, Mapping[str, Any]]) -> Table:
    """What each step took, and in brackets what was expected where the run was planned (``--plan``)."""
    planned = any(row["predicted"] for row in spent.values())
    table = Table(title="Spent by the host loop" + " (expected)" * planned)
    for column in ("step", "calls", "tokens", "USD", "seconds"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for step, row in spent.items():
        table.add_row(step, *(_spent([row], cost, form, planned=planned) for cost, form in _COSTS))
    rows = list(spent.values())
    table.add_row("all", *(_spent(rows, cost, form, planned=planned) for cost, form in _COSTS), style="bold")
    return table


def _spent(rows: Sequence[Mapping[str, Any]], cost: str, form: str, *, planned: bool) -> str:
    """The sum of a cost over rows, and what was expected of it."""
    took = form.format(sum(row["spent"][cost] for row in rows))
    expected = sum(row["predicted"]["expected"][cost] for row in rows if row["predicted"])
    return f"{took} ({form.format(expected)})" if planned else took
