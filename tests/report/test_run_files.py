"""Reading a run folder for reports."""

import json

from optimas_jax.report.run_files import read_run


def test_a_folder_that_a_run_has_begun_in(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"benchmark": "hotpotqa", "seed": 1}))
    read = read_run(tmp_path)
    assert read.config["seed"] == 1
    assert read.results is None and not read.events and not read.examples


def test_the_last_line_of_a_proposal_counts(tmp_path):
    rows = [
        {"id": "0-a-1", "race": None, "gate": None, "verdict": verdict, "reason": ""}
        for verdict in ("not tested", "accepted")
    ]
    (tmp_path / "proposals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["verdict"] for row in read_run(tmp_path).proposals] == ["accepted"]
