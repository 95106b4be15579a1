"""Verdicts of unit tests on programs, honest ones and others."""

# ruff: noqa: E501 (programs stand on one line)

import json

import pytest

from optimas_jax.sandbox import program as sandbox
from optimas_jax.sandbox import unittests
from optimas_jax.sandbox.limits import Limits
from optimas_jax.sandbox.split import split
from optimas_jax.sandbox.unittests import Verdict, run_tests

pytestmark = pytest.mark.skipif(bool(sandbox._why_no_jail() and sandbox.lacking()), reason=sandbox.lacking())
LIMITS = Limits(seconds=120, cpu_seconds=20, memory_mb=1024)
TESTS = """
import unittest
class TestCases(unittest.TestCase):
    def test_small(self):
        self.assertEqual(task_func(1), 2)
    def test_large(self):
        self.assertTrue(task_func(10**6) == 10**6 + 1)
"""
RIGHT = "def task_func(x):\n    return x + 1\n"
WRONG = "def task_func(x):\n    return x\n"


def test_a_right_program_passes_and_a_wrong_one_says_where():
    right = run_tests(RIGHT, TESTS, LIMITS)
    assert (right.status, right.passed, right.failed) == ("passed", ("test_small", "test_large"), {})
    wrong = run_tests("def task_func(x):\n    return 2\n", TESTS, LIMITS)
    assert (wrong.status, wrong.passed, list(wrong.failed)) == ("failed", ("test_small",), ["test_large"])
    assert "self.assertTrue(task_func(10**6) == 10**6 + 1)" in wrong.failed["test_large"]
    assert "AssertionError: False is not true" in wrong.failed["test_large"]
    assert "runner.py" not in wrong.failed["test_large"]


@pytest.mark.parametrize(
    "program",
    [
        "",
        "def task_func(x):\n    pass\n",
        "def task_func(x:\n    return x + 1\n",
        "raise ValueError('at once')",
        "print('OK')\nprint('Ran 2 tests in 0.000s\\n\\nOK')\nimport sys; sys.exit(0)",
        "import os\nos._exit(0)",
        f"{WRONG}import atexit, os\natexit.register(os._exit, 0)",
        "def task_func(x):\n    import os\n    os._exit(0)",
        "def task_func(x):\n    raise SystemExit(0)",
        "def task_func(x):\n    raise KeyboardInterrupt",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        # what tests are made of
        f"{WRONG}import unittest\nunittest.TestCase.assertEqual = unittest.TestCase.assertTrue = lambda *a: None",
        f"{WRONG}import unittest\nunittest.TestCase.run = lambda self, result=None: result.addSuccess(self)",
        f"{WRONG}import unittest\nunittest.TestCase.failureException = ZeroDivisionError",
        f"{WRONG}import unittest.case\nunittest.case._Outcome.testPartExecutor = lambda *a, **k: __import__('contextlib').nullcontext()",
        f"{WRONG}import unittest\nunittest.TestResult.addFailure = lambda *a: None\nunittest.main = lambda *a: None",
        f"{WRONG}import unittest\nunittest.TestLoader.loadTestsFromTestCase = lambda *a: unittest.TestSuite()",
        f"{WRONG}import unittest\nunittest.TestSuite.run = lambda self, result, debug=False: result",
        f"{WRONG}import sys, types\nfake = types.ModuleType('unittest')\nfake.TestCase = object\nsys.modules['unittest'] = fake",
        f"{WRONG}import builtins\nold = builtins.__build_class__\n"
        "builtins.__build_class__ = lambda f, name, *b, **k: type(name, b, {'test_small': lambda s: 0, 'test_large': lambda s: 0})",
        f"{WRONG}import builtins\nbuiltins.AssertionError = type('A', (Exception,), {{}})",
        # while tests run
        "import unittest\ndef task_func(x):\n    raise unittest.SkipTest('not today')",
        "def task_func(x):\n    import unittest\n    unittest.TestCase.assertEqual = unittest.TestCase.assertTrue = lambda *a: None",
        "def task_func(x):\n    import sys, unittest\n    cases = sys.modules['__test__'].TestCases\n"
        "    cases.assertEqual = cases.assertTrue = lambda *a: None",
        "def task_func(x):\n    import sys\n    cases = sys.modules['__test__'].TestCases\n"
        "    cases.test_small = cases.test_large = lambda self: None\n    return 2",
        "import gc, unittest\ndef task_func(x):\n    for o in gc.get_objects():\n"
        "        if isinstance(o, unittest.TestResult): o.failures.clear(); o.errors.clear()",
        # a report of its own, without the secret
        f"{WRONG}import os\nfor fd in range(3, 20):\n    try:\n"
        "        for name in ('test_small', 'test_large'): os.write(fd, f'[\"{name}\", \"passed\", \"\"]\\n'.encode())\n"
        '        os.write(fd, b\'["", "done", ""]\\n\')\n    except OSError: pass\nos._exit(0)',
        # running on as two
        f"{RIGHT}import os\nif os.fork() == 0: os._exit(0)\nos._exit(0)",
    ],
)
def test_no_program_passes_without_doing_what_is_tested(program):
    verdict = run_tests(program, TESTS, LIMITS)
    assert verdict.status in ("failed", "crashed"), verdict
    assert verdict.failed


