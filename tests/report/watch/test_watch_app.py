"""What ``optimas watch`` tells of a run folder, and who may ask the run for anything."""

import asyncio
import base64
import json
import subprocess
import sys
import time

import httpx2
import pytest

from optimas_jax.core.folder import events
from optimas_jax.core.folder.control import ask, is_locked, take
from optimas_jax.core.folder.events import to_json
from optimas_jax.core.folder.files import FolderError, json_line
from optimas_jax.core.folder.live import Status
from optimas_jax.core.progress import Bar
from optimas_jax.core.usage import Usage
from optimas_jax.report.watch.app import Told, make_app
from optimas_jax.report.watch.state import Looker
from optimas_jax.report.watch.state import to_json as shown
from optimas_jax.server.gate import Gate

HOST = "127.0.0.1:8010"
ORIGIN = f"http://{HOST}"
HOLDER = """
import fcntl, sys
held = open(sys.argv[1], "w")
fcntl.lockf(held, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """A run folder whose lock another process holds, with a status and a journal."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_status(folder)
    write_journal(folder)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    yield folder
    process.communicate(b"")


def write_status(folder, **fields):
    status = Status(
        id="abc",
        title="rag:[own]",
        step="optimize: gate",
        iteration=1,
        iterations=3,
        component="<script>alert(1)</script>",
        proposal="opro: \u202eBe\nshort\u2028.",
        score=0.5,
        start=0.25,
        spent=Usage(calls=3, prompt_tokens=100),
        steps={"optimize: gate": Usage(calls=3, prompt_tokens=900)},
        bars=(Bar("gate", 1, 8, 2.0),),
    )
    data = {**status.to_json(), **fields}
    (folder / "live.json").write_text(json.dumps(data), encoding="utf-8")


def write_journal(folder, more=""):
    found = [
        events.Curve(at="start", iteration=0, val_score=0.25, spent=Usage(prompt_tokens=400)),
        events.Pick(iteration=0, component="drafter"),
        events.Curve(at="accept", iteration=0, val_score=0.5, spent=Usage(prompt_tokens=800)),
    ]
    lines = "".join(f"{json_line({**to_json(event), 'time': 1.0})}\n" for event in found)
    (folder / "journal.jsonl").write_text(lines + more, encoding="utf-8")


def requests(application, *calls):
    """Answers of an application to (method, path, headers)."""

    async def send():
        transport = httpx2.ASGITransport(app=application)
        async with httpx2.AsyncClient(transport=transport, base_url=ORIGIN) as client:
            return [await client.request(method, path, headers=headers) for method, path, headers in calls]

    return asyncio.run(send())


def token_of(application):
    [page] = requests(application, ("GET", "/", {}))
    return page.text.partition('name="token" content="')[2].partition('"')[0]


def own(application):
    return {"origin": ORIGIN, "x-optimas-token": token_of(application)}


def test_a_run_is_told_as_plain_lines(held):
    told = shown(Looker(held).look())
    assert told["state"] == "running" and told["can"] == ["pause", "stop"] and told["id"] == "abc"
    assert told["where"] == "rag:[own]: optimize 1/3, gate"
    assert told["cells"]["component"] == "<script>alert(1)</script>"  # text, which the page writes as text
    assert told["cells"]["proposal"] == "opro: Be short ."
    assert told["cells"]["score"] == "0.500 (+0.250)"
    assert told["curve"] == [[400, 0.25], [800, 0.5], [900, 0.5]]  # the last point is now
    assert told["bill"] == [{"step": "optimize: gate", "calls": 3, "tokens": 900, "usd": 0}]
    assert told["decisions"] == ["iteration 1: drafter"] and told["bars"] == [{"label": "gate", "done": 1, "total": 8}]


