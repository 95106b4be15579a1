"""Alignment of local rewards pooled over the runs of several seeds, as a table in Markdown.

python launch/pool_alignment.py FOLDER FOLDER ...

Each run folder has the results of ``--stage=align``; all must have the same data (``config.data.seed``).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from optimas_jax.rewards.alignment import pooled_pair_accuracy

_PREDICTORS = ("local", "shorter", "loglik", "majority", "ceiling")


def main(folders: list[str]) -> int:
    """Prints the table of these folders; returns the exit code."""
    if len(folders) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    runs = [json.loads((Path(folder) / "alignment.json").read_text())["alignment"] for folder in folders]
    print("| component | inputs of each run | pairs | local reward | shorter | likelier | majority | ceiling |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in dict.fromkeys(name for run in runs for name in run):
        by_input = [run[name]["by_input"] if name in run else {} for run in runs]
        cells = []
        for predictor in _PREDICTORS:
            if any(predictor not in row for run in by_input for row in run.values()):
                cells.append("")  # measured before this control existed
                continue
            accuracy, (low, high) = pooled_pair_accuracy(by_input, predictor)
            cells.append(f"{accuracy:.3f} [{max(0.0, low):.3f}, {min(1.0, high):.3f}]")
        inputs = ", ".join(str(len(run)) for run in by_input)
        pairs = round(sum(row["pairs"] for run in by_input for row in run.values()))
        print(f"| {name} | {inputs} | {pairs} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
