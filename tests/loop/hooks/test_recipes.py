"""The recipes of docs/recipes, as they stand there: each changes the search as it says."""

import re
from pathlib import Path

import pytest
from fakes import ScriptedCompleter

import optimas_jax as oj
from optimas_jax.core.text.frames import UserBug
from optimas_jax.loop.setup import build
from optimas_jax.report.console import ConsoleProgress

RECIPES = Path(__file__).parents[3] / "docs" / "recipes"
QUICK = {"reward.model": "random:0", "offline.groups": 0, "optimize.score": "off"}
events = oj.events
optimize = oj.optimize


def answered(request):
    """Answers in a sentence, until it is told to answer shortly; hot answers are as long as their seed says."""
    text = request.messages[-1].content
    if request.role == "proposer":
        return "Write the answer alone."
    number = int(re.findall(r"\d+", text)[-1])
    if "capital" in text:
        return f"City-{number}" if "alone" in request.messages[0].content + text else f"It is City-{number}, I believe."
    if request.temperature:  # a sample
        return f"It is {2 * number}" if request.seed % 2 else str(2 * number)
    return f"I believe that it is {2 * number}."


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Runs a recipe without a model and returns its names; with other options in place of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "make_completer", lambda *arguments: ScriptedCompleter(answered))

    def run(name, config=None, **changes):
        def small(program, metric, rows, **options):
            options |= changes
            options["config"] = {**QUICK, **options.get("config", {}), **(config or {})}
            options["workdir"] = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
            model, quiet = oj.LanguageModel("random:0", max_tokens=16), ConsoleProgress(quiet=True)
            return optimize(program, metric, rows, model=model, progress=quiet, **options)

        source = "\n".join(re.findall(r"```python\n(.*?)```", (RECIPES / f"{name}.md").read_text("utf-8"), re.DOTALL))
        path = tmp_path / f"{name.replace('-', '_')}.py"
        path.write_text(source, encoding="utf-8")
        names = {"__name__": path.stem}
        with monkeypatch.context() as patched:
            patched.setattr(oj, "optimize", small)
            exec(compile(source, str(path), "exec"), names)
        return names

    return run


def of(names, kind):
    return [event for event in events.read_events(names["result"].folder) if isinstance(event, kind)]


def test_an_own_proposer_s_value_is_tried_and_accepted(recipe):
    """In the place of the others it is the only one; beside them they are there, too."""
    config = {"optimize.proposers": "own:add_a_rule", "optimize.iterations": 1}
    names = recipe("own-proposer", config)
    assert {event.kind for event in of(names, events.Proposal)} == {"own:add_a_rule"}
    [accepted] = of(names, events.Accept)
    assert accepted.value.instruction == "Answer the question. Write the answer alone."
    assert accepted.kind == "own:add_a_rule" and accepted.val_gain == 1.0
    assert names["result"].gain == 1.0
    settings = names["result"].folder / "config.json"
    assert '"own:add_a_rule"' in settings.read_text()
    beside = recipe("own-proposer", {"optimize.iterations": 1})
    assert '"demos,feedback,opro,own:add_a_rule"' in (beside["result"].folder / "config.json").read_text()
    verdicts = {event.kind for event in of(beside, events.Verdict)}
    assert "own:add_a_rule" in verdicts and len(verdicts) > 1
    without = recipe("own-proposer", {"optimize.iterations": 1, "optimize.proposers": "demos"}, hooks=None)
    assert not [event for event in of(without, events.Verdict) if event.kind.startswith("own:")]


def test_an_own_pick_rule_chooses_the_components(recipe):
    picked = [(event.component, event.rule) for event in of(recipe("own-pick-rule"), events.Pick)]
    own = "own:stay_while_it_gains"
    assert picked == [("end", own), ("end", own), ("write", own), ("write", own)]
    names = recipe("own-pick-rule", hooks=None)
    assert [(event.component, event.rule) for event in of(names, events.Pick)][:2] == [("end", "gap"), ("write", "gap")]
    first = recipe("own-pick-rule", {"optimize.order": "write"})
    assert [(event.component, event.rule) for event in of(first, events.Pick)][:2] == [
        ("write", "order"),
        ("write", own),
    ]


def test_an_own_acceptance_refuses_what_the_gate_accepts(recipe):
    names, default = recipe("own-acceptance"), recipe("own-acceptance", hooks=None)
    assert [event.value.settings["unit"] for event in of(default, events.Accept)] == ["km"]
    assert all(event.covered and event.rule == "paired" for event in of(default, events.Gate))
    assert not of(names, events.Accept)
    gates = of(names, events.Gate)
    assert gates and all(not event.covered and event.rule == "own:no_example_worse" for event in gates)
    assert "examples became worse" in gates[0].reason and "does not cover" in gates[0].reason
    verdicts = names["result"].proposals
    assert "became worse" in " ".join(verdicts["reason"]) and not verdicts["gate.covered"].dropna().any()


def test_what_an_own_acceptance_takes_is_marked(recipe):
    names = recipe("own-acceptance", hooks=oj.Hooks(accept=lambda task: "accept"))
    accepted = of(names, events.Accept)
    assert accepted and not any(event.covered for event in accepted)
    [first, *_] = names["result"].results["accepted"]
    assert (first["rule"], first["covered"]) == ("own:<lambda>", False)
    assert all(event.n < event.of for event in of(names, events.Gate))  # at the first look


def test_an_own_local_reward_ranks_and_chooses(recipe):
    config = {"optimize.score": "local", "optimize.iterations": 1, "optimize.proposers": "random"}
    names = recipe("own-local-reward", config)
    proposals = {event.kind: event for event in of(names, events.Proposal)}
    scored, folder = names["short_and_numeric"], names["result"].folder
    assert '"score": "own"' in (folder / "config.json").read_text()
    assert not (folder / "checkpoints").exists() or not list((folder / "checkpoints").iterdir())
    [accepted] = of(names, events.Accept)
    assert accepted.kind == "best_of" and accepted.value.reward == "own" and accepted.val_gain > 0
    long, short = "I believe that it is 4.", "4"
    lower, higher = scored("draft", {}, [{"draft": long}, {"draft": short}])
    assert higher - lower == pytest.approx((len(long) - len(short)) / 1000)
    assert 0 < proposals["best_of"].local_gain <= higher - lower + 0.002
    assert names["result"].results["score"] == "own"
    [race] = of(names, events.Race)
    assert race.local_reward


def test_callbacks_have_what_a_live_table_shows(recipe):
    names = recipe("callbacks")
    table, rows = names["table"], names["result"].proposals
    raced = rows[rows["race.rank"].notna()] if "race.rank" in rows else rows
    assert set(table) == set(raced["id"])
    accepted = [row for row in table.values() if row["verdict"] == "accepted"]
    assert accepted and accepted[0]["gain"] == 1.0 and accepted[0]["interval"] == (1.0, 1.0)
    assert all(row["reason"] and row["parent"] for row in table.values())
    assert names["costs"] == {}  # no model was asked


def test_every_recipe_is_executed_here():
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.stem}"' in text for path in RECIPES.glob("*.md"))


def test_bugs_of_hooks_end_a_run_with_the_user_s_frames(recipe):
    def broken(task):
        return {}["nothing"]

    with pytest.raises(UserBug, match="the own pick rule 'broken' raised KeyError: 'nothing'") as caught:
        recipe("own-pick-rule", hooks=oj.Hooks(pick=broken))
    assert caught.value.__cause__ is not None
