import asyncio
import concurrent.futures
import contextlib
import dataclasses
import enum
import importlib
import threading
import time

import helper_module
import pytest
from fakes import ScriptedCompleter
from pydantic import BaseModel

import optimas_jax as oj
from optimas_jax.core.component import ComponentBug
from optimas_jax.core.program import ProgramError
from optimas_jax.core.running import event_loop
from optimas_jax.core.types import Example, Outcome
from optimas_jax.core.values import Demo, Hyperparameters, Prompt
from optimas_jax.llm.accounts.ledger import Ledger
from optimas_jax.llm.tapes.tape import Tape
from optimas_jax.llm.tapes.taped import TapedCompleter
from optimas_jax.programs.declared import DeclarationError
from optimas_jax.programs.plain import PlainError

MODEL = oj.LanguageModel("scripted", style="text", max_tokens=8)


def run(function, inputs, completer=None, components=(), configuration=None, metric=lambda outputs: 0.0, seed=0):
    program = function if hasattr(function, "components") else oj.program(function, components=components)
    system = program.system(metric, tuple(inputs), MODEL)
    system = system.using(completer or ScriptedCompleter(lambda request: "an answer"))
    example = Example("e", inputs, {}, "train")
    return event_loop.run(system.run(configuration or system.default_configuration(), example, seed))


draft = oj.prompt("Draft an answer.", stop=("\n",))


@oj.component
def search(question, k=2):
    """Finds passages. By their number."""
    return [{"id": i, "text": f"{question} {i}"} for i in range(k)]


async def rag(question):
    passages = await search(question)
    passages.sort(key=lambda one: -one["id"])
    return await draft(question=question, passages=passages)


def test_a_program_of_a_prompt_and_a_function():
    asked = ScriptedCompleter(lambda request: request.messages[0].content)
    trace = run(rag, {"question": "why?"}, asked)
    assert (trace.calls[0].component, trace.calls[0].inputs) == ("search", {"question": "why?", "k": 2})
    assert trace.outputs["output"] == (
        'Draft an answer.\n\nQuestion: why?\nPassages: {"id": 1, "text": "why? 1"}\n{"id": 0, "text": "why? 0"}\nDraft:'
    )
    [request] = asked.requests
    assert request.role == "draft" and request.stop == ("\n",) and request.model == "scripted"
    components = oj.program(rag).system(lambda outputs: 0.0, ("question",), MODEL).by_name
    assert components["search"].description == "Finds passages. By their number."
    assert components["draft"].default == Prompt("Draft an answer.")


def test_a_plain_program_runs_in_a_thread_and_waits_for_its_components():
    def plain(question):
        assert threading.current_thread() is not threading.main_thread()
        return {"answer": draft(question=question), "found": len(search(question, k=3))}

    assert run(plain, {"question": "q"}).outputs == {"answer": "an answer", "found": 3}


def test_existing_code_is_tuned_by_the_variables_that_it_reads():
    module = importlib.reload(helper_module)
    module.shorten = oj.component(module.shorten, WORDS=oj.prompt(module.WORDS))
    module.COUNT = oj.setting(module.COUNT, choices=(1, 2, 3))

    async def program(text):
        return {"short": await module.shorten(text, int(module.COUNT))}

    program = oj.program(program)
    assert [one.name for one in program.components] == ["shorten", "COUNT"]
    configuration = {
        "shorten": Prompt("Be brief.", (Demo({"text": "a b"}, {"shorten": "a"}),)),
        "COUNT": Hyperparameters({"value": 1}),
    }
    trace = run(program, {"text": "one two three"}, configuration=configuration)
    assert trace.outputs["short"] == "one (Be brief.\n\nExample:\nText: a b\nShorten: a)"
    assert run(program, {"text": "one two three"}).outputs["short"] == "one two (Say it in one word.)"
    assert module.WORDS == "Say it in one word." and module.shorten("a b") == "a (Say it in one word.)"
    assert module.calls  # what is written to an object of the module stays


def test_a_function_that_asks_its_own_model_gets_the_prompt_and_is_taped(tmp_path):
    asked = []

    @oj.component(prompt=oj.prompt("Check it."))
    async def check(prompt, text, seed):
        asked.append((prompt.instruction, str(prompt), text, seed))
        return len(asked)

    async def program(text):
        return {"n": [await check(text), await check(text)]}

    with contextlib.closing(Tape(tmp_path / "tape.sqlite")) as tape:
        for _ in range(2):
            completer = TapedCompleter(tape, Ledger(), ScriptedCompleter(lambda request: ""))
            trace = run(program, {"text": "t"}, completer, [check])
            assert trace.outputs["n"] == (1, 2)  # the same inputs again have another seed
    assert len(asked) == 2 and asked[0][:3] == ("Check it.", "Check it.", "t") and asked[0][3] != asked[1][3]


class Colour(enum.Enum):
    RED = "red"


class Verdict(BaseModel):
    supported: bool
    problems: list[str]


@dataclasses.dataclass
class Point:
    x: int
    y: tuple[int, ...]