@pytest.mark.parametrize(
    "program",
    [
        f"import builtins\n_print = print\ndef print(*a): _print(*a)\n{RIGHT}",
        f"import unittest\n{RIGHT}\nclass TestCases(unittest.TestCase):\n    def test_own(self): self.fail()",
        f"import os\n{RIGHT}\nprint('noise' * 10**6)",
        f"from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int' = 0\n{RIGHT}",
        f"import unittest\nunittest.TestCase.maxDiff = None\n{RIGHT}",
        f"if __name__ == '__main__':\n    raise ValueError\n{RIGHT}",
        f"import os\n{RIGHT}\nif os.fork() == 0: os._exit(0)",
        "import multiprocessing\ndef add(x): return x + 1\ndef task_func(x):\n"
        "    with multiprocessing.Pool(2) as pool: return pool.map(add, [x])[0]",
        "import pickle\nclass A:\n    def __init__(self, x): self.x = x\n"
        "def task_func(x): return pickle.loads(pickle.dumps(A(x))).x + 1",
        "import threading\nthreading.Thread(target=__import__('time').sleep, args=(600,)).start()\n" + RIGHT,
    ],
)
def test_honest_programs_pass_whatever_else_they_do(program):
    assert run_tests(program, TESTS, LIMITS).status == "passed"


def test_a_program_without_end_is_told_from_a_wrong_one():
    verdict = run_tests("def task_func(x):\n    while x > 1: pass\n    return x + 1", TESTS, Limits(seconds=3))
    assert (verdict.status, verdict.passed) == ("timeout", ())
    verdict = run_tests("def task_func(x): return bytearray(10**10)", TESTS, LIMITS)
    assert verdict.status == "failed"
    assert "MemoryError" in verdict.failed["test_small"]


def test_tests_may_mock_skip_and_expect_failures_as_officially():
    tests = """
import unittest
from unittest.mock import patch
class Base(unittest.TestCase):
    def test_inherited(self):
        with patch("builtins.input", return_value=7):
            self.assertEqual(input(), 7)
class TestCases(Base):
    @unittest.skip("elsewhere")
    def test_skipped(self): self.fail()
    def test_skips_itself(self): self.skipTest("today")
    @unittest.expectedFailure
    def test_fails_as_expected(self): self.fail()
    @patch("os.getcwd", return_value="/there")
    def test_patched(self, _): self.assertEqual(__import__("os").getcwd(), "/there")
    def test_subtests(self):
        for i in range(3):
            with self.subTest(i): self.assertEqual(task_func(i), i + 1)
"""
    verdict = run_tests(RIGHT, tests, LIMITS)
    assert (verdict.status, verdict.failed) == ("passed", {})
    assert verdict.passed == unittests.test_names(tests)
    wrong = run_tests("def task_func(x): return 2", tests, LIMITS)
    assert list(wrong.failed) == ["test_subtests"]


