"""The page of a run in a browser: what it asks for, how it reads, what it takes."""

import shutil
import time

import pytest
from browser import SCHEMES, chromium, complaints, look, requests_of, violations
from fakes import ScriptedCompleter
from report_runs import call, event, example, large_run, proposal, results, run_files
from scripted import answer, scripted_config

from optimas_jax.core.folder.search_events import Curve
from optimas_jax.report.console import ConsoleProgress
from optimas_jax.report.page import live
from optimas_jax.report.page.write import run_page, write_page
from optimas_jax.report.run import write_report

pytestmark = pytest.mark.long

WIDTHS = (320, 800, 1600)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a real run, on a scripted language model; what it said on the way lies beside it."""
    from optimas_jax.loop.stages import run_stages

    folder = tmp_path_factory.mktemp("page") / "run"
    model, progress = ScriptedCompleter(answer), ConsoleProgress(quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "_FIRST", 0.0)
        patch.setattr(live, "_SHARE", 0.0)
        with live.live_page(progress.line) as tell:

            def keep(event):
                tell(event)
                if isinstance(event, Curve) and event.at == "iteration":
                    shutil.copy(folder / "report.html", folder.parent / f"{event.iteration}.html")

            label = run_stages(scripted_config(), folder, "all", progress, model, callbacks=[keep])
    write_report(folder, label)
    return folder / "report.html"


def test_the_page_of_a_run_was_rewritten_after_every_iteration(page):
    tops = [head_of(page.parents[1] / f"{number}.html") for number in range(3)]
    assert all("running" in top and "The search" in top for top in tops)
    assert "running" not in head_of(page) and "finished" in head_of(page)


def head_of(path):
    return path.read_text(encoding="utf-8").partition("<header")[2].partition("</header>")[0]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A page of 1,000 examples, 200 proposals and 10 components."""
    path = tmp_path_factory.mktemp("large") / "report.html"
    write_page(path, large_run())
    return path


def test_a_page_asks_for_nothing_and_has_no_fault(page):
    with chromium() as driver:
        look(driver, page)
        assert requests_of(driver) == [page.as_uri()]
        assert complaints(driver) == []
        assert "hotpotqa" in driver.title
        landmarks = "return ['main', 'nav', 'footer', 'h1'].map((name) => document.querySelectorAll(name).length)"
        assert driver.execute_script(landmarks) == [1, 1, 1, 1]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_page_is_accessible(page, scheme):
    with chromium() as driver:
        for width in (320, 1600):
            look(driver, page, width, scheme)
            assert violations(driver) == []
            driver.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
            assert violations(driver) == []


def test_pages_in_every_state_are_accessible(tmp_path):
    with chromium() as driver:
        for number, run in enumerate((run_files(tmp_path), run_files(tmp_path, events=large_run(1, 8, 2).events))):
            path = tmp_path / f"{number}.html"
            path.write_text(run_page(run, running=True))
            look(driver, path)
            assert violations(driver) == [] and complaints(driver) == []


def test_a_page_never_scrolls_sideways(page, large):
    with chromium() as driver:
        for path in (page, large):
            for width in WIDTHS:
                look(driver, path, width)
                driver.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
                assert driver.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_keyboard_reaches_every_example(page):
    from selenium.webdriver.common.keys import Keys

    with chromium() as driver:
        look(driver, page)
        wanted = set(driver.execute_script("return [...document.querySelectorAll('.flip')].map((flip) => flip.id)"))
        assert wanted
        reached = set()
        for _ in range(40 + 4 * len(wanted)):
            driver.switch_to.active_element.send_keys(Keys.TAB)
            focus = "const at = document.activeElement; return at.localName === 'summary' ? at.parentElement.id : ''"
            reached.add(driver.execute_script(focus))
            if wanted <= reached:
                break
        assert wanted <= reached
        driver.switch_to.active_element.send_keys(Keys.ENTER)
        assert driver.execute_script("return document.activeElement.parentElement.open")


def test_examples_are_filtered_by_change_kind_and_text(large):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    with chromium() as driver:
        look(driver, large)
        shown = (
            "return [...document.querySelectorAll('.flip')].filter((flip) => !flip.hidden).map((flip) => flip.dataset)"
        )
        assert len(driver.execute_script(shown)) == 200
        Select(driver.find_element(By.CSS_SELECTOR, "[data-by=way]")).select_by_visible_text("worse")
        Select(driver.find_element(By.CSS_SELECTOR, "[data-by=kind]")).select_by_visible_text("kind 3")
        found = driver.execute_script(shown)
        assert found and all(one["way"] == "worse" and one["kind"] == "kind 3" for one in found)
        driver.find_element(By.CSS_SELECTOR, "[data-by=text]").send_keys("no such text anywhere")
        assert driver.execute_script(shown) == []
        assert driver.find_element(By.CSS_SELECTOR, "[data-empty]").is_displayed()


