"""Pushing to the hub, against a stand-in that answers as the hub does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from alignkit.errors import ExportError
from alignkit.export import Repository, prepare, push
from tests.export.stand_in_hub import SECRET, Hub, running_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(monkeypatch) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("---\ntags: [alignkit]\n---\n# model\n")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_folder_becomes_one_commit_in_a_private_repository(hub: Hub, folder: Path) -> None:
    assert push(folder, Repository("me/model")) == f"{hub.address}/me/model"
    assert hub.created["visibility"] == "private"
    assert hub.created["name"] == "model"
    (commit,) = hub.commits
    assert sorted(line["value"]["path"] for line in commit if line["key"] == "file") == [
        "README.md",
        "config.json",
    ]


def test_a_repository_with_files_is_left_alone_without_force(hub: Hub, folder: Path) -> None:
    hub.files = [".gitattributes", "model.safetensors"]
    with pytest.raises(
        ExportError, match=r"already has 1 files, such as model.safetensors: replace them with --force"
    ):
        push(folder, Repository("me/model"))
    assert not hub.commits
    push(folder, Repository("me/model", private=False), force=True)
    (commit,) = hub.commits
    assert {"key": "deletedFile", "value": {"path": "model.safetensors"}} in commit


def test_what_would_refuse_a_push_is_found_before_anything_is_exported(hub: Hub) -> None:
    prepare(Repository("me/model"))
    hub.files = ["model.safetensors"]
    with pytest.raises(ExportError, match="already has 1 files"):
        prepare(Repository("me/model"))
    prepare(Repository("me/model"), force=True)
    hub.status = 401
    with pytest.raises(ExportError, match="hf auth login"):
        prepare(Repository("me/model"))
    assert not hub.commits


@pytest.mark.parametrize(
    ("status", "why"), [(401, "hf auth login"), (403, "write access"), (500, "try again later")]
)
def test_a_refusal_is_one_sentence_without_the_token(hub: Hub, folder: Path, status: int, why: str) -> None:
    hub.status = status
    with pytest.raises(ExportError, match=f"status {status}: .*{why}") as error:
        push(folder, Repository("me/model"))
    assert SECRET not in str(error.value)


def test_a_name_that_no_repository_can_have_is_refused(folder: Path) -> None:
    with pytest.raises(ExportError, match="cannot push to"):
        push(folder, Repository("no such--name/at all"))
