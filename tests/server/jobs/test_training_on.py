"""A job that trains on from what another job made: its model, a checkpoint of it, or all of its weights."""

from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from alignkit_server.catalog.names import model_name
from tests.server.support import ADAPTER_RANK as RANK
from tests.server.support import BASE_MODEL, Running, create_job, write_adapter


@pytest.fixture
def tuned(service: Running, client: OpenAI, project: str, tmp_path: Path) -> str:
    """A model of the project that a finished job made, with a checkpoint."""
    job = create_job(client, suffix="first")
    name = model_name(BASE_MODEL, project, "first", job.id)
    for step, found in ((None, name), (2, f"{name}:ckpt-step-2")):
        service.ledger.add_model(
            job.id,
            name=found,
            base_model=BASE_MODEL,
            kind="adapter",
            path=str(write_adapter(tmp_path / str(step))),
            step=step,
        )
    service.ledger.transition(job.id, "succeeded", only_from=("queued",), fine_tuned_model=name)
    return name


@pytest.fixture
def full(service: Running, client: OpenAI, project: str, tmp_path: Path) -> str:
    """A fine-tuned model of which all weights were trained."""
    job = create_job(client, suffix="whole")
    name = model_name(BASE_MODEL, project, "whole", job.id)
    base = service.settings.models_dir / BASE_MODEL
    (tmp_path / "weights").symlink_to(base)
    service.ledger.add_model(
        job.id, name=name, base_model=BASE_MODEL, kind="full", path=str(tmp_path / "weights")
    )
    service.ledger.transition(job.id, "succeeded", only_from=("queued",), fine_tuned_model=name)
    return name


def dpo(**hyperparameters: Any) -> Any:
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


@pytest.mark.parametrize("suffix", ["", ":ckpt-step-2"])
def test_it_trains_on_from_the_adapter(service: Running, client: OpenAI, tuned: str, suffix: str) -> None:
    job = create_job(client, model=tuned + suffix, method=dpo(beta=0.2))
    assert job.model == client.fine_tuning.jobs.retrieve(job.id).model == tuned + suffix
    record = service.ledger.get(job.id)
    assert record.base_model == BASE_MODEL, "by whose engine the result is served"
    model, lora = record.recipe["model"], record.recipe["lora"]
    assert model["path"] == str(service.settings.models_dir / BASE_MODEL)
    assert Path(model["adapter"]).name == ("2" if suffix else "None")
    assert (lora["r"], lora["alpha"], lora["target_modules"]) == (RANK, 24, ["q_proj", "v_proj"])
    resolved = job.method.dpo.hyperparameters.to_dict()  # type: ignore[union-attr]
    assert (resolved["lora_rank"], resolved["lora_alpha"]) == (RANK, 24)


def test_what_was_trained_whole_trains_on_whole(service: Running, client: OpenAI, full: str) -> None:
    job = create_job(client, model=full, method=dpo())
    recipe = service.ledger.get(job.id).recipe
    assert recipe["lora"] is None
    assert recipe["model"]["adapter"] is None
    assert recipe["model"]["path"].endswith("/weights")
    assert job.method.dpo.hyperparameters.to_dict()["trained_weights"] == "all"  # type: ignore[union-attr]


def test_what_is_said_beside_it_must_agree(client: OpenAI, tuned: str, full: str) -> None:
    assert create_job(client, model=tuned, method=dpo(lora_rank=RANK, lora_alpha=24, trained_weights="lora"))
    for model, given, words in (
        (tuned, {"lora_rank": 16}, "expected 8, as in the model that training starts from, found 16"),
        (tuned, {"lora_alpha": 16}, "expected 24"),
        (tuned, {"trained_weights": "all"}, "expected 'lora'"),
        (full, {"trained_weights": "lora"}, "expected 'all'"),
        (full, {"lora_rank": 16}, "lora_rank"),
    ):
        with pytest.raises(openai.BadRequestError, match=words) as refused:
            create_job(client, model=model, method=dpo(**given))
        assert refused.value.param == f"method.dpo.hyperparameters.{next(iter(given))}"
        assert refused.value.code == "invalid_hyperparameters"


def test_it_can_be_looked_at_before(
    service: Running, client: OpenAI, key: str, tuned: str, full: str
) -> None:
    file = client.fine_tuning.jobs.list(limit=1).data[0].training_file
    for model in (tuned, full):
        body = {"model": model, "training_file": file, "method": dpo()}
        with service.http(key) as http:
            answers = [
                http.post(f"/v1/fine_tuning/{path}", json=body) for path in ("preview", "jobs/estimate")
            ]
        for answer in answers:
            # the stand-in base model has no tokenizer, which is told by the model's name and by no path
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["message"].startswith(f"The model {model!r} cannot render")
            assert str(service.settings.root) not in answer.text


def test_another_projects_model_is_none(service: Running, tuned: str) -> None:
    stranger = service.client(service.new_key("stranger"))
    with pytest.raises(openai.NotFoundError, match="does not exist or cannot be fine-tuned") as refused:
        create_job(stranger, model=tuned)
    assert refused.value.param == "model"


def test_one_that_is_not_ready_is_told_so(service: Running, client: OpenAI) -> None:
    job = create_job(client)
    service.ledger.add_model(job.id, name=f"ft:{job.id}", base_model=BASE_MODEL, kind="adapter", path="p")
    with pytest.raises(openai.NotFoundError, match=f"its job {job.id} is queued"):
        create_job(client, model=f"ft:{job.id}")


def test_it_stays_until_the_job_has_finished(client: OpenAI, tuned: str) -> None:
    taught = {"type": "sinkd", "sinkd": {"hyperparameters": {"teacher": f"{tuned}:ckpt-step-2"}}}
    for model, job in (
        (tuned, create_job(client, model=tuned, method=dpo())),
        (f"{tuned}:ckpt-step-2", create_job(client, method=taught)),
    ):
        with pytest.raises(openai.ConflictError, match=f"is used by the job {job.id}") as refused:
            client.models.delete(model)
        assert refused.value.code == "model_in_use"
        client.fine_tuning.jobs.cancel(job.id)
        assert client.models.delete(model).deleted


def test_files_that_are_gone_are_told_without_a_path(client: OpenAI, tuned: str, tmp_path: Path) -> None:
    (tmp_path / "None" / "adapter_config.json").unlink()
    with pytest.raises(openai.BadRequestError) as refused:
        create_job(client, model=tuned, method=dpo())
    assert refused.value.message.endswith("model: its adapter cannot be read") or "cannot be read" in str(
        refused.value
    )
    assert str(tmp_path) not in str(refused.value)
    assert refused.value.param == "model"


def test_weights_that_are_gone_are_told_too(
    service: Running, client: OpenAI, key: str, full: str, tmp_path: Path
) -> None:
    file = client.fine_tuning.jobs.list(limit=1).data[0].training_file
    (tmp_path / "weights").unlink()
    body = {"model": full, "training_file": file, "method": dpo()}
    with service.http(key) as http:
        for path in ("preview", "jobs/estimate", "jobs"):
            answer = http.post(f"/v1/fine_tuning/{path}", json=body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model"), answer.text
            assert "its weights cannot be read" in answer.text


def test_its_recipe_names_the_adapter_as_its_archive_does(
    client: OpenAI, service: Running, key: str, tuned: str
) -> None:
    job = create_job(client, model=tuned, method=dpo())
    with service.http(key) as http:
        recipe = http.get(f"/v1/fine_tuning/jobs/{job.id}/recipe").text
    assert ":" not in recipe.split("adapter: ")[1].split("\n")[0]