def test_a_link_opens_what_it_leads_to(large):
    with chromium() as driver:
        look(driver, large)
        name = driver.execute_script("return document.querySelectorAll('.flip')[150].id")
        driver.execute_script("location.hash = arguments[0]", name)
        time.sleep(0.2)
        assert driver.execute_script("return document.getElementById(arguments[0]).open", name)


def test_a_large_page_is_small_and_soon_there(large):
    assert large.stat().st_size <= 3_000_000
    run = large_run()
    began = time.process_time()
    run_page(run)
    assert time.process_time() - began <= 5
    with chromium() as driver:
        paints = []
        for _ in range(3):
            look(driver, large)
            paint = "return performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)[0]"
            paints.append(driver.execute_script(paint))
    assert min(paints) <= 1500


HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    '" onmouseover="window.hacked = 1" x="',
    "{{ 7 * 7 }}{% raw %}",
    "\u202eright to left\u2066 \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\x00\x1b[31m\u2028\u2029\ufeff",
    "w" * 100_000,
)


def hostile_run(text):
    """A run whose every text is this one."""
    row = example(0, 1.0, 0.0, (text, f"{text} other"))
    row |= {"id": text, "kind": text, "inputs": {text: text}, "gold": {text: [text, {text: text}]}}
    for name in ("before", "after"):
        [one] = row[name]["runs"]
        one["feedback"] = text
        one["calls"] = [
            call(text, {text: text}, {text: text + name}),
            call(f"{text}2", {}, {text: {text: [text]}}, outcome=text, detail=text),
        ]
    prompt = {"type": "prompt", "instruction": text, "demos": [{"inputs": {text: text}, "outputs": {text: text}}]}
    part = {"name": text, "description": text, "inputs": [text], "outputs": [text], "tuned": True, "value": prompt}
    settings = {"type": "hyperparameters", "settings": {text: text}}
    change = {"iteration": 0, "component": text, "kind": text, "value": settings, "val_gain": 0.1}
    aligned = {"pair_accuracy": 0.7, "ci95": None, "n_pairs": 9, "n_inputs": 4, "spearman": 0.1, "controls": {}}
    usage = {"calls": 1, "prompt_tokens": 1, "completion_tokens": 1, "usd": 1.0, "seconds": 1.0, "system_runs": 1}
    usage |= {"component_calls": 1, "tokens": 2, "paid_calls": 1}
    found = results(
        [row],
        benchmark=text,
        variant=text,
        metric=text,
        confirmed={"n": 1, "changes": 1, "verdict": text},
        accepted=[change],
        alignment={text: aligned},
        label_use={text: {"labelled_runs": 1, "effective_runs": 1.0, "local_reward": True}},
        dropped={text: {text: 3}},
        ledger={text: {text: usage}},
        spent={text: {"spent": usage, "predicted": None}},
        blame={"passing": 1, "failing": 1, "reason": text, "components": {text: {"first": 1, "share": 1.0}}},
        score=text,
    )
    gains = {"expected_gain": 0.1, "labelled_gain": None, "local_gain": 0.2, "val_gain": 0.1, "ci95": [0.0, 0.2]}
    rest = {"value": text, "kind": text, "p_value": 0.1, "n": 3, "accepted": True, "reason": text}
    spent = {name: usage[name] for name in usage if name not in ("tokens", "paid_calls")}
    events = [
        event(event="groups", component=text, groups=1, informative=1, stopped=text),
        event(event="curve", at="start", iteration=0, val_score=0.5, **spent),
        event(event="pick", iteration=0, component=text),
        event(event="gate", iteration=0, component=text, **gains, **rest),
        event(event="adaptation", fresh_groups=1, fresh_pairs=3, pair_accuracy_before=0.5, trained=True, reward=text),
        event(event="curve", at="iteration", iteration=0, val_score=0.6, **{**spent, "calls": 9, "prompt_tokens": 9}),
        event(event="search_end", iterations=1, reason=text, accepted=1, val_score=0.5),
    ]
    record = {"command": text, "commit": text, "started": text, "finished": None, "versions": {text: text}}
    return run_files(
        examples=[row],
        results=found,
        events=events,
        system={"program": False, "inputs": [text], "components": [part, {**part, "name": f"{text}2"}]},
        proposals=[proposal(0, component=text, optimiser=text, text=text, reason=text, verdict=text, id=text)],
        record={**record, "platform": text, "seconds": 1.0, "paid_calls": 1, "tokens": 1, "usd": 1.0},
        config={"optimize": {"score": text}, "system": {"language_model": {"model": text}}},
    )


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_do_nothing(tmp_path, text):
    path = tmp_path / "report.html"
    write_page(path, hostile_run(text))
    assert path.stat().st_size < 1_000_000
    with chromium() as driver:
        look(driver, path, 320)
        driver.execute_script("for (const part of document.querySelectorAll('details')) part.open = true")
        assert driver.execute_script("return window.hacked") is None
        assert driver.execute_script("return document.scripts.length + document.images.length") == 1
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 320
        assert complaints(driver) == [] and requests_of(driver) == [path.as_uri()]
