"""``optimas watch`` in Chromium, during a run: it moves, pauses, stops, and the same command resumes."""

import contextlib
import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest
from browser import chromium, complaints, look, requests_of, violations
from runs import ROOT

pytestmark = pytest.mark.long
SECONDS = 240


@pytest.fixture(scope="module")
def driver():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    with process("live_run.py", str(folder), "0") as run:
        assert run.wait(SECONDS) == 0
    return folder


@contextlib.contextmanager
def process(*command, **options):
    """A process of Python, which ends with the block."""
    variables = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    arguments = [sys.executable, *command]
    with subprocess.Popen(arguments, cwd=ROOT / "tests", env=variables, text=True, **options) as started:
        try:
            yield started
        finally:
            started.terminate()
            started.wait(60)


@contextlib.contextmanager
def watching(folder, driver):
    """The server of ``optimas watch``; yields its address. Its page is left before it ends."""
    with process(str(ROOT / "launch" / "watch.py"), str(folder), "--port=0", stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith(f"watching {folder} at http://127.0.0.1:"), line
        try:
            yield line.split()[-1]
        finally:
            driver.get("about:blank")


def until(what, seconds=SECONDS):
    """Waits until something holds, and returns it."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def text(driver, name):
    return driver.find_element("id", name).get_attribute("textContent")


def state(driver):
    return driver.execute_script("return document.body.dataset.state")


def points(driver):
    return driver.execute_script(
        "const path = document.querySelector('#curve path'); return path && path.getAttribute('d')"
    )


def tokens(driver):
    cells = driver.execute_script(
        "return [...document.querySelectorAll('#bill tr.sum td')].map((cell) => cell.textContent)"
    )
    return int(cells[1].replace(",", "")) if cells else 0


def press(driver, name):
    button = driver.find_element("id", name)
    button.click()
    if name == "stop":  # once more, to be sure
        button.click()


def test_curve_and_bill_move_and_stop_ends_the_run_which_resumes(driver, tmp_path):
    folder = tmp_path / "[b]run"
    with watching(folder, driver) as address:
        look(driver, address)
        until(lambda: state(driver) == "absent")
        with process("live_run.py", str(folder), "0.4") as run:
            first = until(lambda: points(driver))
            spent = tokens(driver)
            assert state(driver) == "running" and spent > 0
            until(lambda: points(driver) != first and tokens(driver) > spent)
            until(
                lambda: (
                    "answer_generator" in text(driver, "component") or "context_retriever" in text(driver, "component")
                )
            )

            press(driver, "pause")
            until(lambda: state(driver) == "paused")
            paid = tokens(driver)
            time.sleep(3)
            assert tokens(driver) == paid and run.poll() is None
            press(driver, "resume")
            until(lambda: state(driver) == "running" and tokens(driver) > paid)

            press(driver, "stop")
            assert run.wait(60) == 130
        until(lambda: state(driver) == "stopped")
        assert "the same command resumes" in text(driver, "says")
        assert not (folder / "results.json").exists() and (folder / "unfinished.json").exists()
        kept = json.loads((folder / "run.json").read_text())["paid_calls"]
        with process("live_run.py", str(folder), "0.1") as again:
            assert again.wait(SECONDS) == 0
        until(lambda: state(driver) == "finished")
        record = json.loads((folder / "run.json").read_text())
        assert record["paid_calls"] > kept and len(record["parts"]) == 2
        assert "test: gain +0.399" in text(driver, "decisions")
        assert not complaints(driver)
        assert all(one.startswith(address) for one in requests_of(driver))


def test_open_details_and_the_place_stay_when_the_report_is_renewed(driver, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = "".join(f"<p id='p{index}'>line {index}</p>" for index in range(200))

    def write(number):
        body = f"<p>version {number}</p><details><summary>one</summary>text</details>{lines}" + "<p>more</p>" * number
        (folder / "report.html").write_text(
            f"<!doctype html><html><head><title>x</title></head><body>{body}</body></html>"
        )

    def inside(script):
        """What a script says within the report; None while another report takes its place."""
        try:
            driver.switch_to.frame(driver.find_element("css selector", "#frames iframe:not(.coming)"))
            return driver.execute_script(script)
        except Exception:  # of Selenium, which may not be installed
            return None
        finally:
            driver.switch_to.default_content()

    write(1)
    (folder / "config.json").write_text("{}")
    with watching(folder, driver) as address:
        look(driver, address)
        until(lambda: driver.find_elements("css selector", "#frames iframe:not(.coming)"))
        inside("document.querySelector('details').open = true; document.getElementById('p100').scrollIntoView()")
        before: Any = inside("return document.getElementById('p100').getBoundingClientRect().top")
        write(30)
        until(lambda: inside("return document.body.textContent.startsWith('version 30')"))
        assert inside("return document.querySelector('details').open")
        after: Any = inside("return document.getElementById('p100').getBoundingClientRect().top")
        assert abs(after - before) < 3
        assert len(driver.find_elements("tag name", "iframe")) == 1
        # Its script can neither ask nor reach the page around it.
        reached = inside("try { return parent.document.title } catch (error) { return 'refused' }")
        assert reached == "refused"


@pytest.mark.parametrize("width", [320, 800, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible_and_fits(driver, finished, width, scheme):
    with watching(finished, driver) as address:
        look(driver, address, width, scheme)
        until(lambda: state(driver) == "finished" and points(driver))
        wide = driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
        picture = ROOT / "tests" / ".cache" / f"watch-{width}-{scheme}.png"
        picture.parent.mkdir(exist_ok=True)
        driver.save_screenshot(str(picture))
        assert not violations(driver)
        assert not complaints(driver)
