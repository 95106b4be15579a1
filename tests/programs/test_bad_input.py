"""Bad input through the front door: metrics, names, columns, types and shapes; what users see of it, word by word."""

import concurrent.futures
import functools
import gc
import io
import json
import math
import threading

import numpy as np
import pytest
from front_door import MANY, ROWS, SETTINGS, calling, evaluate, optimize, said, search
from pydantic import BaseModel
from rich.console import Console

import optimas_jax as oj
from optimas_jax.core.types import Example
from optimas_jax.core.usage import Usage
from optimas_jax.loop.config import OptimizeConfig
from optimas_jax.loop.setup.checks import tell_no_labels
from optimas_jax.report.console import ConsoleProgress

RECORDED = "texts, numbers, true and false, None, lists, dicts, dataclasses and pydantic models can be recorded"
EXPECTED = "expected a number, a number and a text, or Score(value, feedback, parts)"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            None,
            f"MetricError: the metric 'grade' returned None on example 'row-0', {EXPECTED}: a way through it has no",
        ),
        ("0.5", f"MetricError: the metric 'grade' returned '0.5' on example 'row-0', {EXPECTED}"),
        ([0.5, "x"], f"MetricError: the metric 'grade' returned [0.5, 'x'] on example 'row-0', {EXPECTED}"),
        (
            math.nan,
            "NonFiniteScore: the metric 'grade' returned nan on example 'row-0', expected a finite number, such ",
        ),
        (-math.inf, "NonFiniteScore: the metric 'grade' returned -inf on example 'row-0', expected a finite number, s"),
    ],
)
def test_what_is_no_score_ends_after_the_first_runs_and_keeps_what_was_paid(tmp_path, returned, message):
    paid = []

    @oj.component(effect=True)
    def bought(question):
        paid.append(question)
        return question

    def grade(example, made):
        return returned

    for _ in range(2):  # the second time from the tape
        assert said(lambda: evaluate(tmp_path, calling(bought), grade, ROWS[:1])).startswith(message)
    assert paid == ["q0"]


@pytest.mark.parametrize("returned", [True, np.bool_(True), np.float32(1), np.int64(1), 1, (1, "fine"), oj.Score(1)])
def test_truth_values_and_numpy_s_numbers_are_scores(tmp_path, returned):
    assert evaluate(tmp_path, calling(search), lambda outputs: returned).mean == 1.0


@pytest.mark.parametrize(("scores", "warned"), [((0.25, 0.25), True), ((0.25, 0.5), False)])
def test_a_metric_that_never_differs_is_warned_of(tmp_path, scores, warned):
    lines = []
    progress = ConsoleProgress(quiet=True)
    progress.line = lines.append
    settings = {**SETTINGS, "offline.groups": 2, "offline.calls": 24, "optimize.iterations": 0}
    oj.optimize(
        calling(oj.component(lambda question, k: [question] * k, k=oj.setting(1, choices=(1, 2)), name="repeat")),
        lambda example, made: scores[int(example["wanted"]) % 2],
        MANY,
        model=oj.LanguageModel("random:0", max_tokens=4),
        workdir=tmp_path / "run",
        config=settings,
        progress=progress,
    )
    told = [line for line in lines if "make no difference between them" in line]
    assert len(told) == warned and all("runs score 0.250" in line for line in told)


def test_a_slow_plain_metric_holds_up_nothing_else(tmp_path):
    met = threading.Barrier(len(ROWS), timeout=30)  # all of them are in the metric at once

    def grade(example, made):
        met.wait()
        return 1.0

    assert evaluate(tmp_path, calling(search), grade).mean == 1.0


@pytest.mark.parametrize("metric", [lambda a, b, c: 0, lambda outputs, gold, question: 0])
def test_arguments_of_a_metric_that_nobody_knows(tmp_path, metric):
    assert "; known are example, outputs, gold, trace, context, such as" in said(
        lambda: evaluate(tmp_path, calling(search), metric)
    )


