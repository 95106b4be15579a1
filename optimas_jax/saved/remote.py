"""Local rewards that another machine computes (``server.reward_app``)."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import math
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.text.json_text import parse_json
from optimas_jax.core.types import StopRun, thaw

KEY = "OPTIMAS_REWARD_KEY"  # environment variable with the key that a server with --api-key-env expects
_SECONDS = 300.0  # until an answer; the first one loads the reward model


@dataclasses.dataclass(frozen=True)
class RemoteScorer:
    """``core.selection.Scorer`` over HTTP.

    Attributes:
      address: of the server, such as ``http://host:8000``.
    """

    address: str

    async def scores(
        self,
        component: str,
        example_id: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[Mapping[str, Any]],
        reward: str,
    ) -> Sequence[float]:
        """Raises ``StopRun`` if the server does not answer, refuses, or answers with something else than scores."""
        body = {"component": component, "inputs": thaw(inputs), "outputs": thaw([*outputs]), "reward": reward}
        answer = await asyncio.to_thread(self._post, body)
        scores: Any = answer.get("scores") if isinstance(answer, dict) else None
        is_complete = isinstance(scores, list) and len(scores) == len(outputs)
        if not is_complete or not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
            raise StopRun(
                f"{self._url} answers {str(answer)[:200]}, expected scores, {len(outputs)} finite numbers: "
                "launch/serve.py --reward=... serves them"
            )
        return scores

    @property
    def _url(self) -> str:
        return f"{self.address.rstrip('/')}/score"

    def _post(self, body: Mapping[str, Any]) -> Any:
        url, data = self._url, json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        if key := os.environ.get(KEY, "").strip():
            headers["authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url, data, headers)  # noqa: S310 (checked)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
                return parse_json(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise StopRun(f"{url} refuses to score: {error.read().decode(errors='replace')[:500]}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise StopRun(f"no local rewards at {url} ({error}): launch/serve.py --reward=... serves them") from error


def remote_scorer(address: str) -> RemoteScorer:
    """A scorer at an address; raises ``ValueError`` for a text that is no address."""
    try:
        parts = urllib.parse.urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and " " not in address and parts.port != 0
    except ValueError:  # a port that is no number
        valid = False
    if not valid:
        raise ValueError(f"reward is {address!r}, expected the address of a server, such as http://host:8000")
    return RemoteScorer(address)
