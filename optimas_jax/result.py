"""The result of a run, read from its folder."""

from __future__ import annotations

import dataclasses
import functools
import html
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimas_jax.core.folder.files import read_file, read_rows
from optimas_jax.loop.journal import BEST, RESULTS
from optimas_jax.programs.program import Program
from optimas_jax.saved import Optimized, load

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run, read from its folder. Tables are pandas data frames.

    Attributes:
      folder: of the run.
      results: of its evaluation: ``results.json``, or ``evaluations/LABEL.json``.
      program: the optimised program, for ``best``; by default the program that the run names.

    Raises:
      FolderError: by a table whose file is damaged.
      FileNotFoundError: by a table of an evaluation that was not made.

    Example:
      ```python
      result = oj.open_run("runs/rag")
      print(result.gain, result.interval, result.confirmed)
      result.flips[["inputs", "before", "after", "change"]]
      result.proposals[["component", "verdict", "reason"]]
      ```
    """

    folder: Path
    results: Mapping[str, Any]
    program: Program | Callable[..., Any] | None = None

    @functools.cached_property
    def best(self) -> Optimized:
        """The optimised program; raises as ``load``."""
        return load(self.folder / BEST, self.program)

    @property
    def gain(self) -> float:
        """Mean gain of the metric on the evaluated split."""
        return self.results["gain"]["mean"]

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the gain."""
        low, high = self.results["gain"]["ci95"]
        return low, high

    @property
    def confirmed(self) -> bool:
        """Whether the change was confirmed on examples that the search has not seen."""
        return bool((self.results["confirmed"] or {}).get("changes"))

    @property
    def examples(self) -> pd.DataFrame:
        """Every evaluated example before and after: outputs and feedback (of the first repeat), and mean scores."""
        rows = read_rows(self.folder / "evaluations" / f"{self.results['label']}.jsonl")
        return _frame(
            [
                {
                    **{name: row[name] for name in ("id", "kind", "inputs", "gold")},
                    "before": row["before"]["runs"][0]["outputs"],
                    "after": row["after"]["runs"][0]["outputs"],
                    "score_before": row["before"]["score"],
                    "score_after": row["after"]["score"],
                    "change": row["after"]["score"] - row["before"]["score"],
                    "feedback_before": row["before"]["runs"][0]["feedback"],
                    "feedback_after": row["after"]["runs"][0]["feedback"],
                }
                for row in rows
            ],
            "id kind inputs gold before after score_before score_after change feedback_before feedback_after",
        )

    @property
    def flips(self) -> pd.DataFrame:
        """The examples whose score changed, sorted by the change: those that became worse come first."""
        examples = self.examples
        order = examples["change"].argsort(kind="stable")
        ordered = examples.iloc[order]
        return ordered[ordered["change"] != 0].reset_index(drop=True)

    @property
    def proposals(self) -> pd.DataFrame:
        """Every proposal, with its verdict and the reason; ``race.*`` and ``gate.*`` are figures of race and gate."""
        latest = {
            row["id"]: row for row in read_rows(self.folder / "proposals.jsonl")
        }  # a run with a higher budget may add later rows
        flat = [
            {
                **{name: row[name] for name in row if name not in ("race", "gate")},
                **{f"{part}.{name}": figure for part in ("race", "gate") for name, figure in (row[part] or {}).items()},
            }
            for row in latest.values()
        ]
        return _frame(flat, "id iteration component parent optimiser digest text value verdict reason")

    @property
    def history(self) -> pd.DataFrame:
        """Validation score against cost: after the first validation, every iteration and every accepted proposal."""
        events = [row for row in read_rows(self.folder / "journal.jsonl") if row["event"] == "curve"]
        points = [{name: event[name] for name in event if name not in ("event", "time")} for event in events]
        return _frame(points, "at iteration val_score tokens calls usd seconds")

    @property
    def pareto(self) -> pd.DataFrame:
        """The start and every configuration that passed the gate: score, cost of a run (``dollars``, ``tokens``,
        ``seconds``) and ``reward`` (the score minus weighted costs) on the validation split, each with its interval;
        whether it is ``dominated``, which limits it ``exceeds``, and whether it was ``kept``."""
        measures = ("score", "dollars", "tokens", "seconds", "reward")
        rows = []
        for point in self.results.get("pareto", []):
            row = {name: point[name] for name in ("changes", "component", "configuration")}
            for name in measures:
                measured = point[name] or {"mean": None, "ci95": (None, None)}
                low, high = measured["ci95"]
                row |= {name: measured["mean"], f"{name}_low": low, f"{name}_high": high}
            rows.append(row | {name: point[name] for name in ("exceeds", "dominated", "kept")})
        numbers = " ".join(f"{name} {name}_low {name}_high" for name in measures)
        return _frame(rows, f"changes component configuration {numbers} exceeds dominated kept")

    @property
    def blame(self) -> pd.DataFrame:
        """The failing validation runs of the final configuration: the ``component`` that is most likely at fault ("" if
        it is unknown, with the ``reason``), its share of the blame, and for each component the lowest percentile of its
        local reward and relevance among passing runs."""
        runs = (self.results.get("blame") or {}).get("examples", [])
        rows = [
            {
                **{name: run[name] for name in ("id", "component", "reason")},
                "share": run["shares"].get(run["component"]),
                **{f"percentile.{name}": level for name, level in run["percentiles"].items()},
            }
            for run in runs
        ]
        return _frame(rows, "id component share reason")

    @property
    def by_kind(self) -> pd.DataFrame:
        """Mean scores by kind of example, if examples have kinds."""
        rows = [{"kind": kind, **row} for kind, row in self.results["by_kind"].items()]
        table = _frame(rows, "kind n baseline optimized")
        return table.assign(gain=table["optimized"] - table["baseline"])

    @property
    def cost(self) -> pd.DataFrame:
        """Costs of the run (``run.json``), and in later rows costs of other commands in its folder."""
        later = self.folder.glob("run-*.json")
        files = [self.folder / "run.json", *sorted(later, key=lambda path: int(path.stem.removeprefix("run-")))]
        records = [record for record in map(read_file, files) if record is not None]
        columns = "command started finished seconds peak_rss_mb paid_calls tokens usd"
        return _frame([{name: record[name] for name in columns.split()} for record in records], columns)

    def __repr__(self) -> str:
        before, after = (self.results[name]["mean"] for name in ("baseline", "optimized"))
        low, high = self.interval
        return (
            f"Result({self.results['metric']} {before:.3f} -> {after:.3f}, gain {self.gain:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] on {self.results['n']} examples, "
            f"{'confirmed' if self.confirmed else 'not confirmed'}; {self.folder})"
        )

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        before, after = (self.results[name]["mean"] for name in ("baseline", "optimized"))
        low, high = self.interval
        pairs = list(zip(*(self.results[name]["scores"] for name in ("baseline", "optimized")), strict=True))
        changed = dict.fromkeys(change["component"] for change in self.results["accepted"])
        rows = {
            str(self.results["metric"]): f"{before:.3f} → {after:.3f}",
            "gain": f"{self.gain:+.3f} [{low:+.3f}, {high:+.3f}]",
            "examples": f"{len(pairs)} of {self.results['split']}: {sum(b > a for a, b in pairs)} better, "
            f"{sum(b < a for a, b in pairs)} worse",
            "confirmation": "confirmed" if self.confirmed else "not confirmed",
            "changed": ", ".join(changed) or "nothing",
            "folder": str(self.folder),
        }
        cells = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows.items())
        return f"<table>{''.join(cells)}</table>"