def test_typed_values_come_back_as_they_were():
    @oj.component
    def judge(point) -> Verdict:
        return Verdict(supported=point["x"] > 0, problems=[str(point["y"])])

    @oj.component
    def colour():
        return Colour.RED

    @oj.component
    async def wrapped():
        return {"wrapped": {"wrapped": 1}}

    async def program(x) -> Point:
        verdict = await judge(Point(x, (1, 2)))
        assert isinstance(verdict, Verdict) and verdict.supported
        assert await colour() == "red" and await wrapped() == {"wrapped": {"wrapped": 1}}
        return Point(x, tuple(map(len, verdict.problems)))

    seen = []
    trace = run(program, {"x": 1}, components=[judge, colour, wrapped], metric=lambda made: seen.append(made) or 1.0)
    assert trace.outputs == {"x": 1, "y": (6,)} and seen == [Point(1, (6,))]


@pytest.mark.parametrize(
    ("value", "where"), [(object(), r"search\(question\) is of type object"), ({1: 2}, "expected texts as keys")]
)
def test_what_cannot_be_recorded_is_named(value, where):
    async def program(question):
        try:
            return await search(value)
        except Exception:  # the program cannot catch it
            return "caught"

    with pytest.raises(PlainError, match=where):
        run(program, {"question": "q"})


def test_errors_and_slow_functions_are_failed_calls_that_say_why():
    @oj.component
    def broken(question):
        return {}[question]

    @oj.component(timeout=0.05)
    def slow(question):
        time.sleep(2)

    @oj.component(on_error="stop")
    async def stopping(question):
        raise KeyError(question)

    def calling(component):
        async def program(question):
            return await component(question)

        return run(program, {"question": "q"}, components=[component])

    trace = calling(broken)
    assert trace.outcome is Outcome.CRASHED
    assert trace.calls[0].detail.startswith("KeyError: 'q' (test_declarations.py, line ")
    assert calling(slow).calls[0].detail == "no answer within 0.05 s" and calling(slow).outcome is Outcome.TIMEOUT
    with pytest.raises(ComponentBug, match="component 'stopping' raised KeyError"):
        calling(stopping)


def test_a_component_that_is_not_declared_is_named_with_the_way_out():
    class Tools:
        tool = staticmethod(oj.component(lambda question: question, name="tool"))

    async def program(question):
        await search(question)
        try:
            return await Tools().tool(question)
        except Exception:  # the program cannot catch it
            return "caught"

    message = r"calls the component 'tool', which it does not declare; it has search: .*components=\["
    with pytest.raises(ProgramError, match=message):
        run(program, {"question": "q"}, components=[search])


def test_outside_of_a_run_functions_are_themselves_and_prompts_say_what_to_do():
    assert search("q", 1) == [{"id": 0, "text": "q 0"}]
    assert oj.setting(3, choices=(1, 3)).value == 3
    with pytest.raises(ProgramError, match="was called outside of a run, or in a thread"):
        draft(question="q")


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: oj.prompt("  "), "the instruction of a prompt is '  ', expected a text"),
        (lambda: oj.setting(4, choices=(1, 2)), r"default of a setting is 4, expected one of its choices \[1, 2\]"),
        (lambda: oj.component(search, on_error="ignore"), "on_error is 'ignore'"),
        (lambda: oj.component(lambda text: text, k=3), r"expected prompt\(...\) or setting"),
        (lambda: oj.component(lambda text: text, k=oj.setting(1, (1, 2))), "has no argument and reads no variable k"),
        (
            lambda: oj.component(lambda a, b: a, a=oj.prompt("x"), b=oj.setting(1, (1, 2))),
            "one prompt, or any number of settings",
        ),
        (lambda: oj.program(lambda q: q), "calls no component"),
        (
            lambda: oj.program(lambda q: q, components=[oj.prompt("a", name="x"), oj.prompt("b", name="x")]),
            "two components .* have the name x",
        ),
        (lambda: oj.program(lambda q: q, components=[oj.prompt("a")]), "without a name"),
        (
            lambda: oj.program(rag).inputs_of(["text", "gold"]),
            "reads question; the data has the columns text, gold: arguments of a program are columns",
        ),
    ],
)
def test_wrong_declarations(declare, message):
    with pytest.raises((DeclarationError, ValueError), match=message):
        declare()


def test_parallel_and_repeated_calls_are_numbered_by_the_program():
    async def program(question):
        first = await asyncio.gather(*(draft(question=question) for _ in range(3)))
        return {"all": [*first, *await asyncio.gather(draft(question="other"), draft(question=question))]}

    seeds = ScriptedCompleter(lambda request: str(request.seed))
    trace = run(program, {"question": "q"}, seeds)
    assert [(call.occurrence, call.repeat) for call in trace.calls] == [(0, 0), (1, 1), (2, 2), (3, 0), (4, 3)]
    assert len(set(trace.outputs["all"])) == 4  # another input has the seed of a first call


