"""Groups on the Hugging Face hub: uploads and downloads them as a data set with two subsets.

``default`` has the pairs in the format of the original project (``rewards.data``): one split per component. This is the
subset that ``datasets.load_dataset(NAME)`` loads. ``groups`` has one row per group and is lossless. Data sets without
``groups``, such as the original project's, are read from their pairs.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import huggingface_hub

from optimas_jax.core.types import Group
from optimas_jax.rewards.data import GroupsError, from_preferences, group_from_row, group_to_row, to_preferences


def write_layout(groups: Sequence[Group], folder: Path) -> None:
    """Writes the files of a data set: Parquet files, and a README.md that lists them.

    Raises:
      GroupsError: if no group has two candidates with different rewards.
    """
    pairs = to_preferences(groups)
    if not pairs:
        raise GroupsError("no group has candidates with different rewards: there is nothing to share")
    splits = {component: re.sub(r"\W", "_", component) for component in pairs}  # splits allow no other characters
    if len(set(splits.values())) < len(splits):
        raise GroupsError(
            f"components {', '.join(map(repr, pairs))} differ only in signs that no split may have: rename"
        )
    datasets.disable_progress_bars()
    for component, rows in pairs.items():
        datasets.Dataset.from_list(rows).to_parquet(str(folder / "data" / f"{splits[component]}.parquet"))
    datasets.Dataset.from_list([group_to_row(group) for group in groups]).to_parquet(
        str(folder / "groups" / "train.parquet")
    )
    files = [{"split": split, "path": f"data/{split}.parquet"} for split in splits.values()]
    subsets = [
        {"config_name": "default", "default": True, "data_files": files},
        {"config_name": "groups", "data_files": [{"split": "train", "path": "groups/train.parquet"}]},
    ]
    head = json.dumps({"configs": subsets}, indent=1)  # JSON is YAML
    (folder / "README.md").write_text(
        f"---\n{head}\n---\n\n# Preference data of a compound AI system\n\nMade by optimas_jax. `default`: pairs, one "
        "split per component. `groups`: candidate outputs with the global reward of every rollout.\n",
        encoding="utf-8",
    )


def push_groups(groups: Sequence[Group], name: str, *, public: bool = False) -> str:
    """Uploads groups to the hub and returns the data set's address. It is private by default, because contexts contain
    the user's data. The token comes from ``hf auth login`` or ``HF_TOKEN``.

    Raises:
      GroupsError: if there is nothing to share, or the upload fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_layout(groups, Path(folder))
        try:
            api = huggingface_hub.HfApi()
            address = api.create_repo(name, repo_type="dataset", private=not public, exist_ok=True)
            api.upload_folder(repo_id=name, repo_type="dataset", folder_path=folder)
        except Exception as error:  # the hub client raises many kinds; all mean that the upload failed
            raise GroupsError(
                f"could not push to {name!r} on the hub ({type(error).__name__}: {error}): check the name and the "
                "token (hf auth login, or HF_TOKEN)"
            ) from error
    return str(address)


def pull_groups(name: str) -> list[Group]:
    """Downloads the groups of a data set on the hub, or reads them from a folder with the same layout.

    Raises:
      GroupsError: if the download fails, or the data set has no preference data.
    """
    datasets.disable_progress_bars()
    try:
        if "groups" in datasets.get_dataset_config_names(name):
            rows = datasets.load_dataset(name, "groups", split="train")
            return [group_from_row(row) for row in rows]  # type: ignore[arg-type]
        pairs = datasets.load_dataset(name)
    except Exception as error:  # the hub client and datasets raise many kinds
        raise GroupsError(
            f"could not read groups from {name!r} ({type(error).__name__}: {error}): give a data set ORG/NAME of the "
            "hub, or a folder with a copy of one"
        ) from error
    try:
        return from_preferences({str(component): rows.to_list() for component, rows in pairs.items()})
    except ValueError as error:
        raise GroupsError(f"{name!r} is no preference data: {error}") from error
