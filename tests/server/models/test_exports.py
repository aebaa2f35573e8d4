"""Archives of a model in other forms: made in a child, counted while they are downloaded, gone afterwards."""

import io
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
import yaml
from gguf import GGUFReader
from openai import NotFoundError
from sqlalchemy import update
from transformers import AutoTokenizer

from alignkit.cli import exports as command
from alignkit.errors import AlignkitError
from alignkit.export import FORMS
from alignkit.export.gguf import STORED
from alignkit.models.origin import keep_origin
from alignkit_server.models.schemas import ArchiveOptions
from alignkit_server.tables import Job, Project
from tests.export.stand_in_hub import running_hub
from tests.server.disk import mounted
from tests.server.support import BASE_MODEL, Running, create_job, wait_until
from tests.tiny import build_tiny_adapter, build_tiny_model

BASE = "exportable"


class Tuned:
    """A fine-tuned model of a project of its own, over a base that was imported from the hub."""

    def __init__(self, service: Running, folder: Path) -> None:
        self.service = service
        self.base = build_tiny_model(service.settings.models_dir / BASE)
        keep_origin(self.base, "org/exportable")
        self.key = service.new_key("exports")
        with service.client(self.key) as client:
            self.job_id = create_job(client).id
        self.name = f"ft:{BASE}:exports::{self.job_id[-8:]}"
        adapter = build_tiny_adapter(self.base, folder / "adapter")
        service.ledger.add_model(
            self.job_id, name=self.name, base_model=BASE, kind="adapter", path=str(adapter)
        )
        service.ledger.transition(self.job_id, "succeeded", only_from=("queued",))

    def path(self, **wanted: str) -> str:
        """The path of its archive."""
        return f"/v1/models/{self.name}/archive?" + "&".join(
            f"{key}={value}" for key, value in wanted.items()
        )

    def http(self) -> httpx.Client:
        """A client that waits as long as a child may take to start on a busy machine."""
        client = self.service.http(self.key)
        client.timeout = httpx.Timeout(600.0)
        return client

    def disk_bytes(self) -> int:
        """What its job counts for."""
        with self.service.services.database.reading() as session:
            return session.query(Job).filter(Job.id == self.job_id).one().disk_bytes or 0

    def leftovers(self) -> list[Path]:
        """What is in the service's folder of exports."""
        return list(self.service.settings.exports_dir.iterdir())


@pytest.fixture(scope="module")
def tuned(service: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuned]:
    made = Tuned(service, tmp_path_factory.mktemp("tuned"))
    yield made
    shutil.rmtree(made.base)


def files_in(content: bytes) -> dict[str, bytes]:
    """The files of an archive, by name."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {Path(member.name).name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def test_the_forms_and_storages_are_those_of_the_library() -> None:
    fields = ArchiveOptions.model_fields
    assert set(get_args(get_args(fields["form"].annotation)[0])) == set(FORMS)
    assert set(get_args(fields["quantize"].annotation)) == {"auto", *STORED}


def test_an_adapters_archive_is_complete_and_names_the_base_by_the_hub(tuned: Tuned) -> None:
    with tuned.http() as http:
        files = files_in(http.get(tuned.path()).content)
    assert {"tokenizer.json", "chat_template.jinja", "README.md", "generation_config.json"} <= files.keys()
    assert b'"base_model_name_or_path": "org/exportable"' in files["adapter_config.json"]
    assert files["tokenizer.json"] == (tuned.base / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_a_form_is_made_counted_streamed_and_removed(tuned: Tuned, tmp_path: Path) -> None:
    before = tuned.disk_bytes()
    with (
        tuned.http() as http,
        http.stream("GET", tuned.path(form="gguf", quantize="q8_0")) as answer,
    ):
        assert answer.status_code == 200
        assert len(tuned.leftovers()) == 1
        assert tuned.disk_bytes() > before + 100_000
        files = files_in(answer.read())
    wait_until(lambda: not tuned.leftovers() and tuned.disk_bytes() < before + 100_000)
    (file,) = (name for name in files if name.endswith(".gguf"))
    (tmp_path / file).write_bytes(files[file])
    reader = GGUFReader(tmp_path / file)
    assert reader.fields["general.base_model.0.name"].contents() == "org/exportable"
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32", "Q8_0"}
    assert str(tuned.service.settings.root) not in str(files["README.md"])


@pytest.mark.slow
def test_a_form_that_was_made_for_a_link_is_downloaded_once_without_a_key(
    tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before = f"/v1/models/{tuned.name}/archive", tuned.disk_bytes()
    with tuned.http() as http:
        links = [http.post(path, json={"form": "merged"}).json() for _ in range(2)]
    assert len(tuned.leftovers()) == 2
    answer = httpx.get(f"{tuned.service.url}{path}", params={"link": links[0]["link"]}, trust_env=False)
    assert len(answer.content) == links[0]["bytes"]
    assert {"model.safetensors", "config.json"} <= files_in(answer.content).keys()
    wait_until(lambda: len(tuned.leftovers()) == 1)
    again = httpx.get(f"{tuned.service.url}{path}", params={"link": links[0]["link"]}, trust_env=False)
    assert (again.status_code, again.json()["error"]["code"]) == (404, "link_used")
    tuned.service.services.sweeper.sweep()
    assert len(tuned.leftovers()) == 1
    monkeypatch.setattr("alignkit_server.storage.leftovers.KEPT_SECONDS", -1.0)
    tuned.service.services.sweeper.sweep()
    assert not tuned.leftovers()
    assert tuned.disk_bytes() < before + 100_000


@pytest.mark.slow
def test_a_project_without_space_gets_no_form_that_has_to_be_made(tuned: Tuned) -> None:
    database = tuned.service.services.database
    for limits, status in (({"disk_bytes": 1}, 429), ({}, 200)):
        with database.writing() as session:
            session.execute(update(Project).where(Project.name == "exports").values(limits=limits))
        with tuned.http() as http:
            assert http.get(tuned.path(form="merged")).status_code == status
            assert http.get(tuned.path(form="adapter")).status_code == 200


@contextmanager
def small_disk_for_exports(service: Running, folder: Path) -> Iterator[None]:
    """The service's folder of exports is on a disk of 1 MB meanwhile, nearly all taken."""
    exports = service.settings.exports_dir
    with mounted(folder, 1) as small:
        (small / "somebody-else-s").write_bytes(bytes(900_000))
        exports.rmdir()
        exports.symlink_to(small)
        try:
            yield
            assert [path.name for path in small.iterdir()] == ["somebody-else-s"]
        finally:
            exports.unlink()
            exports.mkdir(mode=0o700)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_a_disk_that_fills_during_an_export_is_said_and_nothing_is_left(
    tuned: Tuned, tmp_path: Path, form: str
) -> None:
    tuned.service.services.runs.measure(tuned.job_id)
    before = tuned.disk_bytes()
    with small_disk_for_exports(tuned.service, tmp_path / "small"), tuned.http() as http:
        answer = http.get(tuned.path(form=form))
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")
    assert tuned.disk_bytes() == before


