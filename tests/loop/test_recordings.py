"""Recorded calls in a run: what they spare collecting, what becomes of those that are no example, what is left out."""

import dataclasses
import io
import json
import re

import pytest
from fakes import ScriptedCompleter
from rich.console import Console
from tool_agents import adds, begin, closing, tool_loop

import optimas_jax as oj
from optimas_jax.benchmarks.data import DataConfig, DataError, deal
from optimas_jax.benchmarks.modules import SystemConfig
from optimas_jax.benchmarks.tables import examples_of
from optimas_jax.core.folder.files import FolderError, read_rows
from optimas_jax.core.objective import Objective
from optimas_jax.core.schema import ConfigError
from optimas_jax.core.types import StopRun
from optimas_jax.llm.component import LanguageModel
from optimas_jax.loop.config import EvaluateConfig, OfflineConfig, OptimizeConfig
from optimas_jax.loop.stages import run_stages
from optimas_jax.presets import local
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.rewards.data import load_groups
from optimas_jax.traces.records import TraceError

ROWS = [{"question": f"What is number {i} of the list?", "wanted": f"{i} it is"} for i in range(48)]
MODEL = LanguageModel("scripted", max_tokens=8)
SIZES = DataConfig(train=24, val=8, confirm=8, test=8)
PARTS = deal(examples_of(ROWS, ("question",))[0], SIZES)

draft = oj.prompt("Write a draft.")
final = oj.prompt("Give the answer.")


async def pipeline(question):
    return {"answer": await final(question=question, draft=await draft(question=question))}


def metric(example, outputs):
    return float(outputs["answer"] == example["wanted"])


def number(text):
    return text.partition("number ")[2].partition(" ")[0]


def answer(request):
    text = request.messages[-1].content
    if request.role == "draft":
        return f"about {number(text)}"
    right = len(request.messages) > 2 or (request.temperature > 0 and request.seed % 2)
    return f"{number(text)} it is" if right else "I do not know"


def config(traces="", **changes):
    base = local("own", SystemConfig(MODEL), SIZES, variant="program", proposer=MODEL, traces=str(traces))
    base = dataclasses.replace(
        base,
        offline=OfflineConfig(inputs=12, groups=6, calls=24),
        optimize=OptimizeConfig.improved(score="off", iterations=1, components="final", inputs=6, instructions=0),
        evaluate=EvaluateConfig(changes=False),
    )
    return dataclasses.replace(base, **changes)


def run(folder, config, stage="collect", made=None, answer=answer):
    model, log = ScriptedCompleter(answer), io.StringIO()
    made = made or oj.benchmark(pipeline, metric, ROWS)
    run_stages(config, folder, stage, ConsoleProgress(Console(file=log, width=400)), model, benchmark=made)
    return len(model.requests), log.getvalue()


def call(run, question, said, instruction="Give the answer.", score=None, **fields):
    shown = {"question": question, **fields}
    user = "\n".join(f"{name.capitalize()}: {text}" for name, text in shown.items())
    turns = [("system", instruction), ("user", user), ("assistant", said)]
    told = {} if score is None else {"score": score}
    return {"trace_id": run, "messages": [{"role": role, "content": text} for role, text in turns], **told}


def recorded(questions, scores=True, times=2):
    """Runs on questions, every second of them right."""
    lines = []
    for place, question in enumerate(questions):
        for time in range(times):
            text, right = f"about {number(question)}", (place + time) % 2
            said = f"{number(question)} it is" if right else "I do not know"
            score = float(right) if scores else None
            name = f"run {place} {time}"
            lines.append(call(name, question, text, "Write a draft.", score))
            lines.append(call(name, question, said, score=score, draft=text))
    return lines


def questions(split, count):
    return [example.inputs["question"] for example in PARTS[split]][:count]


@pytest.fixture
def file(tmp_path):
    def write(lines):
        path = tmp_path / "calls.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


def test_recorded_runs_with_scores_spare_collecting(tmp_path, file):
    plain, _ = run(tmp_path / "plain", config())
    path = file(recorded(questions("train", 8)))
    asked, log = run(tmp_path / "run", config(path))
    assert asked == 2 < plain  # the first run of the program, and nothing after it
    assert "32 of 32 recorded calls are used: 16 runs of 8 training examples replayed, 16 groups (8 with" in log
    groups = load_groups(tmp_path / "run" / "groups" / "offline")
    answers = [group for group in groups if group.component == "final"]
    assert len(answers) == 8 and {group.occurrence for group in groups} == {0}
    assert all(sorted(group.rewards) == [0.0, 1.0] and group.current is group.candidates[0] for group in answers)
    assert {candidate.source for candidate in answers[0].candidates} <= {
        f"trace:calls.jsonl, line {i}" for i in range(33)
    }
    assert {group.configuration for group in groups} != {""}