def test_states_of_a_folder(tmp_path, held):
    assert shown(Looker(tmp_path / "none").look())["state"] == "absent"
    (tmp_path / "dead").mkdir()
    write_status(tmp_path / "dead")
    dead = shown(Looker(tmp_path / "dead").look())
    assert dead["state"] == "killed" and dead["can"] == [] and dead["bars"] == []
    write_status(held, state="paused")
    assert shown(Looker(held).look())["can"] == ["resume", "stop"]


def test_a_folder_that_is_written_damaged_and_mended_meanwhile(held):
    looker = Looker(held)
    looker.look()
    write_journal(held, '{"event": "pick", "iterat')
    told = shown(looker.look())
    assert not told["problems"] and told["decisions"] == ["iteration 1: drafter"]  # a line that is being written
    write_journal(held, "damaged\n")
    told = shown(looker.look())
    assert "is damaged" in told["problems"][0] and told["decisions"] == ["iteration 1: drafter"]
    (held / "live.json").write_text("{", encoding="utf-8")
    assert shown(looker.look())["state"] == "running"  # as it was last
    (held / "live.json").unlink()
    write_journal(held)
    told = shown(looker.look())
    assert not told["problems"] and told["state"] == "absent"


def test_numbers_that_are_none_are_told_as_such(held):
    nan, usage = float("nan"), Usage(prompt_tokens=900)
    gate = {"value": "", "kind": "opro", "expected_gain": 0.0, "labelled_gain": None, "local_gain": None}
    tested = {"val_gain": nan, "ci95": (nan, nan), "p_value": nan, "n": 8, "accepted": False}
    found = [
        events.Gate(iteration=0, component="drafter", id="a", **gate, **tested),
        events.Curve(at="iteration", iteration=0, val_score=nan, spent=usage),
        events.Evaluation(split="test", n=1, gain={"mean": 0.5, "ci95": None, "p_value": 1.0}),
    ]
    write_journal(held, "".join(f"{json_line({**to_json(event), 'time': 1.0})}\n" for event in found))
    told = shown(Looker(held).look())
    assert told["decisions"][1:] == [
        "refused: drafter, opro, – on validation, p = –, n = 8",
        "test: gain +0.500 too few to say, n = 1",
    ]
    assert [score for _, score in told["curve"]] == [0.25, 0.5, 0.5] and json.dumps(told, allow_nan=False)


def test_a_run_is_told_by_a_file_that_names_its_command(held):
    ask(held, "abc", "pause")
    assert take(held, "abc") == "pause" and take(held, "abc") is None
    ask(held, "abc", "stop")
    assert take(held, "another") is None and take(held, "abc") is None  # an old wish is gone
    (held / "control.json").write_text("[]")
    assert take(held, "abc") is None
    with pytest.raises(FolderError, match="cannot write"):
        ask(held / "nowhere", "abc", "stop")


def test_the_lock_tells_whether_a_command_runs(held, tmp_path):
    assert is_locked(held) is True
    (tmp_path / ".lock").touch()
    assert is_locked(tmp_path) is False and is_locked(tmp_path / "nowhere") is False


def test_only_the_own_page_may_ask(held):
    application = make_app(held, has_key=False)
    good = own(application)
    for headers in (
        {},
        {**good, "origin": "http://evil.example"},
        {**good, "origin": "null"},
        {**good, "origin": "http://[::1"},
        {**good, "origin": "https://127.0.0.1"},
        {**good, "x-optimas-token": ""},
        {**good, "sec-fetch-site": "cross-site"},
        {"x-optimas-token": good["x-optimas-token"]},
    ):
        [answer] = requests(application, ("POST", "/stop?id=abc", headers))
        assert answer.status_code == 403 and not (held / "control.json").exists()
    refused = requests(
        application,
        ("GET", "/", {"host": "rebound.example:8010"}),
        ("GET", "/events", {"host": "rebound.example"}),
        ("POST", "/stop?id=abc", {**good, "host": "rebound.example", "origin": "http://rebound.example"}),
        ("GET", "/", {"host": "[::1"}),
    )
    assert [answer.status_code for answer in refused] == [421] * 4
    assert requests(application, ("GET", "/stop?id=abc", good))[0].status_code == 405
    [other, again, asked] = requests(
        application,
        ("POST", "/stop?id=another", good),
        ("POST", "/resume?id=abc", good),
        ("POST", "/pause?id=abc", good),
    )
    assert (other.status_code, again.status_code, asked.status_code) == (409, 409, 202)
    assert take(held, "abc") == "pause"