@pytest.mark.slow
def test_the_command_downloads_a_merged_model(
    tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_BASE_URL", f"{tuned.service.url}/v1")
    monkeypatch.setenv("ALIGNKIT_API_KEY", tuned.key)
    target = tmp_path / "out"
    command.export_model(tuned.name, "merged", target)
    assert {"model.safetensors", "config.json", "README.md"} <= {path.name for path in target.iterdir()}
    assert AutoTokenizer.from_pretrained(target).chat_template
    with pytest.raises(AlignkitError, match="already exists"):
        command.export_model(tuned.name, "merged", target)
    with pytest.raises(AlignkitError, match="does not exist"):
        command.export_model("ft:none", "merged", tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("form", "relation", "library", "weights"),
    [
        ("adapter", "adapter", "peft", "adapter_model.safetensors"),
        pytest.param("merged", "finetune", "transformers", "model.safetensors", marks=pytest.mark.slow),
    ],
)
def test_the_command_pushes_a_model_of_the_service_with_its_card(
    tuned: Tuned,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: str,
    relation: str,
    library: str,
    weights: str,
) -> None:
    monkeypatch.setenv("ALIGNKIT_BASE_URL", f"{tuned.service.url}/v1")
    monkeypatch.setenv("ALIGNKIT_API_KEY", tuned.key)
    with running_hub(monkeypatch) as hub:
        command.push_model(tuned.name, "me/model", form)
        assert capsys.readouterr().out.endswith("/me/model\n")
        files = hub.pushed()
        hub.files = [weights]
        with pytest.raises(AlignkitError, match="already has 1 files"):
            command.push_model(tuned.name, "me/model", form)
        hub.created.clear()
        with pytest.raises(NotFoundError, match="does not exist"):
            command.push_model("ft:none", "me/model", form, force=True)
        with pytest.raises(AlignkitError, match="found 'mergd'; did you mean merged"):
            command.push_model(tuned.name, "me/model", "mergd", force=True)
        assert hub.created == {}
        assert len(hub.commits) == 1
    assert {weights, "tokenizer.json", "README.md"} <= files.keys()
    card = files["README.md"].decode()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["base_model"] == "org/exportable"
    assert (metadata["base_model_relation"], metadata["library_name"]) == (relation, library)
    assert not any(str(tuned.service.settings.root).encode() in content for content in files.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "wanted", "message"),
    [
        ("gpt2", {"form": "gguf"}, "Gpt2 models cannot be written as GGUF here: expected one of llama"),
        (BASE_MODEL, {"form": "merged"}, f"Base model: cannot load {BASE_MODEL}"),
    ],
)
def test_a_model_that_has_not_the_form_is_refused_without_a_path(
    tuned: Tuned, tmp_path: Path, base: str, wanted: dict[str, Any], message: str
) -> None:
    folder = tuned.service.settings.models_dir / base
    made = base == "gpt2"
    if made:
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "gpt2"}')
    name = f"ft:{base}:exports::{tmp_path.name[:8]}"
    adapter = build_tiny_adapter(tuned.base, tmp_path / "adapter")
    tuned.service.ledger.add_model(
        tuned.job_id, name=name, base_model=base, kind="adapter", path=str(adapter)
    )
    with tuned.http() as http:
        answer = http.get(tuned.path(**wanted).replace(tuned.name, name))
    if made:
        shutil.rmtree(folder)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)
    assert str(tuned.service.settings.root) not in answer.text
    assert not tuned.leftovers()
