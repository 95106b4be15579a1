"""BigCodeBench (Zhuo et al., 2024), instruct, with the four-component system of the paper (Table 5, Figure 2).

    question -> code_generator ------> executor -> final_coder
        \\-----> unit_test_generator --^              ^ reads all of the above

The two generators run in parallel; the executor runs the generated program with the generated tests in the sandbox
(``optimas_jax.sandbox``) and reports; the final coder answers. The metric is pass@1 as in the official evaluation: 1 if
the final program passes every test of the task's own class ``TestCases``, in one module with it, else 0. No component
sees those tests. Chance is 0: no guess passes.

Executions are recorded on the tape like completions (``llm.sandbox``), so that a repeated run gets the same reports.

Data: ``bigcode/bigcodebench``, release v0.1.4, from the hub, or rows of the same fields by path; ``libs`` and
``doc_struct`` are not needed, ``imports`` is computed from the code. ``config.data.source`` selects tasks:

    installed  (default) tasks whose imports this interpreter has: a task that cannot pass here would count as the
               model's failure; ``Dataset.origin`` tells how many are left out
    stdlib     tasks whose solution and tests need only the standard library
    all        all tasks
    synthetic  made-up tasks, for tests without data

Deviations from the paper (arXiv 2507.03041) and its released code (snap-stanford/optimas), and why:

- The unit-test generator is asked for unit tests. The released prompt asks it to complete the function.
- Programs are extracted from the answers of all coders by one function (``code_extraction``). The released code
  extracts the first program only, grades the final answer with its fences, and drops tests without a ``python`` fence.
- The executor reports how many tests passed and which failed, cut to 1,500 characters. The released one reports only
  the outcome of its metric.
- An answer of a generator without a program is passed on unchanged (the executor then reports its syntax error); such
  an answer of the final coder is a parse error and scores 0.
- Splits have the paper's sizes (500, 25, 70), sampled from all tasks. The released code takes 1,000 for training, 5 %
  of them for validation, of v0.1.3.
- Programs run in a sandbox without network: the few tasks whose tests need the internet cannot pass. The official
  evaluation warns that its guard is not a sandbox.
- Tests that compare plain data run in another process than the program; others share its process as officially, with a
  ``unittest`` that the program cannot reach (``sandbox.unittests``).
- Limits: 240 s as official; 60 s of CPU time and 4 GB of memory per process (official: none and 30 GB). All solutions
  of v0.1.0 that need only the standard library stay within them.
- Questions (``config.data.max_chars``) and the inputs of the final coder (``config.system.code_chars``) can be cut in
  their middle for models with a short context; the paper's variant cuts nothing.
- Models and temperature: see ``configs/bigcodebench.py``.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from optimas_jax.benchmarks.code_extraction import extract_program, extract_tests
from optimas_jax.benchmarks.data import (
    TEXT,
    DataConfig,
    DataError,
    Dataset,
    deal,
    fields_of,
    hub_rows,
    read_rows,
    repetitions,
)
from optimas_jax.benchmarks.parts import stops, tuned_by_weights
from optimas_jax.core.component import Component, ComponentFailure, RunContext
from optimas_jax.core.running.event_loop import off_loop
from optimas_jax.core.schema import NonNegativeInt
from optimas_jax.core.system import System
from optimas_jax.core.text.json_text import shown
from optimas_jax.core.types import Example, Outcome
from optimas_jax.core.values import Demo, LoraSpace, Prompt, PromptSpace, Value
from optimas_jax.llm.component import LanguageModel, llm_component
from optimas_jax.llm.sandbox import execute_tests
from optimas_jax.sandbox.limits import Limits
from optimas_jax.sandbox.program import Isolation, check_walls
from optimas_jax.sandbox.source import parse
from optimas_jax.sandbox.unittests import test_names

METRIC = "pass@1"
SOURCES = ("installed", "stdlib", "all", "synthetic")
OFFLINE = ("synthetic",)
HUB = ("bigcode/bigcodebench", None, "v0.1.4")
FUNCTION = "task_func"  # name of every task's function
CASE = "TestCases"  # name of every task's test class

_PROMPTED = ("code_generator", "unit_test_generator", "final_coder")
_FIELDS = ("task_id", "instruct_prompt", "code_prompt", "canonical_solution", "test", "entry_point")


@dataclasses.dataclass(frozen=True)
class SystemConfig:
    """The system before optimisation.

    Attributes:
      language_model: the model of the LLM components.
      limits: limits for one program with its tests.
      isolation: walls around model-written programs. ``required``: only a jail. ``preferred``: a jail, or limits that
        keep their promises (``sandbox.program``), with a warning. ``weak``: the strongest walls of this machine, even
        weak ones.
      code_chars: longest program, test file or report in a prompt, in characters; longer ones are cut in the middle; 0
        for no limit.
      max_demos: largest number of demonstrations in a prompt.
      weights: names of LLM components whose LoRA weights are tuned instead of their prompts, separated by commas.
    """

    language_model: LanguageModel
    limits: Limits = Limits()
    isolation: Isolation = "preferred"
    code_chars: NonNegativeInt = 0
    max_demos: NonNegativeInt = 4
    weights: str = ""


# Data


def load(config: DataConfig) -> Dataset:
    """Reads the tasks and deals them to splits.

    Raises:
      DataError: for a missing file, a broken line, a row without a field or with code that does not parse, or fewer
        tasks than asked for.
    """
    examples, origin = read_tasks(config.path, config.source or SOURCES[0], sum(config.sizes.values()))
    examples = [
        dataclasses.replace(task, inputs={"question": cut_middle(task.inputs["question"], config.max_chars)})
        for task in examples
    ]
    try:
        return Dataset(deal(examples, config), {METRIC: 0.0}, origin + repetitions(examples))
    except DataError as error:
        raise DataError(f"{error} ({origin})") from error


def read_tasks(path: str, source: str, count: int = 0) -> tuple[list[Example], str]:
    """The tasks that ``source`` selects from a file (without a path: from the hub), and a description of their origin.

    Without a path ``synthetic`` generates ``count`` tasks; with a path it means ``installed``.

    Raises:
      DataError: as ``load``.
    """
    if source not in SOURCES:
        raise DataError(f"config.data.source is {shown(source)}; allowed: {', '.join(SOURCES)}")
    if source == "synthetic" and not path:
        return [parse_row(made_up(number), f"task {number}")[0] for number in range(count)], "made-up tasks"
    rows = read_rows(Path(path), parse_row) if path else hub_rows(*HUB, parse_row)
    missing = collections.Counter(name for _, imports in rows for name in imports if not _is_installed(name))
    examples = [example for example, imports in rows if _is_wanted(imports, source)]
    left_out = len(rows) - len(examples)
    why = f"that import what is not installed: {', '.join(name for name, _ in missing.most_common(5))}, ..."
    if source == "stdlib":
        why = "that need more than the standard library"
    return examples, (path or HUB[0]) + (f" without {left_out} tasks {why}" if left_out else "")


def parse_row(item: Any, where: str) -> tuple[Example, tuple[str, ...]]:
    """A task, and the top-level modules that its solution and tests import.

    Raises:
      DataError: if a field is absent, the solution or the tests are not Python, or they lack function or test class.
    """
    row = fields_of(item, where, dict.fromkeys(_FIELDS, TEXT))
    if row["entry_point"] != FUNCTION:
        raise DataError(f"{where}: field entry_point is {shown(row['entry_point'])}, expected {FUNCTION!r}")
    solution = row["code_prompt"] + row["canonical_solution"]
    imports: set[str] = set()
    for name, text in (("canonical_solution", solution), ("test", row["test"])):
        try:
            imports |= set(imported(text))
        except SyntaxError as error:
            raise DataError(f"{where}: field {name} is no Python ({error!s:.200})") from error
    if not test_names(row["test"], CASE):
        raise DataError(f"{where}: field test has no class {CASE} with a test")
    gold = {"test": row["test"], "solution": solution, "stub": row["code_prompt"]}
    return Example(row["task_id"], {"question": row["instruct_prompt"]}, gold, ""), tuple(sorted(imports))


def made_up(number: int) -> dict[str, str]:
    """A row that asks for a sum."""
    stub = "def task_func(x):\n"
    test = (
        "import unittest\nclass TestCases(unittest.TestCase):\n    def test_sum(self):\n"
        f"        self.assertEqual([task_func(x) for x in range(9)], [x + {number} for x in range(9)])\n"
    )
    return {
        "task_id": f"made-up/{number}",
        "instruct_prompt": f"Return the number x plus {number}. Start with:\n```\n{stub}```",
        "code_prompt": stub,
        "canonical_solution": f"    return x + {number}\n",
        "test": test,
        "entry_point": FUNCTION,
    }


def imported(source: str) -> tuple[str, ...]:
    """Top-level modules that a program imports, at any depth.

    Raises:
      SyntaxError: for text that is not Python.
    """
    names: list[str] = []
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return tuple(dict.fromkeys(name.split(".")[0] for name in names))


def _is_wanted(imports: Iterable[str], source: str) -> bool:
    if source == "stdlib":
        return set(imports) <= sys.stdlib_module_names
    return source == "all" or all(_is_installed(name) for name in imports)


def _is_installed(module: str) -> bool:
    if module in sys.stdlib_module_names:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # __main__ is imported already and has no spec
        return True


# System


def build(dataset: Dataset, settings: SystemConfig) -> System:
    """The four-component system of the paper.

    Raises:
      SandboxError: if programs cannot be run here, or not with the isolation that ``settings`` require.
      ValueError: if ``settings.weights`` names anything other than LLM components.
    """
    warning = check_walls(settings.isolation)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    weak = settings.isolation == "weak"
    model = settings.language_model
    tuned = tuned_by_weights(settings.weights, _PROMPTED)

    def llm(name: str, extract: Callable[[str, str], str], **parts: Any) -> Component:
        space = LoraSpace() if name in tuned else PromptSpace(max_demos=settings.max_demos)
        stop = stops(model, "\nQuestion:")
        component = llm_component(name=name, language_model=model, stop=stop, space=space, **parts)
        return _reading(component, extract, settings)

    async def passes(outputs: Mapping[str, Any], gold: Mapping[str, Any], context: RunContext) -> float:
        verdict = await execute_tests(outputs["code"], gold["test"], settings.limits, CASE, context, weak)
        return float(verdict.status == "passed")

    components = (
        llm(
            "code_generator",
            _program_or_answer,
            description="Write a Python function that solves the task.",
            inputs=("question",),
            output="initial_code",
            instruction="Provide a self-contained Python solution in one code block:",
        ),
        llm(
            "unit_test_generator",
            lambda answer, question: extract_tests(answer, FUNCTION) or answer,
            description="Write unit tests that check whether a solution of the task is right.",
            inputs=("question",),
            output="unit_tests",
            instruction=f"Write a unittest.TestCase class with tests of {FUNCTION} as the task describes it, in one "
            f"code block. {FUNCTION} is defined already: do not write or import it.",
        ),
        _executor(settings.limits, weak),
        llm(
            "final_coder",
            _program,
            description="Write the final Python solution of the task, mending what the tests of the initial code show.",
            inputs=("question", "initial_code", "unit_tests", "execution_report"),
            output="code",
            instruction="Provide the final self-contained Python solution in one code block. Keep the initial code "
            "where it is right; mend what the execution report shows to be wrong with it.",
        ),
    )
    return System(components=components, input_fields=("question",), output_fields=("code",), metric=passes)


def _executor(limits: Limits, weak: bool) -> Component:
    """The component that runs the generated program with the generated tests."""

    async def execute(inputs: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        verdict = await execute_tests(inputs["initial_code"], inputs["unit_tests"], limits, "", context, weak)
        return {"execution_report": verdict.summary()}

    return Component(
        name="executor",
        description="Run the code with the unit tests and report.",
        inputs=("initial_code", "unit_tests"),
        outputs=("execution_report",),
        run=execute,
    )


def _program_or_answer(answer: str, question: str) -> str:
    return extract_program(answer, FUNCTION, question) or answer


def _program(answer: str, question: str) -> str:
    program = extract_program(answer, FUNCTION, question)
    if not program:
        raise ComponentFailure(Outcome.PARSE_ERROR, f"no function {FUNCTION} in the answer: {answer[:500]}")
    return program


def _reading(component: Component, extract: Callable[[str, str], str], settings: SystemConfig) -> Component:
    """The component with its inputs cut to ``settings.code_chars``, and ``extract`` applied to its answer."""
    [output] = component.outputs

    def cut(fields: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: text if name == "question" else cut_middle(text, settings.code_chars) for name, text in fields.items()
        }

    async def run(inputs: Mapping[str, Any], value: Value | None, context: RunContext) -> Mapping[str, Any]:
        if isinstance(value, Prompt):
            demos = tuple(Demo(cut(demo.inputs), cut(demo.outputs)) for demo in value.demos)
            value = Prompt(value.instruction, demos)
        answer = await component.run(cut(inputs), value, context)
        text = answer[output]
        return {output: await off_loop(lambda: extract(text, inputs["question"]), len(text))}

    return dataclasses.replace(component, run=run)


def cut_middle(text: str, characters: int) -> str:
    """The text, cut in the middle if it is longer than ``characters`` (0: never): a task's last lines are kept, which
    give the function's signature."""
    mark = "\n[...]\n"
    if not characters or len(text) <= characters:
        return text
    rest = max(0, characters - len(mark))
    return text[: rest - rest // 2] + mark + text[len(text) - rest // 2 :]
