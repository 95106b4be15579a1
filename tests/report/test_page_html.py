"""The page of a run, as HTML."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from front_door import optimize, search
from report_runs import example, proposal, results, run_files

import optimas_jax as oj
from optimas_jax.report.page import write
from optimas_jax.report.page.write import run_page, write_page
from optimas_jax.report.run import write_report

_VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects what tests ask for."""

    def __init__(self, source):
        super().__init__()
        self.open, self.ids, self.links, self.seen, self.texts = [], [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("href", "src")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def count(self, tag, **attrs):
        return sum(one == tag and attrs.items() <= given.items() for one, given in self.seen)


def page_of(run, **options):
    page = Page(run_page(run, **options))
    assert len(page.ids) == len(set(page.ids))
    return page


def finished(**changes):
    examples = [example(0, 1.0, 0.0), example(1, 0.0, 1.0), example(2, 0.5, 0.5)] * 4
    examples = [{**row, "id": f"row-{number}"} for number, row in enumerate(examples)]
    rows = [proposal(0), proposal(1, verdict="refused", reason="not shown to be better")]
    return run_files(examples=examples, results=results(examples), proposals=rows, **changes)


def test_a_page_has_no_key_of_an_address():
    command = "launch/run.py --config.server.base_url='https://me:pa&ss@host/v1?a=1&key=zq1' --config.seed=1"
    call = """optimize(rag, ..., config={"server": {"base_url": "https://zq2@host?api_key=zq1&x=1"}}) from Python"""
    for text in (command, call):
        page = run_page(finished(record={"command": text}))
        assert "https://***@host" in page and "key=***" in page
        assert not any(secret in page for secret in ("me:pa", "ss@", "zq1", "zq2"))


def test_the_head_says_what_the_run_brought():
    text = page_of(finished()).text
    assert "hotpotqa:embedded" in text
    assert "4 better 4 worse" in text and "4 the same of 12" in text
    assert "1 kept of 2 tested" in text


def test_a_page_is_one_file_that_asks_for_nothing():
    page = page_of(finished())
    outside = [link for link in page.links if not link.startswith(("#", "data:", "proposals.", "evaluations/"))]
    assert outside == []
    [policy] = [given["content"] for tag, given in page.seen if given.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not [given for _, given in page.seen if "style" in given or any(name.startswith("on") for name in given)]


def test_examples_that_flipped_open_to_both_runs():
    page = page_of(finished())
    assert page.count("details", **{"data-way": "worse"}) == page.count("details", **{"data-way": "better"}) == 4
    assert "first difference" in page.text


@pytest.mark.parametrize(
    "hostile",
    [
        "</script><script>alert(1)</script>",
        "{{ 7 * 7 }}{% raw %}",
        '"><img src=x>',
        "\u2028\x00\x1b[31m\u202eabc",
        "x" * 100_000,
    ],
)
def test_hostile_texts_stay_texts(hostile):
    row = example(0, 0.0, 1.0, (hostile, "right"))
    row |= {"id": hostile, "kind": hostile, "inputs": {hostile: hostile}}
    bad = proposal(0, id=hostile, component=hostile, optimiser=hostile, text=hostile, reason=hostile, verdict=hostile)
    found = results([row], benchmark=hostile, metric=hostile, variant=hostile)
    page = page_of(run_files(examples=[row], results=found, proposals=[bad]))
    assert page.count("script") == 1 and page.count("img") == 0
    assert "49" not in page.text


def test_a_folder_without_anything_has_a_page():
    assert "not begun" in page_of(run_files()).text


def test_of_many_examples_the_largest_changes_are_shown():
    rows = [example(index, 1.0, index / 1000) for index in range(400)]
    rows += [example(1000 + index, 0.0, 1.0) for index in range(50)]
    page = page_of(run_files(examples=rows, results=results(rows)))
    assert page.count("details", **{"data-way": "worse"}) == 150
    assert page.count("details", **{"data-way": "better"}) == 50
    assert "250 others are in" in page.text


def test_a_page_is_written_once(tmp_path):
    path = tmp_path / "report.html"
    write_page(path, finished(folder=tmp_path))
    first = path.stat().st_mtime_ns
    write_page(path, finished(folder=tmp_path))
    assert path.stat().st_mtime_ns == first
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_fault_of_a_section_costs_no_results(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text(json.dumps(results([example(0, 1.0, 0.0)])), encoding="utf-8")
    monkeypatch.setattr(write, "SECTIONS", {"bill": ("Bill", lambda run: 1 / 0)})
    with pytest.warns(UserWarning, match=r"report.html cannot be made \(ZeroDivisionError: .*results.json"):
        _, found = write_report(tmp_path)
    assert found is not None


def test_a_run_whose_caller_shows_its_progress_has_its_page(tmp_path):
    k = oj.setting(1, choices=(1, 2), name="k")

    async def program(question):
        return await search(question) * k.value

    optimize(tmp_path, oj.program(program, components=[search, k]))
    assert "running" not in Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