def test_recorded_runs_without_scores_are_scored_by_the_metric(tmp_path, file):
    asked, log = run(tmp_path / "run", config(file(recorded(questions("train", 8), scores=False))))
    assert asked == 2 and "8 training examples replayed" in log
    groups = load_groups(tmp_path / "run" / "groups" / "offline")
    assert sum(sorted(group.rewards) == [0.0, 1.0] for group in groups) == 8


def test_single_calls_are_half_of_a_group_that_collecting_completes(tmp_path, file):
    plain, _ = run(tmp_path / "plain", config())
    path = file(recorded(questions("train", 24), times=1))
    asked, _ = run(tmp_path / "run", config(path))
    groups = load_groups(tmp_path / "run" / "groups" / "offline")
    mixed = [group for group in groups if len({bool(one.recorded) for one in group.candidates}) == 2]
    assert mixed and 2 < asked < plain
    alone = file(
        [line for line in recorded(questions("train", 24), times=1, scores=False) if "draft." not in str(line)]
    )
    asked, log = run(tmp_path / "alone", config(alone))  # runs of which the drafts are missing
    assert "24 of 24 recorded calls are used: 0 runs of 0 training examples replayed" in log and asked < plain
    groups = load_groups(tmp_path / "alone" / "groups" / "offline")
    assert any(group.candidates[0].recorded or group.candidates[-1].recorded for group in groups)


def test_calls_of_other_inputs_are_groups_and_demonstrations(tmp_path, file):
    other = "What is number {} of another list, in short?"
    scored = [call("", other.format(1), said, score=score, draft="d") for said, score in (("a", 0.0), ("b", 1.0))]
    open_ended = [call("", other.format(2), "c", draft="d"), call("", other.format(2), "c", draft="d")]
    path = file([*scored, *open_ended])
    run(tmp_path / "run", config(path), "collect")
    groups = load_groups(tmp_path / "run" / "groups" / "offline")
    [pair] = [group for group in groups if group.example_id.startswith("recorded-")]
    assert pair.rewards == (0.0, 1.0) and pair.inputs == {"question": other.format(1), "draft": "d"}
    run(tmp_path / "run", config(path), "optimize")
    rows = read_rows(tmp_path / "run" / "proposals.jsonl")
    by_kind = {row["optimiser"]: row["value"]["demos"] for row in rows if (row["value"] or {}).get("demos")}
    assert [demo["recorded"] for demo in by_kind["recorded"]] == ["calls.jsonl, line 3"]
    assert "recorded" in {name for demos in by_kind.values() for demo in demos for name in demo}


def test_calls_of_rows_that_measure_are_left_out(tmp_path, file):
    lines = recorded([question for split in ("val", "confirm", "test") for question in questions(split, 2)])
    asked, log = run(tmp_path / "run", config(file([*lines, {"messages": [{"role": "user", "content": "a"}]}])))
    assert "0 of 25 recorded calls are used" in log
    assert "24 of a validation, confirmation or test example; 1 without content" in log
    assert asked == run(tmp_path / "plain", config())[0]
    told = json.loads((tmp_path / "run" / "traces.json").read_text())
    assert told["calls"] == 25 and told["left_out"]["without content"] == 1


@pytest.mark.parametrize(
    "said",
    ['Who said "number {}"?', "Où est le numéro {} ?", "Where?\nNumber {}!", "Is {}?", "\N{GRINNING FACE} number {}?"],
)
def test_rows_that_measure_are_found_in_json_too(tmp_path, file, said):
    rows = [{"question": said.format(i), "wanted": f"{i}"} for i in range(48)]
    parts = deal(examples_of(rows, ("question",))[0], SIZES)
    asked = [example.inputs["question"] for split in ("val", "train") for example in parts[split]][:12]
    lines = [call(f"r{number}", "", "A", "Write a draft.") for number, _ in enumerate(asked)]
    for line, question in zip(lines, asked, strict=True):
        line["messages"][1]["content"] = json.dumps({"question": question})
    _, log = run(tmp_path / "run", config(file(lines)), made=oj.benchmark(pipeline, metric, rows))
    assert "4 of 12 recorded calls are used" in log and "8 of a validation" in log, log
    assert "4 single calls of training examples" in log


