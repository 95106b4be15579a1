"""No wrong program passes by another way than the documented ones, whatever process its tests run in."""

import false_passes
import pytest

from optimas_jax.sandbox import program as sandbox
from optimas_jax.sandbox import unittests
from optimas_jax.sandbox.limits import Limits
from optimas_jax.sandbox.split import split
from optimas_jax.sandbox.unittests import run_tests

pytestmark = pytest.mark.skipif(bool(sandbox._why_no_jail() and sandbox.lacking()), reason=sandbox.lacking())
LIMITS = Limits(seconds=5, cpu_seconds=5, memory_mb=1024)
APART = """
import unittest
class TestCases(unittest.TestCase):
    def test_small(self):
        self.assertEqual(task_func(1), 2)
    def test_large(self):
        self.assertTrue(task_func(10**6) == 10**6 + 1)
"""
TOGETHER = f"""from unittest.mock import patch
{APART}
    @patch("os.getcwd", return_value="/there")
    def test_patched(self, _): self.assertEqual(task_func(3), 4)
"""
# These need the program while they load, so that it is loaded first.
LATE = TOGETHER.replace("    def test_small", "    limit = task_func\n    def test_small")
PATCHED = (
    TOGETHER.replace("    def test_", "    @patch('os.getcwd')\n    def test_")
    .replace("(self)", "(self, *_)")
    .replace("(self, _)", "(self, *_)")
)
WAYS = {"apart": APART, "together": TOGETHER, "late": LATE, "patched": PATCHED}
CLOSED = [(way, name) for way in WAYS for name in false_passes.FAKES]
CLOSED += [("apart", name) for name in (*false_passes.NEIGHBOUR, *false_passes.MEMORY) if name != "equal to everything"]
PROGRAMS = false_passes.FAKES | false_passes.MEMORY | false_passes.NEIGHBOUR


def check(way, name):
    verdict = run_tests(PROGRAMS[name], WAYS[way], LIMITS)
    assert verdict.status != "passed", name
    assert verdict.failed


@pytest.mark.parametrize(("way", "name"), CLOSED[::8])
def test_no_wrong_program_passes(way, name):
    check(way, name)


@pytest.mark.long
@pytest.mark.parametrize("walls", ["jail", "limits"])
@pytest.mark.parametrize(("way", "name"), CLOSED)
def test_no_wrong_program_passes_in_any_walls(way, name, walls, monkeypatch):
    monkeypatch.setattr(sandbox, "wall_kind", lambda: walls)
    check(way, name)


def test_the_ways_are_what_they_are_called():
    assert split(false_passes.WRONG, APART)
    assert not split(false_passes.WRONG, TOGETHER)
    for tests in WAYS.values():
        assert run_tests("def task_func(x): return x + 1", tests, LIMITS).status == "passed"


def test_what_is_documented_as_open_is():
    # Where this fails, the words in ``unittests`` promise too little.
    assert "equal to everything" in unittests.__doc__
    assert run_tests(false_passes.MEMORY["equal to everything"], APART, LIMITS).status == "passed"
