"""Cells of a comparison with given scores and curves."""

from __future__ import annotations


def point(tokens, runs, score, at="iteration"):
    return {"at": at, "tokens": tokens, "calls": tokens // 10, "usd": 0.5, "system_runs": runs, "val_score": score}


def cell(scores, curve=None, note="", val_score=0.5, confirm=None):
    return {
        "metric": "f1",
        "chance": 0.25,
        "n": len(scores),
        "split": "test",
        "outcomes": {"ok": len(scores)},
        "tested": {"val_score": val_score},
        "baseline": [0.0] * len(scores),
        "scores": scores,
        "confirm": confirm,
        "unchanged": not any(scores),
        "label_use": {},
        "commit": "abc",
        "curve": [point(100, 4, 0.1), point(200, 8, max(scores))] if curve is None else curve,
        "seconds": 10.0,
        "reward_seconds": 4.0,
        "note": note,
    }