def test_tests_in_sets_up_that_fail_fail():
    tests = TESTS + "    @classmethod\n    def setUpClass(cls): raise OSError('no database')\n"
    verdict = run_tests(RIGHT, tests, LIMITS)
    assert verdict.status == "failed"
    assert "no database" in str(verdict.failed)


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("def (", "the tests are no Python"),
        ("x = '\0'", "the tests are no Python"),
        ("import unittest\nclass Other(unittest.TestCase):\n    def test_a(self): pass", "no class TestCases"),
        ("class TestCases: pass", "no class TestCases with a test"),
    ],
)
def test_tests_that_cannot_be_run_pass_nobody(tests, message):
    verdict = run_tests(RIGHT, tests, LIMITS)
    assert verdict.status == "crashed"
    assert message in verdict.failed[""]


def test_without_a_class_whatever_is_there_is_run():
    tests = f"{TESTS}\nclass TestMore(unittest.TestCase):\n    def test_more(self): self.assertEqual(task_func(2), 3)\n"
    tests += "def test_plain():\n    assert task_func(3) == 4\n"
    verdict = run_tests(RIGHT, tests, LIMITS, case="")
    assert (verdict.status, set(verdict.passed)) == ("passed", {"test_small", "test_large", "test_more", "test_plain"})
    wrong = run_tests(WRONG, tests, LIMITS, case="")
    assert set(wrong.failed) == {"test_small", "test_large", "test_more", "test_plain"}
    assert run_tests(RIGHT, "x = 1", LIMITS, case="").failed == {"": "there is no test"}


def test_names_of_tests_are_read_and_not_run():
    tests = "raise SystemExit\nclass A(TestCases): pass\nclass TestCases(A):\n    async def test_x(self): '\\d'\n    def other(self): 0\n"
    assert unittests.test_names(tests) == ("test_x",)


def test_a_summary_is_short_and_shows_where_the_errors_stand():
    verdict = Verdict("failed", ("a",), {"b": "x" * 3000 + " the end", "": "y" * 3000})
    text = verdict.summary(400)
    assert text.startswith("1 of 2 tests passed.\nb: ...xxx")
    assert "the end" in text
    assert len(text) <= 400
    assert Verdict("passed", ("a",), {}).summary() == "1 of 1 tests passed."


# Tests in a process of their own

WORLDLY = """
import os, random, json
FACTOR = 3
class Mine(ValueError):
    pass
def task_func(x, seen=None, out=None):
    if x == "raise": raise Mine("no " + x)
    if x == "key": return {}["k"]
    if x == "json": return json.loads("{")
    if x == "exit": raise SystemExit(3)
    if x == "oserror": open("/nowhere/file")
    if x == "random": return [random.random() for _ in range(3)]
    if x == "cd": os.chdir("/"); return os.getcwd()
    if x == "env": os.environ["MINE"] = "1"; return os.environ.get("YOURS")
    if x == "same": return seen
    if seen is not None: seen.append(x); seen.sort()
    if out is not None: out["x"] = x; out.pop("y", None)
    return x * FACTOR
"""
OF_THE_WORLD = """
import json, os, random, unittest
class TestCases(unittest.TestCase):
    def test_args(self):
        a, o = [3, 2], {"y": 1}
        self.assertEqual(task_func(1, a, out=o), FACTOR)
        self.assertEqual((a, o), ([1, 2, 3], {"x": 1}))
        self.assertIs(task_func("same", a), a)
    def test_errors(self):
        errors = {"raise": ValueError, "key": KeyError, "json": json.JSONDecodeError, "oserror": FileNotFoundError, "exit": SystemExit}
        for name, error in errors.items():
            with self.subTest(name), self.assertRaises(error) as caught: task_func(name)
        self.assertEqual(str(caught.exception), "3")
        with self.assertRaisesRegex(ValueError, "no raise"): task_func("raise")
        try: task_func("oserror")
        except OSError as error: self.assertEqual((error.errno, error.filename), (2, "/nowhere/file"))
        with self.assertRaises(TypeError): task_func()
    def test_world(self):
        random.seed(5)
        first = task_func("random")
        again = random.random()
        random.seed(5)
        self.assertEqual(first + [again], [random.random() for _ in range(4)])
        os.environ["YOURS"] = "2"
        self.assertEqual(task_func("env"), "2")
        self.assertEqual(os.environ["MINE"], "1")
        here = os.getcwd()
        self.assertEqual((task_func("cd"), os.getcwd()), ("/", "/"))
        os.chdir(here)
        with open("f", "w") as f: f.write("x")
        self.assertEqual(os.listdir("."), ["f"])
"""


