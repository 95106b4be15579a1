"""The local rewards of a run as sequence classifiers, one folder for each component."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimas_jax.core.component import Component
from optimas_jax.core.folder.files import FolderError
from optimas_jax.core.schema import from_dict
from optimas_jax.core.system import System
from optimas_jax.llm.render import field_label, render_reward_task
from optimas_jax.loop.journal import CHECKPOINTS, REWARDS, reward_name
from optimas_jax.programs.program import Program
from optimas_jax.rewards.config import RewardConfig
from optimas_jax.saved.export.prompts import ExportError
from optimas_jax.saved.folder import Saved
from optimas_jax.saved.models import make_engines
from optimas_jax.saved.rewards import trained_components
from optimas_jax.saved.system import build

_CARD = """---
library_name: transformers
pipeline_tag: text-classification
---

# Local reward of {name}

The logit of the one label is the local reward of an output of the component `{name}`: of two outputs on the same input,
the one with the higher score is expected to lead the whole system to the higher score. Scores of different inputs are
not to be compared.

```python
from transformers import pipeline

score = pipeline("text-classification", model=FOLDER, function_to_apply="none")

def text(inputs, candidate):
{template}

score(text({{...}}, {{...}}))[0]["score"]
```

The tokenizer puts the end of a text behind every text; special tokens in texts are read as characters. Texts of more
than {tokens} tokens are shortened in training, which this folder does not do. Backbone: `{model}`; local reward
`{reward}` of the run; weights in float32, adapters merged in.
"""


def export_rewards(saved: Saved, out: Path, program: Program | System | Callable[..., Any] | None = None) -> list[Path]:
    """Writes ``out/COMPONENT`` for each component whose local reward was trained.

    Raises:
      ExportError: the heads are fitted, or ``out`` exists.
      WeightsError: transformers has no classifier for the backbone.
      NoLocalReward: the run trained none.
    """
    if out.exists():
        raise ExportError(f"{out} exists already: name another folder (--out)")
    system = build(saved, program).system
    names = trained_components(saved, system)
    config = from_dict(RewardConfig, saved.settings["reward"], "config.reward")
    reward = reward_name(saved.run, saved.configuration)
    if config.heads == "fitted":
        raise ExportError(
            f"the heads of {saved.name} are fitted, and add the likelihood of the whole output to their score, which "
            "no classifier of a last token does. Heads that are trained can be exported: copy its groups/offline into "
            "a new folder, and run --stage=train there with --config.reward.heads=trained"
        )
    from optimas_jax.checkpoints.classifier import classifier_class, write_classifier
    from optimas_jax.checkpoints.sources import resolve
    from optimas_jax.checkpoints.tokenizer import load_tokenizer
    from optimas_jax.checkpoints.weights import load_config, load_params

    source = resolve(config.model)
    backbone = load_config(source)
    classifier_class(backbone)
    params, heads = _merged(saved, config, system, reward, lambda compute: load_params(source, backbone, compute))
    tokenizer = load_tokenizer(source, backbone.vocab_size)
    folders = []
    for name in names:
        head, card = heads[:, system.tunable.index(name)], card_of(system.by_name[name], config, reward)
        write_classifier(out / name, source, backbone, tokenizer, params, head, card)
        folders.append(out / name)
    return folders


def _merged(saved: Saved, config: RewardConfig, system: System, reward: str, load: Callable[[Any], Any]) -> Any:
    """Weights of the backbone with the adapters merged in, and the heads [D, C], float32."""
    import jax.numpy as jnp
    import numpy as np

    from optimas_jax.learn.store import CheckpointStore
    from optimas_jax.models.lora import merge_lora
    from optimas_jax.parallel.platform import Compute
    from optimas_jax.report.console import ConsoleProgress
    from optimas_jax.rewards.batches import RewardBatches

    in_run = saved.run / CHECKPOINTS
    store = CheckpointStore(in_run if in_run.is_dir() else saved.folder / REWARDS)
    if store.metadata(reward) is None:
        raise FolderError(f"no local reward {reward!r} in {store.folder}: export from the folder of the run")
    batches = RewardBatches(config, system.tunable, make_engines(), ConsoleProgress(quiet=True))
    trained = store.load(reward, batches.shapes)
    params = load(Compute(jnp.dtype(jnp.float32), "tiled"))
    merged = merge_lora(params, trained["lora"], config.lora.scale)
    return merged, np.asarray(trained["head"]["kernel"], np.float32)


def card_of(component: Component, config: RewardConfig, reward: str) -> str:
    """The card of a component's classifier, with a function that builds its texts."""
    task = render_reward_task(component.description)
    return _CARD.format(
        name=component.name,
        template=text_function(task, component.inputs, component.outputs),
        tokens=config.batch.group_tokens,
        model=config.model,
        reward=reward,
    )


def text_function(task: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> str:
    """The body of a Python function that builds the text of inputs and a candidate, both dicts of fields."""
    named = [("inputs", name) for name in inputs] + [("candidate", name) for name in outputs]
    pairs = [f"({field_label(name)!r}, {side}.get({name!r}, ''))" for side, name in named]
    lines = [
        "import json",
        "def shown(value):  # as the local reward reads fields: texts stripped, lists one item a line, objects as JSON",
        "    if isinstance(value, str):",
        "        return value.strip()",
        "    if isinstance(value, dict):",
        "        return json.dumps(value, ensure_ascii=False)",
        "    return '\\n'.join(map(shown, value)) if isinstance(value, (list, tuple)) else str(value)",
        f"fields = [{', '.join(pairs)}]",
        f"return {task!r} + '\\n'.join(f'{{label}}: {{shown(value)}}' for label, value in fields)",
    ]
    return "\n".join(f"    {line}" for line in lines)