def test_two_components_of_one_name(tmp_path):
    twice = [search, oj.component(lambda question: question, name="search")]
    assert said(lambda: calling(*twice)) == (
        "DeclarationError: two components of the program 'program' have the name search: give one another, by name="
    )


def test_a_component_that_is_not_declared(tmp_path):
    class Tools:
        tool = staticmethod(oj.component(lambda question: question, name="tool"))

    async def program(question):
        return [await search(question), await Tools().tool(question)]

    assert said(lambda: evaluate(tmp_path, program)) == (
        "ProgramError: the program calls the component 'tool', which it does not declare; it has search: name the "
        "others in program(components=[...])"
    )


def test_a_name_that_is_not_in_the_saved_best(tmp_path):
    k = oj.setting(1, choices=(1, 2), name="k")

    async def program(question):
        return await search(question) * k.value

    result = optimize(tmp_path, oj.program(program, components=[search, k]))
    with pytest.raises(KeyError, match="no component 'depth'; tuned are k"):
        _ = result.best["depth"]
    other = calling(search, oj.setting(1, choices=(1, 2), name="depth"))
    message = said(lambda: oj.load(tmp_path / "best", other))
    assert "best has values for k, and program has nothing to tune called k; it has depth" in message


def test_a_csv_with_a_byte_order_mark_is_read_and_duplicates_are_told_of(tmp_path, capsys):
    lines = [f"{row['question']},{row['wanted']}" for row in (*ROWS, ROWS[0])]
    (tmp_path / "rows.csv").write_text("\n".join(["question,wanted", *lines]), encoding="utf-8-sig")
    assert len(evaluate(tmp_path, calling(search), rows=tmp_path / "rows.csv").rows) == 6
    assert "1 rows repeat the inputs of an earlier row and are left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "query,wanted\na,b\n",
            "DeclarationError: the program 'program' reads question; the data has the columns query, wanted: arguments "
            "of a program are columns, so rename one of them",
        ),
        (
            "question,wanted\na,b\n",
            "DataError: 1 different rows are too few to divide them by (0.5, 0.15, 0.15, 0.2): train 1 of 8, val 0 of "
            "5, confirm 0 of 5, test 0 of 5 at least. Give more rows, or other shares (split=)",
        ),
        ("question,wanted\na\n", "DataError: {file}, line 2 has 1 values, expected 2: question, wanted"),
        ("", "DataError: {file} holds no rows"),
    ],
)
def test_a_csv_without_a_column_of_one_row_ragged_or_empty(tmp_path, text, message):
    file = tmp_path / "rows.csv"
    file.write_text(text)
    assert said(lambda: optimize(tmp_path / "run", calling(search), rows=file)) == message.format(file=file)
    assert not (tmp_path / "run").exists()


class Handle:
    """Without fields."""


class Verdict(BaseModel):
    good: bool


def takes(question: Handle) -> str:
    return ""


def returns(question) -> dict[str, Handle]:
    return {}


def defaults(question, client=Handle()):  # noqa: B008
    return ""


def fits(question: "str | None", verdicts: list[Verdict] | None = None) -> tuple[int, ...]:
    return ()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (takes, "argument 'question' of component 'takes' is declared as Handle: "),
        (returns, "what component 'returns' returns is declared as dict[str, test_bad_input.Handle]: "),
        (defaults, "the default of argument 'client' of component 'defaults' is of type Handle: "),
    ],
)
def test_declared_types_that_cannot_be_recorded_are_refused_when_the_program_is_built(function, words):
    assert said(lambda: calling(oj.component(function))) == f"DeclarationError: {words}{RECORDED}"
    assert calling(oj.component(fits)).components


def test_what_a_program_declares_to_return(tmp_path):
    async def program(question) -> Handle:
        await search(question)
        return Handle()

    assert said(lambda: oj.program(program)) == (
        f"DeclarationError: what the program 'program' returns is declared as Handle: {RECORDED}"
    )


@pytest.mark.parametrize(
    ("made", "words"),
    [(Handle, f"of type Handle: {RECORDED}"), (lambda: (i for i in "ab"), "of type generator: it has")],
)
def test_other_types_are_refused_at_the_first_call_by_name(tmp_path, made, words):
    program = calling(oj.component(lambda question: made(), name="make"))
    assert said(lambda: evaluate(tmp_path, program)).startswith(
        f"PlainError: what component 'make' returned is {words}"
    )