def test_a_program_in_another_process_is_as_it_is_in_one():
    parts = split(WORLDLY, OF_THE_WORLD)
    assert (parts.remote, parts.test_imports) == (("FACTOR", "task_func"), "import json, os, random, unittest")
    verdict = run_tests(WORLDLY, OF_THE_WORLD, LIMITS)
    assert (verdict.status, verdict.failed) == ("passed", {})
    wrong = run_tests(WORLDLY.replace("x * FACTOR", "x / 0"), OF_THE_WORLD, LIMITS)
    assert list(wrong.failed) == ["test_args"]
    assert wrong.failed["test_args"].endswith("return x / 0\nZeroDivisionError: division by zero\n")
    assert "runner" not in wrong.failed["test_args"]


@pytest.mark.parametrize(
    ("program", "assertion"),
    [
        ("class A: x = 2\ndef task_func(x): return A()", "assertEqual(task_func(1).x, 2)"),
        ("def task_func(x): return (y for y in [2])", "assertEqual(list(task_func(1)), [2])"),
        ("def task_func(x): return x(1)", "assertEqual(task_func(lambda y: y + 1), 2)"),
        ("async def task_func(x): return 2", "assertEqual(__import__('asyncio').run(task_func(1)), 2)"),
        ("import os\ndef task_func(x): return os.stat('/')", "assertTrue(task_func(1).st_mode)"),
        ("class task_func:\n    def __init__(self, x): self.x = x", "assertEqual(task_func(2).x, 2)"),
        ("class E(Exception): pass\ndef task_func(x): raise E", "assertRaises(E, task_func, 1)"),
        ("def task_func(x): 'two'", "assertEqual(task_func.__doc__, 'two')"),
        ("from json import *\ndef task_func(x): return dumps(x)", "assertEqual(loads(task_func(1)), 1)"),
        ("import sys\ndef task_func(x): print(x, file=sys.stderr)", "assertIn('write', dir(sys.stderr))"),
    ],
)
def test_tests_that_look_at_more_than_data_pass_in_the_programs_process(program, assertion):
    tests = f"import unittest\nclass TestCases(unittest.TestCase):\n    def test_it(self): self.{assertion}\n"
    assert run_tests(program, tests, LIMITS).status == "passed"


@pytest.mark.parametrize(
    ("tests", "apart"),
    [
        ("x = task_func(1)", True),
        ("import os, numpy\nnumpy.equal(task_func(1), 1)", False),
        ("from unittest import mock", False),
        ("import unittest.mock", False),
        ("with self.assertLogs(): task_func(1)", False),
        ("from os import *", False),
        ("print(sys.stdout)", False),
        ("eval('task_func')", False),
        ("nonlocal x", False),
        ("d.loads(task_func(1))", False),  # the program's name for a module that is not of values
        ("js.loads(task_func(1))", True),
        ("import time\ntime.sleep = print", False),
        ("import os\ndel os.getcwd", False),
        ("class A:\n    def f(self): self.x = task_func(1)", True),
    ],
)
def test_which_tests_run_apart_is_read_from_their_text(tests, apart):
    program = "import json as js\nimport numpy as d\ndef task_func(x): return x"
    assert bool(split(program, tests)) == apart


def test_a_verdict_holds_what_a_file_can_hold():
    verdict = run_tests("def task_func(x): raise ValueError('\\ud83d\\0')", TESTS, LIMITS)
    assert "ValueError: ?" in verdict.failed["test_small"]
    json.dumps(verdict.failed, ensure_ascii=False).encode()
