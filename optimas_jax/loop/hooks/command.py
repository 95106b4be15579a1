"""Events of a command for callbacks: its start, and its end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from optimas_jax.core.folder.events import Begin, End
from optimas_jax.core.folder.files import DAMAGED, json_line
from optimas_jax.core.schema import to_dict
from optimas_jax.core.usage import Usage
from optimas_jax.loop.context import Run


@contextlib.contextmanager
def telling(run: Run, stage: str) -> Iterator[None]:
    """Sends ``Begin`` to the callbacks at the start of the block, and ``End`` at its end, also after an error."""
    host, config = run.host, run.config
    host.folder.tell(
        Begin(
            folder=str(host.folder.path),
            benchmark=config.benchmark,
            variant=config.variant,
            seed=config.seed,
            stage=stage,
            components=host.components,
            examples={split: len(examples) for split, examples in host.splits.items()},
            settings=json.loads(json_line(to_dict(config))),  # without secrets
            resumed=bool(host.folder.events),
            earlier=sum(DAMAGED not in event for event in host.folder.events),
        )
    )
    try:
        yield
    except BaseException as error:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        host.folder.tell(End(finished=False, reason=text, spent=_spent(run)))
        raise
    host.folder.tell(End(finished=True, reason="", spent=_spent(run)))


def _spent(run: Run) -> dict[str, Usage]:
    used = run.host.ledger.bill.used
    return {step: sum(roles.values(), Usage()) for step, roles in used.items()}
