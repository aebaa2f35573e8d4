"""A job's adapter is published as merged weights where that works, and stays an adapter where it does not."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from sqlalchemy import select, update
from transformers import AutoModelForCausalLM

from alignkit.run.folder import RunFolder
from alignkit_server.catalog.model_catalog import ModelCatalog
from alignkit_server.engines.manager import EngineManager
from alignkit_server.engines.serving import quantization_in
from alignkit_server.engines.weights import publish_weights, weights_folder
from alignkit_server.runner import merging, publishing, step_services
from alignkit_server.runner.ledger import JobLedger
from alignkit_server.runner.merging import NotMergedError, merge
from alignkit_server.runner.step_services import StepServices, folder_of
from alignkit_server.tables import FineTunedModel, Job
from tests.server.engines.support import FakeEngines
from tests.server.runner import test_workflow
from tests.server.runner.test_workflow import messages
from tests.server.support import add_base_model, write_adapter
from tests.tiny import build_tiny_model

ledger, job_id = test_workflow.ledger, test_workflow.job_id
services, folder = test_workflow.services, test_workflow.folder
CANARY = {
    "prompt_token_ids": [1, 2],
    "completion_token_ids": [3, 4],
    "dtype": "float32",
    "adapter_logprobs": [-1.0, -1.5],
    "base_logprobs": [-2.0, -2.5],
}


@pytest.fixture
def trained(
    tmp_path: Path,
    services: StepServices,
    ledger: JobLedger,
    job_id: str,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[StepServices]:
    """The services over a job that has trained an adapter to be merged, with engines that answer as trained."""
    add_base_model(tmp_path, "tiny")
    engines = EngineManager(
        services.settings, build_command=FakeEngines(tmp_path, "--canaries", str(services.settings.jobs_dir))
    )
    installed = replace(services, engines=engines)
    monkeypatch.setattr(step_services, "_services", installed)
    with ledger.database.writing() as session:
        session.execute(update(Job).where(Job.id == job_id).values(serving="merged"))
    write_adapter(folder.adapter)
    folder.canary.write_text(json.dumps(CANARY))
    yield installed
    engines.shutdown()


def merged_quickly(services: StepServices, job: object, adapter: Path, name: str) -> None:
    """In place of the child: weights with nothing in them."""
    source = services.settings.exports_dir / "merging"
    source.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes(b"")
    publish_weights(services.settings, source, model_name=name, serving="merged")


def made(ledger: JobLedger, job_id: str) -> FineTunedModel:
    """The job's result, as others see it."""
    with ledger.database.reading() as session:
        return session.scalars(select(FineTunedModel).where(FineTunedModel.job_id == job_id)).one()


def test_the_result_is_served_by_an_engine_of_its_own(
    trained: StepServices, ledger: JobLedger, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "merge", merged_quickly)
    publishing.publish_models(job_id)
    publishing.prove(job_id)
    publishing.finish(job_id)
    model = made(ledger, job_id)
    assert model.kind == "merged"
    assert [fact.model for fact in trained.engines.facts()] == [model.name]
    found = ModelCatalog(trained.settings, ledger.database).resolve(model.name, model.project_id)
    assert (found.engine, found.lora_rank) == (model.name, 0)
    again = ModelCatalog(trained.settings, ledger.database).trainable(model.name, model.project_id)
    assert again.source.adapter == str(trained.settings.adapters_dir / "tiny" / model.name)
    assert any("vLLM answers as trained" in text for text in messages(ledger, job_id))


def test_what_cannot_be_merged_is_served_as_an_adapter_and_says_why(
    trained: StepServices, ledger: JobLedger, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "has_room", lambda *_: False)
    publishing.publish_models(job_id)
    publishing.prove(job_id)
    assert made(ledger, job_id).kind == "adapter"
    assert [fact.model for fact in trained.engines.facts()] == ["tiny"]
    (told,) = [text for text in messages(ledger, job_id) if "not merged" in text]
    assert "the server's disk has no room" in told
    assert list(trained.settings.exports_dir.glob("*")) == []


def test_merged_weights_that_do_not_answer_as_trained_give_way_to_the_adapter(
    trained: StepServices, ledger: JobLedger, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "merge", merged_quickly)
    publishing.publish_models(job_id)
    real, asked = publishing.check, []

    def check(*args: object, base_model: str | None, **options: object) -> object:
        asked.append(base_model)
        if base_model is None:
            raise publishing.CanaryError("vLLM's model does not answer as trained")
        return real(*args, base_model=base_model, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(publishing, "check", check)
    publishing.prove(job_id)
    name = made(ledger, job_id).name
    assert asked == [None, "tiny"]
    assert made(ledger, job_id).kind == "adapter"
    assert not weights_folder(trained.settings, name).exists()
    assert [fact.model for fact in trained.engines.facts()] == ["tiny"]


def test_a_projects_share_of_the_disk_is_not_exceeded(
    trained: StepServices, ledger: JobLedger, job_id: str
) -> None:
    trained.settings.limits.disk_bytes = 1
    with pytest.raises(NotMergedError, match="disk_bytes"):
        merge(trained, ledger.get(job_id), folder_of(job_id).adapter, "ft:tiny:mine::a")


@pytest.mark.slow
def test_the_weights_are_the_bases_and_the_adapters_together(
    services: StepServices, ledger: JobLedger, job_id: str, folder: RunFolder
) -> None:
    base = build_tiny_model(services.settings.models_dir / "tiny")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(folder.adapter)
    job = replace(ledger.get(job_id), serving="merged_fp8")
    merge(services, job, folder.adapter, "ft:tiny:mine::a")
    target = weights_folder(services.settings, "ft:tiny:mine::a")
    merged, before = load_file(target / "model.safetensors"), load_file(base / "model.safetensors")
    lora = load_file(folder.adapter / "adapter_model.safetensors")
    key = "model.layers.0.self_attn.q_proj"
    a, b = (lora[f"base_model.model.{key}.lora_{part}.weight"] for part in "AB")
    torch.testing.assert_close(merged[f"{key}.weight"], before[f"{key}.weight"] + 3.0 * b @ a)
    assert torch.equal(merged["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert quantization_in(target) == "fp8_per_channel"
    assert list(services.settings.exports_dir.iterdir()) == []
    inode = (target / "model.safetensors").stat().st_ino
    merge(services, job, folder.adapter, "ft:tiny:mine::a")
    assert (target / "model.safetensors").stat().st_ino == inode, "a repeated step merges nothing again"
