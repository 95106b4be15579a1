"""A planted key in many situations: it is in no file of the run folder, and in nothing that is printed."""

import base64
import contextlib
import io
import json

import pytest
from api_servers import ApiServers
from paid_runs import paid_config, run
from served import serving_app
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from optimas_jax.core.schema import ConfigError, from_dict
from optimas_jax.llm.clients.remote import ServerConfig
from optimas_jax.report.commands import exit_code

pytestmark = pytest.mark.long

CORE = "sk-PLANTED1234567890abcdefPLANTED"
KEYS = {
    "plain": CORE,
    "line end": f"{CORE}\n",
    "CR LF": f"{CORE}\r\n",
    "spaces around": f"  {CORE} ",
    "tab inside": f"{CORE}\tmore",
    "line end inside": f"{CORE}\nsecond-line-of-the-key",
    "space inside": f"{CORE} more",
    "quotes": f"{CORE}'\"`",
    "backslash": f"{CORE}\\n\\",
    "markup": f"{CORE}[/red]<b>&amp;%20",
    "latin": f"{CORE}é",
    "letters beyond ASCII": f"{CORE}中文😀",
    "escape": f"{CORE}\x1b[31m",
}
SENDABLE = ("plain", "line end", "CR LF", "spaces around", "quotes", "backslash", "markup")


def said(body):
    """What servers say about a request that they do not like: its headers, in several forms."""
    authorization = body["authorization"]
    text = (
        f"you sent {authorization} and {json.dumps(authorization)} and {authorization!r} and {authorization.encode()!r}"
    )
    return "x" * 170 + text + "y" * 400 + text


def status(code):
    def answer(body):
        return JSONResponse({"error": {"message": said(body), "code": None, "type": "error"}}, code)

    return answer


ANSWERS = {
    **{f"status {code}": status(code) for code in (400, 401, 402, 403, 404, 413, 418, 422, 429, 500, 503)},
    "page": lambda body: HTMLResponse(f"<html>{said(body)}</html>"),
    "page with an error": lambda body: HTMLResponse(f"<html>{said(body)}</html>", 502),
    "text": lambda body: PlainTextResponse(said(body)),
    "error with status 200": lambda body: JSONResponse({"error": {"message": said(body)}}),
    "another schema": lambda body: JSONResponse({"result": said(body), said(body): 1}),
    "a number": lambda body: JSONResponse({"choices": [{"message": {"content": 5}, "why": said(body)}]}),
    "broken JSON": lambda body: Response('{"error": "' + said(body), media_type="application/json"),
    "a name of an error": lambda body: JSONResponse({"error": {"message": "no", "code": said(body)}}, 400),
    "a header": lambda body: JSONResponse({"error": {"message": "no"}}, 429, {"retry-after": "soon"}),
}


class Quoting(ApiServers):
    """A server that quotes what it was sent."""

    def __init__(self, answer):
        super().__init__()
        inner = self.app

        async def app(scope, receive, send):
            if scope["type"] != "http":
                return await inner(scope, receive, send)
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            sent = {"authorization": headers.get("authorization", headers.get("x-api-key", ""))}
            return await answer(sent)(scope, receive, send)

        self.app = app


def command(config, folder):
    """The exit code of a run, and what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = exit_code(lambda: run(config, folder) and None)
    return code, printed.getvalue()


def leaks(folder, printed):
    """Where the key is: names of files, and lines that were printed."""
    forms = [CORE.encode(), base64.b64encode(CORE.encode())[:-2], CORE[:20].encode()]
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = [str(path) for path in files if any(form in path.read_bytes() for form in forms)]
    return found + [line for line in printed.splitlines() if any(form in line.encode() for form in forms)]


CASES = [
    (key, name)
    for key in SENDABLE
    for name in ANSWERS
    if key in ("plain", "line end") or name.endswith(("1", "e", "3"))
]
CASES += [(key, "status 401") for key in KEYS if key not in SENDABLE]


def test_there_are_enough_situations():
    assert len(CASES) >= 60


@pytest.mark.parametrize(("key", "name"), CASES)
def test_a_key_is_in_no_file_and_in_no_line(key, name, tmp_path, monkeypatch):
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(variable, KEYS[key])
    with serving_app(Quoting(ANSWERS[name]).app, log_level="critical") as address:
        config = paid_config(address)
        code, printed = command(config, tmp_path)
    assert code == 1 and printed.count("error: ") == 1 and len(printed.splitlines()) < 12
    assert not leaks(tmp_path, printed)


def test_an_answer_that_quotes_a_key_stays_on_the_tape_and_is_masked_elsewhere(tmp_path, monkeypatch):
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(variable, CORE)
    servers = ApiServers(lambda prompt, seed: f"the key is {CORE}")
    with serving_app(servers.app, log_level="critical") as address:
        code, printed = command(paid_config(address), tmp_path)
    assert code == 0
    found = leaks(tmp_path, printed)
    assert {path.rpartition("/")[2].partition("-")[0] for path in found} <= {"tape.sqlite", "data"} and found
    assert (tmp_path / "printed.txt").read_text().count("quotes a key") == 2  # once for each server


@pytest.mark.parametrize("place", ["/{}", "/v1?key={}", "/v1#{}", "/v1/{}/chat"])
def test_an_address_with_a_key_is_refused(place, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", CORE)
    with pytest.raises(ConfigError) as raised:
        from_dict(ServerConfig, {"base_url": f"https://host{place.format(CORE)}"})
    assert CORE not in str(raised.value)