def test_an_answer_that_does_not_fit_its_declared_type_is_a_failed_call(tmp_path):
    @oj.component
    def judge(question) -> Verdict:
        return {"good": "perhaps"} if question == "q0" else Verdict(good=True)

    made = evaluate(tmp_path, calling(judge))
    assert made.mean == pytest.approx(5 / 6)
    assert made.rows[0]["failure"].startswith("component 'judge': ValidationError: 1 validation error for Verdict")


class Bot:
    def __init__(self, times):
        self.times = times
        self.say = oj.component(self._say, name="say")

    def _say(self, question):
        return question * self.times

    async def run(self, question):
        return await self.say(question)

    def __call__(self, question):
        return question * self.times


def test_methods_objects_partials_and_lambdas_are_components_and_programs(tmp_path):
    shout = oj.component(lambda question: question.upper())

    async def loud(question):
        return await shout(question)

    assert [one.name for one in oj.program(loud).components] == ["shout"]
    for number, (program, wanted) in enumerate(
        [
            (loud, "Q0"),
            (Bot(2).run, "q0q0"),
            (calling(oj.component(Bot(2))), {"all": ["q0q0"]}),
            (calling(oj.component(functools.partial(Bot.__call__, Bot(2)), name="p")), {"all": ["q0q0"]}),
            (functools.partial(loud), "Q0"),
            (lambda question: [shout(question)][0], "Q0"),
        ]
    ):
        [row] = evaluate(tmp_path / str(number), program, rows=ROWS[:1]).rows
        assert row["outputs"] == (wanted if isinstance(wanted, dict) else {"output": wanted})


async def streaming(question):
    yield question


def test_shapes_that_cannot_be():
    assert said(lambda: oj.component(streaming)) == (
        "DeclarationError: the function 'streaming' has a yield: what a component returns is recorded as a whole, so "
        "return a list"
    )
    assert said(lambda: oj.program(streaming, components=[search])) == (
        "DeclarationError: the program 'streaming' has a yield: return its result as a whole, such as a list"
    )
    assert said(lambda: oj.component(Bot._say)) == (
        "DeclarationError: '_say' is declared in a class, where no object is known yet: declare it of an object, such "
        "as self._say = component(self._say) in __init__"
    )
    assert said(lambda: oj.component(lambda *texts: texts)) == (
        "DeclarationError: the function '<lambda>' takes texts without a name: arguments of components are recorded by "
        "their names"
    )
    assert said(lambda: oj.program(3)) == (
        "DeclarationError: the program is 3, expected a function that calls components"
    )
    assert said(lambda: oj.program(search)) == (
        "DeclarationError: the program is component 'search', expected a function that calls components"
    )

    async def program(question):
        return await search(question)

    assert said(lambda: oj.program(program("q"))) == (
        "DeclarationError: the program is what a call of 'program' returned: give the function itself, program"
    )
    with pytest.raises(TypeError, match="component 'search': missing a required argument: 'question'"):
        search()


def test_a_program_that_forgets_to_await_and_one_without_named_arguments(tmp_path):
    async def forgetful(question):
        return search(question)

    message = said(lambda: evaluate(tmp_path, forgetful, rows=ROWS[:1]))
    assert message == "PlainError: what the program 'forgetful' returned is of type coroutine: await it"

    async def loose(*question):
        return await search(question[0])

    assert "the program 'loose' reads nothing by name; the data has the columns question, wanted" in said(
        lambda: evaluate(tmp_path, loose)
    )


def test_a_component_that_is_never_awaited_is_named_by_python(tmp_path):
    async def forgetful(question):
        return "yes" if search(question) == "yes" else "no"

    with pytest.warns(RuntimeWarning, match="coroutine 'search' was never awaited"):
        oj.evaluate(oj.program(forgetful, components=[search]), lambda example, outputs: 1.0, ROWS, workdir=tmp_path)
        gc.collect()


