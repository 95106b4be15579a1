"""Local rewards that another machine computes (``server.reward_app``)."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from optimas_jax.core.types import StopRun, thaw

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
        """Raises ``StopRun`` if the server does not answer, or refuses."""
        body = {"component": component, "inputs": thaw(inputs), "outputs": thaw([*outputs]), "reward": reward}
        return (await asyncio.to_thread(self._post, body))["scores"]

    def _post(self, body: Mapping[str, Any]) -> Any:
        url, data = f"{self.address.rstrip('/')}/score", json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310 (checked)
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise StopRun(f"{url} refuses to score: {error.read().decode(errors='replace')[:500]}") from None
        except (OSError, ValueError) as error:
            raise StopRun(f"no local rewards at {url} ({error}): launch/serve.py --reward=... serves them") from error


def remote_scorer(address: str) -> RemoteScorer:
    """Raises ``ValueError`` for what is no address."""
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"reward is {address!r}, expected the address of a server, such as http://host:8000")
    return RemoteScorer(address)