def _frame(rows: Iterable[Mapping[str, Any]], columns: str) -> pd.DataFrame:
    """A data frame with these columns first; it has them even without rows."""
    import pandas as pd  # imported here: it takes longer to import than the rest of this module

    rows = list(rows)
    names = dict.fromkeys([*columns.split(), *(name for row in rows for name in row)])
    return pd.DataFrame(rows, columns=list(names))


def open_run(
    folder: str | Path, program: Program | Callable[..., Any] | None = None, *, evaluation: str = ""
) -> Result:
    """The result of a finished run.

    Args:
      folder: of the run.
      program: the optimised program, for ``best``; by default the program that the run names.
      evaluation: label of one of its evaluations, ``evaluations/LABEL.json``; by default ``results.json``.

    Raises:
      FileNotFoundError: there is no such result.
      FolderError: it is damaged.

    Example:
      ```python
      result = oj.open_run("runs/rag")
      print(result.gain, result.cost)
      ```
    """
    folder = Path(folder)
    path = folder / (f"evaluations/{evaluation}.json" if evaluation else RESULTS)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not path.is_file():
        labels = sorted(file.stem for file in folder.glob("evaluations/*.json"))
        others = f"; it has the evaluations {', '.join(labels)}" if labels else ""
        raise FileNotFoundError(f"no {path}: the command that made {folder} resumes it{others}")
    return Result(folder, read_file(path) or {}, program)
