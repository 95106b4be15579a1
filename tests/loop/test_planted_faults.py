"""Planted faults: the guilty component is first far more often than chance finds it (``tests/planted_faults.py``)."""

from __future__ import annotations

from pathlib import Path

import planted_faults
import pytest
from planted_faults import planted_in_embedded, planted_in_enumerable, planted_in_program


def test_exact_local_rewards_name_faults_of_the_enumerable_system(tmp_path: Path) -> None:
    planted = planted_in_enumerable(0, 40, tmp_path)
    assert len(planted.faults) == 40 and planted.chance == pytest.approx(1 / 3)
    assert sum(planted.right()) >= 28 > sum(planted.lowest())


@pytest.mark.long
def test_local_rewards_of_a_tiny_model_name_the_guilty_component(tmp_path: Path) -> None:
    planted = planted_in_program("chain", 7, 24, tmp_path / "run")
    assert len(planted.faults) == 24 and min(planted.groups.values()) >= 50
    assert sum(planted.right()) >= 0.7 * 24 > 24 * planted.chance
    assert "| chain |" in planted_faults.report("chain", planted)


@pytest.mark.long
@pytest.mark.parametrize("name", ["chain", "loop"])
def test_of_40_faults_in_scripted_programs_70_percent_are_named(tmp_path: Path, name: str) -> None:
    planted = planted_in_program(name, 0, 40, tmp_path / "run")
    assert len(planted.faults) == 40 and min(planted.groups.values()) >= 50
    assert sum(planted.right()) >= 28, planted_faults.report(name, planted)


@pytest.mark.long
def test_in_the_embedded_system_most_faults_are_named(tmp_path: Path) -> None:
    """Some minutes on two cores. What was seen is in docs/objectives.md."""
    planted = planted_in_embedded(0, 40, tmp_path / "run")
    assert len(planted.faults) == 40 and min(planted.groups.values()) >= 50
    assert sum(planted.right()) >= 28, planted_faults.report("embedded", planted)