def test_failures_among_equal_parallel_calls_are_numbered_too():
    outcomes = iter(["", "", "an answer", "never asked"])
    answers: dict[int, str] = {}
    asked = ScriptedCompleter(lambda request: answers.setdefault(request.seed, next(outcomes)))

    async def program(question):
        return {"all": await asyncio.gather(*(draft(question=question) for _ in range(3)))}

    trace = run(program, {"question": "q"}, asked)
    assert trace.outcome is Outcome.PARSE_ERROR and len(asked.requests) == 3


def test_a_thread_that_does_not_know_its_run_is_told_instead_of_running_with_defaults():
    @oj.component(k=oj.setting(1, (1, 2)))
    def search(question, k):
        return f"{question}:{k}"

    def pooled(question):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return list(pool.map(search, [question, question]))

    with pytest.raises(ProgramError, match="in a thread that does not know its run"):
        run(pooled, {"question": "q"}, components=[search])

    async def threads(question):
        return [await search(one) for one in (question, "b")]

    assert run(threads, {"question": "a"}, components=[search]).outputs["output"] == ("a:1", "b:1")


def test_arguments_of_every_kind_arrive_and_those_without_a_name_are_refused():
    @oj.component
    async def options(q, *, flag=False, **more):
        return {"q": q, "flag": flag, "more": more}

    @oj.component
    async def typed(point: Point, all: list[Verdict]) -> list[Point]:
        assert isinstance(point, Point) and all[0].supported
        return [point]

    @oj.component
    async def warm(q, temperature=0.7, seed=0):
        return {"temperature": temperature, "seeded": seed > 0}

    async def program(q):
        first = await options(q, k=3)
        [point] = await typed(Point(1, (2,)), [Verdict(supported=True, problems=[])])
        return {"first": first, "y": point.y, "warm": [await warm(q), await warm(q, temperature=0.2)]}

    outputs = run(program, {"q": "a"}, components=[options, typed, warm]).outputs
    assert outputs["first"] == {"q": "a", "flag": False, "more": {"k": 3}} and outputs["y"] == (2,)
    assert [dict(one) for one in outputs["warm"]] == [
        {"temperature": 0.7, "seeded": True},
        {"temperature": 0.2, "seeded": True},
    ]
    assert asyncio.run(options("a", k=3)) == {"q": "a", "flag": False, "more": {"k": 3}}
    for odd in (lambda *texts: texts, lambda text, /: text):
        with pytest.raises(DeclarationError, match="without a name"):
            oj.component(odd)


def test_odd_endings_of_a_function_do_not_hang():
    def calling(function, form):
        component = oj.component(function, name="odd")

        async def waiting(question):
            return await component(question)

        def blocking(question):
            return component(question)

        return run(waiting if form else blocking, {"question": "q"}, components=[component])

    async def cancelled(question):
        raise asyncio.CancelledError

    def stopped(question):
        return next(iter([]))

    def late(question):
        raise TimeoutError("the disk")

    for form in (True, False):
        with pytest.raises(ComponentBug, match="component 'odd' raised CancelledError"):
            calling(cancelled, form)
        assert calling(stopped, form).calls[0].detail.startswith("RuntimeError: StopIteration")
        assert calling(late, form).calls[0].detail.startswith("TimeoutError: the disk (test_declarations.py, line")


def test_a_loop_of_the_program_s_own_is_refused():
    def program(question):
        async def inner():
            return await draft(question=question)

        return asyncio.run(inner())

    with pytest.raises(ProgramError, match="make the program async"):
        run(program, {"question": "q"})


def test_a_setting_behaves_like_its_value():
    off, style = oj.setting(False, (False, True)), oj.setting("a", ("a", "b"))
    assert not off and style == "a" and {"a": 1}[style] == 1 and oj.setting(2, (1, 2)) > 1 >= oj.setting(1, (1, 2))


def test_what_a_taped_function_changes_itself_does_not_pay_for_it_again(tmp_path):
    """Caches and counters around it; a constant around it does."""
    seen, count = [], 0

    def made(factor):
        @oj.component(effect=True)
        def counted(text):
            nonlocal count
            count += 1
            seen.append(text)
            return factor * len(text)

        async def program(text):
            return await counted(text)

        return program

    with contextlib.closing(Tape(tmp_path / "tape.sqlite")) as tape:
        for factor in (2, 2, 3):
            completer = TapedCompleter(tape, Ledger(), ScriptedCompleter(lambda request: ""))
            assert run(made(factor), {"text": "abc"}, completer).outputs["output"] == 3 * factor
    assert count == len(seen) == 2


def test_a_taped_function_is_called_again_when_what_it_reads_changes(tmp_path):
    module, made = importlib.reload(helper_module), []
    component = oj.component(module.answer, effect=True, name="answer")

    async def program(text):
        return await component(text)

    with contextlib.closing(Tape(tmp_path / "tape.sqlite")) as tape:
        for count in (2, 2, 1):
            module.COUNT = count
            completer = TapedCompleter(tape, Ledger(), ScriptedCompleter(lambda request: ""))
            trace = run(program, {"text": "a b c"}, completer, [component])
            made.append((len(module.calls), trace.outputs["number"]))
    assert made == [(1, 2), (1, 2), (2, 1)]
