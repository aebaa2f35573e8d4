"""The token ids of a project's files: rendered by its first job on them, read by the others, and seen by no other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from openai import OpenAI

from alignkit.models.loading import load_tokenizer
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.trainers.building import datasets
from tests.server.support import BASE_MODEL, TINY_CONFIG, Running, create_job, method, pairs, serve, upload
from tests.tiny import build_tiny_tokenizer

STORED = "the token ids of its rows are those that an earlier run stored"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("home")) as running:
        folder = running.settings.models_dir / BASE_MODEL
        build_tiny_tokenizer(folder).save_pretrained(folder)
        (folder / "config.json").write_text(TINY_CONFIG)
        yield running


class Read(NamedTuple):
    """What a run has of its data."""

    rows: list[dict[str, Any]]
    told: list[str]
    store: Path


@pytest.fixture
def read(service: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function of a job's id that reads and renders its data as its run does."""

    def read(job_id: str) -> Read:
        recipe = Recipe.model_validate(service.ledger.get(job_id).recipe)
        tokenizer = load_tokenizer(recipe.model.path, field="model.path")
        (tmp_path / job_id).mkdir()
        capsys.readouterr()
        train, _ = datasets(recipe, tokenizer, RunFolder(tmp_path / job_id))
        assert recipe.data.token_folder is not None
        told = [line for line in capsys.readouterr().out.splitlines() if "token ids" in line]
        return Read(train.to_list(), told, Path(recipe.data.token_folder))

    return read


def entries(store: Path) -> list[Path]:
    return sorted(store.glob("*/*"))


def test_a_second_job_on_the_same_file_reads_what_the_first_rendered(client: OpenAI, read: Any) -> None:
    file_id = upload(client, pairs(6))
    jobs = [
        create_job(client, training_file=file_id, method=method(beta=beta), seed=seed).id
        for seed, beta in enumerate((0.1, 0.3))
    ]
    first, second = map(read, jobs)
    assert (first.told, second.told) == ([], [f"{file_id}: {STORED}"])
    assert (len(first.rows), first.rows) == (6, second.rows)
    assert [path.parent.name for path in entries(first.store)] == [file_id]


def test_a_damaged_entry_is_rendered_and_stored_again(client: OpenAI, read: Any) -> None:
    file_id = upload(client, pairs(6))
    first = read(create_job(client, training_file=file_id).id)
    (entry,) = entries(first.store)
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-4])
    second, third = (read(create_job(client, training_file=file_id).id) for _ in range(2))
    assert (second.told, second.rows, entry.read_bytes()) == ([], first.rows, whole)
    assert third.told == [f"{file_id}: {STORED}"]


def test_another_project_renders_the_same_file_itself(
    service: Running, project: str, client: OpenAI, read: Any
) -> None:
    mine = read(create_job(client, training_file=upload(client, pairs(6))).id)
    with service.client(service.new_key(f"{project}-other")) as other:
        theirs = read(create_job(other, training_file=upload(other, pairs(6))).id)
    assert (mine.told, theirs.told, mine.rows) == ([], [], theirs.rows)
    assert mine.store != theirs.store
    assert mine.store.parent == theirs.store.parent == service.settings.tokens_dir
    assert len(entries(mine.store)) == len(entries(theirs.store)) == 1


def test_the_jobs_of_a_sweep_render_their_rows_once(
    service: Running, client: OpenAI, key: str, read: Any
) -> None:
    file_id = upload(client, pairs(6))
    body = {"model": BASE_MODEL, "training_file": file_id, "method": method()}
    with service.http(key) as http:
        sweep = http.post("/v1/fine_tuning/sweeps", json=body | {"sweep": {"beta": [0.1, 0.2, 0.3]}}).json()
    found = [read(point["job"]) for point in sweep["points"]]
    assert [one.told for one in found] == [[], [f"{file_id}: {STORED}"], [f"{file_id}: {STORED}"]]
    assert found[0].rows == found[1].rows == found[2].rows
