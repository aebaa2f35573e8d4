"""`alignkit models list | download | rm` of a running service."""

import json
from pathlib import Path

import pytest
from openai import OpenAI

from tests.cli.conftest import Run
from tests.server.support import BASE_MODEL, Running, create_job, write_adapter


@pytest.fixture
def tuned(service: Running, client: OpenAI, tmp_path: Path) -> str:
    """A fine-tuned model of the project."""
    job = create_job(client)
    name = f"ft:{BASE_MODEL}:project::{job.id[-8:]}"
    path = str(write_adapter(tmp_path / "adapter"))
    service.ledger.add_model(job.id, name=name, base_model=BASE_MODEL, kind="adapter", path=path)
    service.ledger.transition(job.id, "succeeded", only_from=("queued",), fine_tuned_model=name)
    return name


def test_models_are_listed_of_the_machine_and_of_the_service(run: Run, tuned: str) -> None:
    assert run("models", "list").stdout == f"{BASE_MODEL}\n"
    assert run("models", "list", "--json").json == [BASE_MODEL]
    shown = run("models", "list", "--served").stdout
    assert tuned in shown
    assert "adapter" in shown
    found = run("models", "list", "--served", "--json").json
    assert [(model["id"], model["parent"]) for model in found] == [(BASE_MODEL, None), (tuned, BASE_MODEL)]


def test_a_model_is_downloaded_whole_or_not_at_all(run: Run, tuned: str, tmp_path: Path) -> None:
    done = run("models", "download", tuned)
    folder = Path(done.stdout.strip())
    assert folder.name == tuned.replace(":", "_"), done.stderr
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8
    assert (folder / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "adapter" / "adapter_model.safetensors"
    ).read_bytes()
    assert folder.stat().st_mode & 0o500 == 0o500
    assert "choose another with --to" in run("models", "download", tuned).stderr
    for name, words in ((BASE_MODEL, "only fine-tuned models can be downloaded"), ("ft:none", "ft:none")):
        refused = run("models", "download", name, "--to", "other")
        assert refused.returncode == 1
        assert words in refused.stderr
    assert list(Path().iterdir()) == [folder]


def test_models_are_deleted_after_asking(client: OpenAI, run: Run, tuned: str) -> None:
    assert "give --yes" in run("models", "rm", tuned).stderr
    assert "ft:none" in run("models", "rm", tuned, "ft:none", "--yes").stderr
    assert "only fine-tuned models can be deleted" in run("models", "rm", BASE_MODEL, "--yes").stderr
    assert tuned in {model.id for model in client.models.list()}
    assert run("models", "rm", tuned, "--yes").stdout == f"{tuned} is deleted\n"
    assert tuned not in {model.id for model in client.models.list()}