def test_a_session_with_several_questions_is_a_run_for_each(tmp_path, file):
    lines = [{**line, "trace_id": "session"} for line in recorded(questions("train", 8), times=1)]
    _, log = run(tmp_path / "run", config(file(lines)))
    assert "16 of 16 recorded calls are used: 8 runs of 8 training examples replayed" in log
    lines += [{**line, "trace_id": "session"} for line in recorded(questions("val", 1), times=1)]
    _, log = run(tmp_path / "with", config(file(lines)))  # a call that reads no question may be of any of them
    assert "0 of 18 recorded calls are used" in log and "18 of a validation" in log


def test_a_run_that_quotes_other_rows_is_one_run(tmp_path, file):
    first, second = questions("train", 2)
    lines = recorded([first], times=1)
    lines[1]["messages"][1]["content"] = f"Question: hm\nDraft: about it\nSeen: {second}"
    _, log = run(tmp_path / "run", config(file(lines)))
    assert "2 of 2 recorded calls are used" in log
    [measured] = questions("val", 1)
    lines[1]["messages"][1]["content"] = f"Question: hm\nDraft: about it\nSeen: {measured}"
    _, log = run(tmp_path / "other", config(file(lines)))
    assert "0 of 2 recorded calls are used" in log


def test_short_rows_in_passages_are_there_by_chance(tmp_path, file):
    rows = [*ROWS[:40], *({"question": f"City {i}", "wanted": "x"} for i in range(8))]
    parts = deal(examples_of(rows, ("question",))[0], SIZES)
    [short, *_] = [e.inputs["question"] for e in parts["val"] if e.inputs["question"].startswith("City")]
    [asked, *_] = [e.inputs["question"] for e in parts["train"] if e.inputs["question"].startswith("What")]
    lines = [call("r", asked, "A", "Write a draft.", passages=json.dumps([{"title": short, "text": "A city."}]))]
    _, log = run(tmp_path / "run", config(file(lines)), made=oj.benchmark(pipeline, metric, rows))
    assert "1 of 1 recorded calls are used" in log, log


