"""Groups in the layout of the hub, in folders; nothing is uploaded."""

import dataclasses
import json
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from systems import group

from optimas_jax.rewards.data import GroupsError, to_preferences
from optimas_jax.rewards.hub import pull_groups, push_groups, write_layout

GROUPS = [
    group(({"hint": "Lima"}, 1.0), ({"hint": "où?"}, 0.25), ({"hint": ""}, 0.0), component="hint"),
    group(({"k": [1]}, 0.0), ({"k": [2, 3]}, 1.0), component="retriever"),
    group(({"k": [1]}, 0.5), ({"k": [4]}, 0.5), component="retriever", name="tied"),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_groups_come_back_whole_and_their_pairs_are_what_load_dataset_gives(tmp_path):
    write_layout(GROUPS, tmp_path / "set")
    assert pull_groups(str(tmp_path / "set")) == GROUPS
    pairs = datasets.load_dataset(str(tmp_path / "set"))
    assert {name: pairs[name].to_list() for name in pairs} == to_preferences(GROUPS)


def test_components_of_any_name_are_shared(tmp_path):
    groups = [dataclasses.replace(GROUPS[0], component="answer-generator", configuration="abc")]
    write_layout(groups, tmp_path / "set")
    assert pull_groups(str(tmp_path / "set")) == groups
    assert list(datasets.load_dataset(str(tmp_path / "set"))) == ["answer_generator"]
    with pytest.raises(GroupsError, match="differ only in signs"):
        write_layout([*groups, dataclasses.replace(GROUPS[0], component="answer generator")], tmp_path / "two")


def published(folder, **changes):
    """As ``DatasetDict.push_to_hub`` lays a published set out: a Parquet file per component, named by its split."""
    row = {
        "context": json.dumps({"other": {"input": {"a": 1}, "output": {}}, "hint": {"input": {"passages": "p"}}}),
        "response_chosen": '{"hint": "good"}',
        "response_rejected": '{"hint": "bad"}',
        "score_chosen": 1.0,
        "score_rejected": 0.5,
        "info_chosen": "null",
        "info_rejected": "[]",
        "variable_chosen": '"none"',
        "variable_rejected": '"prompt"',
    }
    file = folder / "data" / "hint-00000-of-00001.parquet"
    datasets.Dataset.from_list([{**row, **changes}]).to_parquet(str(file))
    configs = {"configs": [{"config_name": "default", "data_files": [{"split": "hint", "path": "data/hint-*"}]}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(configs)}\n---\n", encoding="utf-8")
    return str(folder)


def test_a_published_preference_set_loads_as_it_is(tmp_path):
    [group] = pull_groups(published(tmp_path / "theirs"))
    assert (group.component, group.inputs) == ("hint", {"passages": "p"})
    assert [(one.outputs["hint"], one.reward) for one in group.candidates] == [("good", 1.0), ("bad", 0.5)]


def test_what_is_no_preference_data_says_so(tmp_path):
    with pytest.raises(GroupsError, match="no preference data: row 0 of 'hint'"):
        pull_groups(published(tmp_path / "theirs", context="{}"))
    with pytest.raises(GroupsError, match=r"could not read groups from .*nowhere"):
        pull_groups(str(tmp_path / "nowhere" / "at" / "all"))
    with pytest.raises(GroupsError, match="nothing to share"):
        write_layout(GROUPS[2:], tmp_path / "set")


def test_a_push_is_private_unless_asked(monkeypatch):
    calls = []

    def create(self, name, **options):
        calls.append((name, options))
        return f"https://hub/{name}"

    def upload(self, *, repo_id, repo_type, folder_path):
        calls.append((repo_id, {p.relative_to(folder_path).as_posix() for p in Path(folder_path).rglob("*.*")}))

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert push_groups(GROUPS, "me/mine") == "https://hub/me/mine"
    assert calls == [
        ("me/mine", {"repo_type": "dataset", "private": True, "exist_ok": True}),
        ("me/mine", {"README.md", "data/hint.parquet", "data/retriever.parquet", "groups/train.parquet"}),
    ]

    def refuse(self, name, **options):
        raise OSError("401")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(GroupsError, match=r"could not push to 'me/mine' .*401.*HF_TOKEN"):
        push_groups(GROUPS, "me/mine")
