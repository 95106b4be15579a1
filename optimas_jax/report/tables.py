"""What a run tells at its end: tables on the console and in ``report.html``, scalars for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def tables(results: Mapping[str, Any]) -> list[Table]:
    """All tables, the most important one last, as a console shows them."""
    accepted = results["accepted"]
    return [
        alignment_table(results["alignment"]),
        ledger_table(results["ledger"]),
        *([accepted_table(accepted, results["split"])] if accepted else []),
        result_table(results),
    ]


def result_table(results: Mapping[str, Any]) -> Table:
    """Scores before and after, with intervals."""
    title = f"{results['benchmark']}:{results['variant']}, {results['split']} split, n = {results['n']}"
    table = Table(title=f"{title}, {results['metric']}, chance {results['chance']:.2f}")
    for column in ("", "mean", "95 % interval", "P(gain > 0)"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("baseline", "optimized"):
        row = results[name]
        table.add_row(name, f"{row['mean']:.3f}", _interval(row["ci95"]), "")
    gain = results["gain"]
    table.add_row("gain", f"{gain['mean']:+.3f}", _interval(gain["ci95"]), f"{gain['p_positive']:.3f}", style="bold")
    for name, row in results.get("other_metrics", {}).items():
        before, after = (row[side]["mean"] for side in ("baseline", "optimized"))
        tested = "ci95" in row["gain"]
        interval, surely = (_interval(row["gain"]["ci95"]), f"{row['gain']['p_positive']:.3f}") if tested else ("", "")
        table.add_row(f"{name}, chance {row['chance']:.2f}", f"{before:.3f} -> {after:.3f}", interval, surely)
    for kind, row in results["by_kind"].items():
        table.add_row(f"  {kind} (n = {row['n']})", f"{row['baseline']:.3f} -> {row['optimized']:.3f}", "", "")
    return table


def alignment_table(alignment: Mapping[str, Mapping[str, Any]]) -> Table:
    """Local rewards against the global one, on held-out inputs."""
    table = Table(title="Alignment on held-out inputs (pair accuracy; chance 0.5)")
    for column in ("component", "local reward", "95 % interval", "pairs", "inputs", "Spearman", "shorter", "likelier"):
        table.add_column(column, justify="left" if column == "component" else "right")
    for name, row in alignment.items():
        table.add_row(
            name,
            f"{row['pair_accuracy']:.3f}",
            _interval(row["ci95"]),
            str(row["n_pairs"]),
            str(row["n_inputs"]),
            f"{row['spearman']:.2f}",
            f"{row['controls']['shorter']:.3f}",
            f"{row['controls']['loglik']:.3f}",
        )
    return table


def accepted_table(accepted: Sequence[Mapping[str, Any]], split: str) -> Table:
    """What each accepted change brought, given those before it."""
    table = Table(title=f"Accepted changes, and what each brought on the {split} split")
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
        brought = change.get(split, {})
        for row in (brought.get("gain"), brought.get("local_gain")):
            cells += ["", ""] if row is None else [f"{row['mean']:+.3f}", _interval(row["ci95"])]
        table.add_row(*cells)
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


def _interval(bounds: Any) -> str:
    return f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"


def write_html(path: Path, results: Mapping[str, Any]) -> None:
    """The same tables as one self-contained page."""
    with path.with_suffix(".partial").open("w", encoding="utf-8") as sink:
        console = Console(record=True, width=140, file=sink)
        for table in reversed(tables(results)):
            console.print(table)
        html = console.export_html(inline_styles=True)
    path.with_suffix(".partial").write_text(html, encoding="utf-8")
    path.with_suffix(".partial").replace(path)


def write_tensorboard(folder: Path, results: Mapping[str, Any], history: list[Mapping[str, float]]) -> None:
    """Training curves, validation score by accepted step, final scores; one event file per run, replaced on resume."""
    from tensorboard.summary import Writer

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    writer = Writer(str(folder))
    for epoch, row in enumerate(history):
        for name, value in row.items():
            writer.add_scalar(f"reward/{name}", value, step=epoch)
    for step in results["accepted"]:
        writer.add_scalar("search/val_score", step["val_score"], step=step["iteration"])
    for name in ("baseline", "optimized"):
        writer.add_scalar(f"test/{name}", results[name]["mean"], step=0)
    for name, row in results["alignment"].items():
        writer.add_scalar(f"alignment/{name}", row["pair_accuracy"], step=0)
    writer.close()