def test_numbers_from_zero_name_runs(tmp_path, file):
    lines = recorded(questions("train", 4), times=1)
    lines = [{**line, "trace_id": None, "run": number // 2} for number, line in enumerate(lines)]
    _, log = run(tmp_path / "run", config(file(lines)))
    assert "8 of 8 recorded calls are used: 4 runs of 4 training examples replayed" in log


def test_second_choices_of_a_run_are_candidates_beside_the_first(tmp_path, file):
    def with_two(line):
        *asked, said = line["messages"]
        other = {"role": "assistant", "content": f"{said['content']}, or not"}
        return {**line, "messages": asked, "choices": [{"message": said}, {"message": other}]}

    lines = [with_two(line) for line in recorded(questions("train", 8), times=1)]
    _, log = run(tmp_path / "run", config(file(lines)))
    assert "32 of 32 recorded calls are used: 8 runs of 8" in log and "16 single calls" in log
    groups = load_groups(tmp_path / "run" / "groups" / "offline")
    assert any("or not" in str(one.outputs) and one.recorded for group in groups for one in group.candidates)


def test_scores_that_no_metric_here_gives_are_no_labels(tmp_path, file):
    lines = [line for line in recorded(questions("train", 24), times=1) if "draft." not in str(line)]
    stars = [{**line, "score": 1 + number % 5} for number, line in enumerate(lines)]
    _, log = run(tmp_path / "run", config(file(stars)))
    assert re.search(r"warning: recorded scores of calls.jsonl, such as [2-5], are outside of 0 to 1", log), log
    assert "24 calls are used without a score" in log
    groups = load_groups(tmp_path / "run" / "groups" / "offline")
    wrong = [one for group in groups for one in group.candidates if one.recorded and "know" in str(one.outputs)]
    assert wrong and all(max(one.rewards) == 0.0 for one in wrong)


@pytest.mark.parametrize(
    ("more", "same"), [(" Always answer in French.", False), ("\n\nExample: a", True), ("\r\nMore.", True)]
)
def test_an_instruction_with_more_in_its_line_is_another_one(tmp_path, file, more, same):
    lines = recorded(questions("train", 4), times=1)
    for line in lines:
        line["messages"][0]["content"] += more
    _, log = run(tmp_path / "run", config(file(lines)))
    assert ("4 runs of 4 training examples replayed" in log) == same, log


def test_weights_on_costs_have_no_labels_of_recorded_calls(tmp_path, file):
    plain = config(file(recorded(questions("train", 2))))
    weighed = dataclasses.replace(plain.optimize, objective=Objective(tokens=10.0))
    with pytest.raises(ConfigError, match=r"objective.tokens is 10, and there are recorded calls .* Set tokens = 0"):
        run(tmp_path / "run", dataclasses.replace(plain, optimize=weighed))


def test_a_file_without_a_call_is_refused(tmp_path, file):
    spans = [{"traceId": "t", "spanId": "a", "attributes": {"llm.input_messages.0.message.content": "hi"}}]
    with pytest.raises(TraceError, match="has no call of a model"):
        run(tmp_path / "run", config(file(spans)))


def test_what_is_of_no_component_is_counted_with_the_way_out(tmp_path, file):
    lines = [{"messages": [{"role": "system", "content": "Sing."}, *call("", "q", "a")["messages"][1:]]}]
    _, log = run(tmp_path / "run", config(file(lines)))
    assert "1 of no component. Components are " in log, log


def test_scores_on_another_scale_are_told(tmp_path, file):
    lines = [{**line, "score": 5} for line in recorded(questions("train", 2))]
    _, log = run(tmp_path / "run", config(file(lines)))
    assert "the metric gives 4 of 4 replayed runs another score" in log and "recorded 5" in log


def test_a_run_goes_on_with_the_same_recorded_calls_alone(tmp_path, file):
    path = file(recorded(questions("train", 4)))
    run(tmp_path / "run", config(path))
    assert run(tmp_path / "run", config(path))[0] == 0
    file(recorded(questions("train", 5)))
    with pytest.raises(FolderError, match=r"other recorded calls than .*calls\.jsonl holds now"):
        run(tmp_path / "run", config(path))


def test_bad_files_are_refused_before_anything_is_paid_for(tmp_path, file):
    path = file([])
    with pytest.raises(TraceError, match="is empty"):
        run(tmp_path / "run", config(path))
    assert not (tmp_path / "run").exists()
    with pytest.raises((TraceError, StopRun, DataError), match="no file"):
        oj.optimize(pipeline, metric, ROWS, traces=tmp_path / "none.jsonl", workdir=tmp_path / "run", model="random:0")


def test_calls_of_an_agent_with_tools_are_replayed_as_conversations(tmp_path, file):
    """The model's name is the component, and each turn of the loop a call with the whole conversation."""
    client = oj.client()

    async def solve(question):
        return {"answer": await tool_loop(client, question)}

    def lines(place, question, right):
        asked = {"id": f"x{place}", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
        asked["function"]["arguments"] = json.dumps({"x": len(question)})
        turn = {"role": "assistant", "content": None, "tool_calls": [asked]}
        result = {"role": "tool", "tool_call_id": asked["id"], "content": str(len(question) + 1)}
        last = {"role": "assistant", "content": f"It is {len(question) + 1}." if right else "It is."}
        turns = begin(question)
        for messages, message in ((turns, turn), ([*turns, turn, result], last)):
            request = {"model": "adder", "messages": messages}
            answer = {"choices": [{"message": message}]}
            yield {"trace_id": f"{place} {right}", "request": request, "response": answer}

    asked = [
        line for place, one in enumerate(questions("train", 6)) for right in (0, 1) for line in lines(place, one, right)
    ]
    program = oj.program(solve, components=[oj.agent("adder")])
    made = oj.benchmark(program, lambda outputs: float("." in outputs["answer"][6:]), ROWS)
    settings = config(file(asked))
    search = dataclasses.replace(settings.optimize, components="adder")
    with closing(client):
        _, log = run(tmp_path / "run", dataclasses.replace(settings, optimize=search), made=made, answer=adds)
    assert "24 of 24 recorded calls are used: 12 runs of 6 training examples replayed" in log
    groups = load_groups(tmp_path / "run" / "groups" / "offline")
    last = [group for group in groups if group.occurrence == 1 and group.candidates[0].recorded]
    assert len(last) == 6 and all(sorted(group.rewards)[:: len(group.rewards) - 1] == [0.0, 1.0] for group in last)
    first = next(group for group in groups if group.occurrence == 0)
    [call] = first.candidates[0].outputs["calls"]
    assert call["name"] == "add" and first.candidates[0].outputs["ids"][0].startswith("call_")


def test_a_plan_reads_recorded_calls_and_says_that_it_does_not_count_them(tmp_path, file):
    log = io.StringIO()
    path = file(recorded(questions("train", 2)))
    planned = oj.plan(
        pipeline,
        metric,
        ROWS,
        model="random:0",
        traces=path,
        workdir=tmp_path / "run",
        config={"optimize.score": "off", "optimize.iterations": 0, "offline.groups": 2},
        progress=ConsoleProgress(Console(file=log, width=300)),
    )
    assert "recorded calls (traces) spare a part of collecting" in log.getvalue() and planned.config
    with pytest.raises(TraceError, match="no file"):
        oj.plan(pipeline, metric, ROWS, model="random:0", traces=tmp_path / "none", workdir=tmp_path / "run")
