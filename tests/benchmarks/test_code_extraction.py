"""Programs and tests are found in answers of all shapes."""

# ruff: noqa: E501 (programs stand on one line)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimas_jax.benchmarks.code_extraction import extract_program, extract_tests, fenced_blocks

PROGRAM = "import math\n\ndef task_func(x):\n    return math.sqrt(x)"
QUESTION = (
    "Take the root. You should write self-contained code starting with:\n```\nimport math\ndef task_func(x):\n```"
)


def extract(answer, question=QUESTION):
    return extract_program(answer, "task_func", question)


@pytest.mark.parametrize(
    "answer",
    [
        PROGRAM,
        f"```python\n{PROGRAM}\n```",
        f"```\n{PROGRAM}\n```",
        f"~~~py\n{PROGRAM}\n~~~",
        f"Here is the solution:\n\n```python\n{PROGRAM}\n```\nIt takes the root.",
        f"Sure!\n```python\n{PROGRAM}",  # the fence was never closed
        f"Sure!\n\n{PROGRAM}\n\nThis takes the root: it's simple.",
        f"{PROGRAM}\n```\nand that is all",  # a fence that closes nothing
        f"```python\r\n{PROGRAM}\r\n```".replace("\n", "\r\n").replace("\r\r", "\r"),
        "1. Do it:\n   ```python\n" + "\n".join(f"   {line}" for line in PROGRAM.split("\n")) + "\n   ```",
        f"```bash\npip install maths\n```\n```python\n{PROGRAM}\n```",
        f"{QUESTION}\n\n```python\n{PROGRAM}\n```",  # the question first
        f"```python\ndef task_func(x):\n    return x\n```\nThat was wrong. Better:\n```python\n{PROGRAM}\n```",
        f"```python\n{PROGRAM}\n```\nUse it so:\n```python\nprint(task_func(4))\n```",
        f"```python\n{PROGRAM}\n\nprint(task_func(4))\nresult = task_func(9)\nassert result == 3\n```",
        f'```python\n{PROGRAM}\n\nif __name__ == "__main__":\n    print(task_func(4))\n```',
    ],
)
def test_the_program_is_found_wherever_it_stands(answer):
    lines = [line for line in extract(answer).splitlines() if line.strip()]
    assert lines in (
        [line for line in PROGRAM.splitlines() if line],
        ["def task_func(x):", "    return x", *(line for line in PROGRAM.splitlines() if line)],  # overridden below
    )


def test_definitions_of_earlier_blocks_come_along_and_their_trials_do_not():
    answer = (
        "```python\nimport os\ndef helper(x):\n    return x\nprint(helper(1))\n```\nthen\n"
        "```python\ndef task_func(x):\n    return helper(x)\n```"
    )
    expected = "import os\ndef helper(x):\n    return x\ndef task_func(x):\n    return helper(x)"
    assert extract(answer) == expected


def test_what_the_function_needs_stays_whole():
    program = (
        "import random\nrandom.seed(0)\ntry:\n    import numpy\nexcept ImportError:\n    numpy = None\nLIMIT = 3\n"
        "@staticmethod\ndef task_func(x):\n    return LATER + LIMIT\nLATER = 1\nclass A:\n    pass"
    )
    assert extract(f"```python\n{program}\n```") == program


def test_a_body_alone_is_put_below_its_signature():
    expected = "import math\ndef task_func(x):\n    y = x\n    return math.sqrt(y)"
    assert extract("    y = x\n    return math.sqrt(y)") == expected
    assert extract("y = x\nreturn math.sqrt(y)") == expected
    assert extract("```python\n    y = x\n    return math.sqrt(y)\n```") == expected


def test_a_program_that_was_cut_off_keeps_what_is_whole():
    answer = "```python\ndef task_func(x):\n    y = x + 1\n    return y\n\ndef helper(a,"
    assert extract(answer) == "def task_func(x):\n    y = x + 1\n    return y"


@pytest.mark.parametrize(
    "answer", ["", "I cannot do that.", "```\n```", "def other(x):\n    return 1", "```python\nx = (\n```"]
)
def test_an_answer_without_the_function_yields_nothing(answer):
    assert extract(answer, "no code here") == ""


def test_warnings_about_a_program_are_not_ours():
    assert extract("def task_func(x):\n    return '\\d'") == "def task_func(x):\n    return '\\d'"


@given(st.text(alphabet=st.sampled_from("`~\n\r \tdef task_func(x):return import\0é"), max_size=200))
def test_no_answer_makes_it_fail_and_what_it_finds_is_a_program(answer):
    code = extract(answer)
    compile(code, "code", "exec")
    extract_tests(answer, "task_func")
    fenced_blocks(answer)


TESTS = "import unittest\n\nclass TestCases(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(task_func(1), 1)"


@pytest.mark.parametrize(
    "answer",
    [
        TESTS,
        f"```python\n{TESTS}\n```",
        f"Tests:\n```\n{TESTS}\n\nunittest.main()\n```",
        f"```python\ndef task_func(x):\n    return x\n\n{TESTS}\n```",
        f"```python\nfrom solution import task_func\n{TESTS}\nif __name__ == '__main__':\n    unittest.main()",
        f"Here are tests.\n\n{TESTS}\n\nThey test it: all of it.",
    ],
)
def test_tests_come_without_a_solution_and_without_starting_themselves(answer):
    assert extract_tests(answer, "task_func") == TESTS.replace("\n\n", "\n")


def test_no_tests_are_no_tests():
    assert extract_tests("I would test it.", "task_func") == ""
