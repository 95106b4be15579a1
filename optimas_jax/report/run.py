"""The report of a run, read from its folder: tables on the console, ``report.html``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimas_jax.core.folder.files import FolderError, read_file, write_text
from optimas_jax.core.text.frames import describe_error
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.devices import device_lines
from optimas_jax.report.page.write import write_page
from optimas_jax.report.pareto import pareto_svg, shows_pareto
from optimas_jax.report.run_files import read_run
from optimas_jax.report.tables import (
    alignment_table,
    confirmation_line,
    plan_table,
    probe_table,
    tables,
)

PICTURE = "pareto.svg"  # of a run folder


def report_run(workdir: Path, progress: ConsoleProgress, label: str = "") -> None:
    """Writes the report of a run folder (``write_report``) and shows its tables; nothing without results."""
    path, results = write_report(workdir, label)
    if results is None:
        return
    for table in tables(results):
        progress.table(table)
    if (worst := uncertain_line(read_file(workdir / "run.json") or {})) is not None:
        progress.line(worst)
    progress.line(last_line(results, path))


def write_report(workdir: Path, label: str = "") -> tuple[Path, dict[str, Any] | None]:
    """Writes the page of a run folder, or of one of its evaluations; returns the results, None without any, and their
    file. A fault of the page alone is a warning.

    Args:
      label: of the evaluation (``evaluations/LABEL.json``); by default the run's own, which ``results.json`` holds. It
        has ``report.html`` and ``pareto.svg``; others have ``evaluations/LABEL.html``.

    Raises:
      FolderError: a file is damaged, or cannot be written.
    """
    own_path = workdir / "results.json"
    results = read_file(own_path) or {}
    path, page = own_path, workdir / "report.html"
    if label and results.get("label") != label:
        path, page = (workdir / "evaluations" / f"{label}.{kind}" for kind in ("json", "html"))
        results = read_file(path)
    if not results:
        return path, None
    try:
        if path == own_path and shows_pareto(results):
            write_text(workdir / PICTURE, pareto_svg(results["pareto"]))
        write_page(page, read_run(workdir, label))  # last: it names the files that are there
    except OSError as error:
        raise FolderError(
            f"cannot write the report of {workdir} ({error}): make room, or move what is in its place away, and run "
            "the same command again. The results are there"
        ) from error
    except FolderError:
        raise
    except Exception as error:  # of a section: the run is worth more than its page
        warnings.warn(f"{page} cannot be made ({describe_error(error)}); the results are in {path}", stacklevel=2)
    return path, results


def write_page_of(workdir: Path, progress: ConsoleProgress) -> None:
    """Writes only ``report.html``, for a run whose tables are part of other tables. An error is shown as a line, and
    stops nothing: the results are there."""
    try:
        write_page(workdir / "report.html", read_run(workdir))
    except (OSError, FolderError) as error:
        progress.line(f"no page of {workdir}: {error}")


def last_line(results: Mapping[str, Any], path: Path) -> str:
    """The gain with its confirmation, the costs of the run, and the path of its results."""
    confirmation = confirmation_line(results) or "no confirmation"
    return (
        f"gain {results['gain']['mean']:+.3f} ({confirmation}); {results['wall_seconds']:.0f} s, "
        f"{results['peak_rss_mb']} MB at most, {results['paid_calls']} completions paid for; {path}"
    )


def uncertain_line(record: Mapping[str, Any]) -> str | None:
    """How much of the bill is a worst case; None where nothing is."""
    worst = record.get("uncertain") or {}
    if not worst.get("calls"):
        return None
    return (
        f"of the bill {worst['calls']} requests are at their worst case, {worst['tokens']:,} tokens: they had no "
        "answer after the model may have worked on them, or one that does not say what it used"
    )


def report_plan(plan: Mapping[str, Any], progress: ConsoleProgress) -> None:
    """Shows a plan (``loop.forecast.plan.Plan.to_json``)."""
    host = plan["host"]
    progress.table(plan_table(plan))
    if host["limit"]:
        ends = "is expected to be enough" if host["cut"] is None else f"ends the search in iteration {host['cut'] + 1}"
        progress.line(f"config.budget allows {host['limit']}, which {ends}")
    elif host["cut"] is not None:
        progress.line(f"config.optimize.max_tokens ends the search in iteration {host['cut'] + 1}")
    progress.line(
        "seconds are an estimate, of waiting for answers; training and scoring of local rewards and programs in a "
        "sandbox are not in them"
    )
    for line in host["unknown"]:
        progress.line(f"  {line}")
    for line in device_lines(plan["device"]):
        progress.line(line)


def report_probe(workdir: Path, progress: ConsoleProgress) -> None:
    """Shows the results of the probe stage."""
    data = read_file(workdir / "probe.json") or {}
    progress.table(probe_table(data))
    for line in data["advice"]:
        progress.line(f"{line}")
    if data["first"]:
        progress.line(f"a search that begins with it: --config.optimize.order={data['first']}, in a new --workdir")
    progress.line(
        f"the probe used {data['spent']:,} tokens; an iteration of a search is expected to use "
        f"{data['iteration_tokens']:,}; {workdir / 'probe.json'}"
    )


def report_alignment(workdir: Path, progress: ConsoleProgress) -> None:
    """Shows the results of the align stage."""
    data = read_file(workdir / "alignment.json") or {}
    progress.table(alignment_table(data["alignment"]))
    if not data["alignment"]:
        progress.line("nothing to align: on no input had the outputs of a component different global rewards")
    progress.line(f"{workdir / 'alignment.json'}")