def test_a_component_in_a_pool_s_thread(tmp_path):
    def program(question):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(search, question).result()

    assert said(lambda: evaluate(tmp_path, program)) == (
        "ProgramError: component 'search' was called outside of a run, or in a thread that does not know its run: call "
        "the program with optimas_jax.evaluate, optimize or load, and start threads with asyncio.to_thread"
    )


def test_a_default_that_is_changed_stays_as_declared_and_copies_are_the_user_s(tmp_path):
    @oj.component
    def grow(question, seen=[]):  # noqa: B006
        seen.append(question)
        return seen

    async def program(question):
        made = await grow(question)
        made.append("mine")
        return await grow(question)

    def grade(example, outputs, gold):
        outputs.append(1)
        example["question"] = gold["wanted"] = "changed"
        return len(outputs)

    for _ in range(2):
        made = evaluate(tmp_path, program, grade, [{"question": "q", "wanted": ["a"]}])
        assert (
            made.mean == 2.0
            and made.rows[0]["inputs"] == {"question": "q"}
            and made.rows[0]["gold"] == {"wanted": ["a"]}
        )


def test_a_prompt_gets_its_fields_by_name(tmp_path):
    find = oj.prompt("Find the order.", name="find")

    async def program(question):
        return await find(question)

    message = said(lambda: optimize(tmp_path, oj.program(program, components=[find])))
    assert "prompt 'find' got 1 argument(s) without a name: give fields by name, such as find(question=...)" in message


def test_a_call_that_was_not_awaited(tmp_path):
    find = oj.prompt("Find the order.", name="find")

    async def program(question):
        asked = find(question=question)
        try:
            return asked.strip()
        finally:
            asked.close()

    message = said(lambda: optimize(tmp_path, oj.program(program, components=[find])))
    assert "the run stops. Calls of components have to be awaited. Correct it" in message


def test_a_budget_that_is_a_number(tmp_path):
    message = said(
        lambda: oj.optimize(calling(search), lambda outputs: 1.0, MANY, budget=400, workdir=tmp_path / "run")
    )
    assert message == "ConfigError: budget is 400, expected a Budget, such as oj.Budget(calls=400)"


@pytest.mark.parametrize(("name", "told"), [("find", True), ("wanted", False)])
def test_right_answers_that_no_prompt_writes_are_told_of(name, told):
    ask = oj.prompt("Find the order.", name=name)

    async def program(question):
        return await ask(question=question)

    declared = oj.program(program, components=[ask])
    system = declared.system(lambda outputs: 1.0, ("question",), oj.LanguageModel("random:0"))
    rows = [Example(row["question"], {"question": row["question"]}, {"wanted": row["wanted"]}, "train") for row in ROWS]
    console = Console(file=io.StringIO(), width=300)
    tell_no_labels(OptimizeConfig(), system, rows, ConsoleProgress(console))
    assert ("no prompt writes wanted (prompts write find)" in console.file.getvalue()) == told


def test_a_saved_program_of_a_run_without_results_says_so(tmp_path):
    k = oj.setting(1, choices=(1, 2), name="k")

    async def program(question):
        return await search(question) * k.value

    declared = oj.program(program, components=[search, k])
    optimize(tmp_path, declared)
    (tmp_path / "results.json").rename(tmp_path / "results.old")
    costs = Usage().to_json()
    stopped = {"reason": "MetricError: no number", "accepted": [], "spent": costs, "uncertain": costs, "go_on": "x"}
    (tmp_path / "unfinished.json").write_text(json.dumps(stopped), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"is of a run without results \(MetricError: no number\): its values so far"):
        oj.load(tmp_path, declared)


def test_an_interrupt_says_how_to_go_on_and_shows_no_frames_of_ours(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("optimas_jax.loop.stages.run_stages", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        oj.optimize(calling(search), lambda outputs: 1.0, MANY, workdir=tmp_path, progress=ConsoleProgress())
    assert len(caught.traceback) == 2  # the caller, and the frame that raises it again
    assert "stopped; the same call resumes" in capsys.readouterr().out
