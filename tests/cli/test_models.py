"""`alignkit models list | download | rm` of a running service."""

import json
import socket
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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hosts whose address was looked up, the hub's among them; there is none."""
    hosts: list[str] = []

    def look_up(host: str, *_: object, **__: object) -> None:
        hosts.append(host)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return hosts


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("prune", "tiny-lama", "half"),
            f"({BASE_MODEL}) or a model folder, found 'tiny-lama'; did you mean {BASE_MODEL}?",
        ),
        (("prune", "org/tiny", "half"), f"({BASE_MODEL}) or a model folder, found 'org/tiny'"),
        (("prune", ".", "half"), "or a model folder, found '.'"),
        (
            ("import", "smollm2-135m-instuct"),
            "found 'smollm2-135m-instuct'; did you mean smollm2-135m-instruct?",
        ),
        (("import", "./nothing"), "found './nothing': there is no such folder"),
    ],
    ids=str,
)
def test_an_unknown_model_is_refused_without_asking_the_hub(
    run: Run, asked: list[str], arguments: tuple[str, ...], words: str
) -> None:
    done = run("models", *arguments)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert asked == []


def test_the_hub_is_asked_for_what_may_be_there(run: Run, asked: list[str]) -> None:
    done = run("models", "import", "nobody/nothing")
    assert "could not be downloaded from the hub" in done.stderr
    assert set(asked) == {"huggingface.co"}


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
