"""A reward head as a Hugging Face sequence classifier: the backbone with the adapters merged in, and one label.

Its logit at the last token of a text is the local reward. The tokenizer appends that token, the model's end-of-sequence
token, to every text, and reads special tokens in texts as characters, as ``checkpoints.tokenizer`` does.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from optimas_jax.checkpoints.export import config_json
from optimas_jax.checkpoints.sources import ModelSource, WeightsError
from optimas_jax.checkpoints.tokenizer import Tokenizer
from optimas_jax.checkpoints.weights import hf_name
from optimas_jax.models.config import BackboneConfig
from optimas_jax.models.lora import Params

LABEL = "local_reward"
_CLASSES = {
    "llama": "LlamaForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
    "smollm3": "SmolLM3ForSequenceClassification",
    "gemma3_text": "Gemma3TextForSequenceClassification",
}


def classifier_class(config: BackboneConfig) -> str:
    """The class of transformers that classifies sequences with a backbone.

    Raises:
      WeightsError: transformers has no such class.
    """
    if config.architecture not in _CLASSES:
        raise WeightsError(
            f"transformers has no sequence classifier for {config.architecture!r}, only for {', '.join(_CLASSES)} of "
            "the backbones here: the reward model cannot be exported"
        )
    return _CLASSES[config.architecture]


def write_classifier(
    folder: Path,
    source: ModelSource,
    config: BackboneConfig,
    tokenizer: Tokenizer,
    params: Params,
    head: np.ndarray,
    card: str,
) -> None:
    """Writes config, weights (float32), tokenizer and a card into a new folder.

    Args:
      params: of the backbone, adapters merged in; parameters of a separate output layer are left out.
      head: [D] weights of the label.

    Raises:
      WeightsError: as ``classifier_class``.
    """
    end = tokenizer.eos_ids[0]
    pad = _pad_id(tokenizer, end)
    settings = {
        **config_json(source, config),
        "architectures": [classifier_class(config)],
        "num_labels": 1,
        "id2label": {"0": LABEL},
        "label2id": {LABEL: 0},
        "problem_type": "regression",
        "pad_token_id": pad,
        "eos_token_id": end,
    }
    tensors = {"score.weight": np.ascontiguousarray(head[None, :], np.float32)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = tuple(part.key for part in path)
        if keys[0] != "lm_head":
            lower = config.norms_less_one and keys[-1] == "scale"
            tensors[hf_name(keys, config)] = np.asarray(leaf, np.float32) - np.float32(lower)
    folder.mkdir(parents=True)
    _ending(tokenizer, end, pad).save_pretrained(str(folder))
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text(card, encoding="utf-8")


def _pad_id(tokenizer: Tokenizer, end: int) -> int:
    """A token that fills rows. It is not the end-of-sequence token, behind which padding begins."""
    added = tokenizer.backend.backend_tokenizer.get_added_tokens_decoder()
    special = [index for index, token in sorted(added.items()) if token.special]
    candidates: list[Any] = [tokenizer.backend.pad_token_id, tokenizer.pad_id, tokenizer.backend.unk_token_id, *special]
    return next(index for index in [*candidates, 0, 1] if index is not None and index != end)


def _ending(tokenizer: Tokenizer, end: int, pad: int) -> PreTrainedTokenizerFast:
    """The tokenizer, which appends the end-of-sequence token to every text."""
    fast = copy.deepcopy(tokenizer.backend.backend_tokenizer)
    token, filler = fast.id_to_token(end), fast.id_to_token(pad)
    assert token is not None and filler is not None
    template = tokenizers.processors.TemplateProcessing(single=f"$A {token}", special_tokens=[(token, end)])
    fast.post_processor = template  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token=token, pad_token=filler, split_special_tokens=True, padding_side="right"
    )