def test_the_page_and_the_report_have_policies(held):
    application = make_app(held, has_key=False)
    [missing] = requests(application, ("GET", "/report", {}))
    assert missing.status_code == 404
    (held / "report.html").write_text("<!doctype html><head><title>x</title></head>", encoding="utf-8")
    [page, report, script] = requests(application, ("GET", "/", {}), ("GET", "/report", {}), ("GET", "/watch.js", {}))
    assert (
        "script-src 'self'" in page.headers["content-security-policy"]
        and "unsafe" not in (page.headers["content-security-policy"])
    )
    assert report.headers["content-security-policy"].startswith("sandbox allow-scripts;")
    assert report.text.startswith("<!doctype html><head><script>") and "connect-src" not in report.text
    assert script.headers["content-type"].startswith("text/javascript")


def test_files_that_the_report_names_are_served_and_no_others(held, tmp_path):
    application = make_app(held, has_key=False)
    (held / "evaluations").mkdir()
    (held / "evaluations" / "val.jsonl").write_text('{"a": "<script>"}\n', encoding="utf-8")
    (tmp_path / "secret.jsonl").write_text("secret", encoding="utf-8")
    (held / "evaluations" / "out.jsonl").symlink_to(tmp_path / "secret.jsonl")
    shown, *refused = requests(
        application,
        *(("GET", f"/evaluations/{name}.jsonl", {}) for name in ("val", "none", "out", "..%2f..%2fsecret", "%00")),
        ("GET", "/live.json", {}),
        ("GET", "/results.json", {}),
    )
    assert shown.text == '{"a": "<script>"}\n'
    assert shown.headers["content-type"].startswith("text/plain")
    assert shown.headers["content-security-policy"].startswith("sandbox;")
    assert [answer.status_code for answer in refused] == [404] * 6
    assert "secret" not in "".join(answer.text for answer in refused[:2])


def test_a_server_that_others_reach_wants_its_password(held):
    application = Gate(make_app(held, has_key=True), "secret", 'Basic realm="optimas watch"')
    right = base64.b64encode(b"me:secret").decode()
    answers = requests(
        application,
        ("GET", "/", {"host": "box.example"}),
        ("GET", "/", {"authorization": "Basic bWU6d3Jvbmc="}),
        ("GET", "/", {"authorization": "Basic not base64"}),
        ("GET", "/", {"authorization": f"Basic {right}", "host": "box.example"}),
        ("GET", "/", {"authorization": "Bearer secret"}),
    )
    assert [answer.status_code for answer in answers] == [401, 401, 401, 200, 200]
    assert answers[0].headers["www-authenticate"] == 'Basic realm="optimas watch"'


def test_all_browsers_share_one_look(held):
    told = Told(held, "server")

    async def read():
        readers = [told.events(lambda: False) for _ in range(5)]
        first = [await anext(reader) for reader in readers]
        assert told.readers == 5 and len(set(first)) == 1 and first[0].startswith('data: {"server": "server"')
        write_status(held, iteration=2)
        later = await anext(readers[0])  # the others do not read
        for reader in readers:
            await reader.aclose()
        return later

    began = time.monotonic()
    assert json.loads(asyncio.run(read()).removeprefix("data: "))["where"] == "rag:[own]: optimize 2/3, gate"
    assert told.readers == 0 and time.monotonic() - began < 60
