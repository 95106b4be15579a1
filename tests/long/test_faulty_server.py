"""A server that fails under 64 calls: one command ends with the scores of the faultless run, soon, and says little."""

import json
import random
import time

import pytest
from api_servers import ApiServers, success
from served import serving_app
from smoke_command import finish, of_server, outcome, start
from starlette.responses import JSONResponse, StreamingResponse

pytestmark = pytest.mark.long

STALL = 10.0  # seconds


def cut(kind, body):
    whole = json.dumps(success(kind, body, "words that are cut", "")).encode()
    return StreamingResponse(iter([whole[: len(whole) // 2]]), headers={"content-length": str(len(whole))})


FAULTS = {
    "429": lambda kind, body: JSONResponse({"error": {"message": "slow down"}}, 429, {"retry-after": "1"}),
    "500": lambda kind, body: JSONResponse({"error": {"message": "oops"}}, 500),
    "reset": lambda kind, body: StreamingResponse(iter([b""]), headers={"content-length": "1000"}),
    "stall": None,
    "truncated": cut,
    "schema": lambda kind, body: JSONResponse({"object": "error", "result": "words"}),
    "error with status 200": lambda kind, body: JSONResponse({"error": {"message": "busy", "code": 503}}),
    "no usage": None,
    "parts": None,
}


class Faulty:
    """Draws a fault for every request: one of ``kinds``, each with probability ``rate``."""

    def __init__(self, servers, kinds, rate):
        self._servers, self._kinds, self._rate, self._rng = servers, kinds, rate, random.Random(str(kinds))
        self.drawn = dict.fromkeys(kinds, 0)

    def __call__(self, kind, body):
        draw = self._rng.random() / self._rate
        if draw >= len(self._kinds):
            return None
        name = self._kinds[int(draw)]
        self.drawn[name] += 1
        if FAULTS[name] is not None:
            return FAULTS[name](kind, body)
        return self._servers.answer_with(kind, body, name)


@pytest.fixture(scope="module")
def faultless(tmp_path_factory):
    """What a run without faults leaves, and its seconds; the second of two, whose programs are compiled."""
    folder, servers = tmp_path_factory.mktemp("faultless"), ApiServers()
    with serving_app(servers.app, log_level="critical") as address:
        finish(start(folder / "first", *of_server(address)))
        began = time.monotonic()
        code, output = finish(start(folder / "second", *of_server(address)))
    assert code == 0, output
    return outcome(folder / "second"), time.monotonic() - began


@pytest.mark.parametrize("kinds", [(kind,) for kind in FAULTS] + [tuple(FAULTS)], ids="+".join)
def test_a_faulty_server_changes_nothing_but_the_time(kinds, tmp_path, faultless):
    expected, seconds = faultless
    servers = ApiServers()
    servers.stall = STALL
    servers.odd = faulty = Faulty(servers, kinds, 0.1 if len(kinds) == 1 else 0.02)
    with serving_app(servers.app, log_level="critical") as address:
        began = time.monotonic()
        code, output = finish(start(tmp_path, *of_server(address)))
        took = time.monotonic() - began
    assert code == 0 and all(faulty.drawn.values()), output
    found = outcome(tmp_path)
    for field in ("baseline", "optimized", "gain", "accepted", "confirmed"):
        assert found["results"][field] == expected["results"][field]
    stalls = faulty.drawn.get("stall", 0)
    print(f"{kinds}: {took / seconds:.1f} times, {sum(faulty.drawn.values())} faults of {len(servers.bodies)} requests")
    assert took <= 5 * seconds + stalls * STALL
    told = [
        line for line in output.splitlines() if "server" in line.lower() or "127.0.0.1" in line or "waiting" in line
    ]
    assert len(told) < 20 and "Traceback" not in output
