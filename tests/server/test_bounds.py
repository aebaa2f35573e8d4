"""Hostile jobs, files and names are refused with a sentence, and nothing is changed."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import openai
import pytest
from openai import OpenAI

from alignkit_server.engines.command import vllm_command
from alignkit_server.pools.file_check_pool import check_file
from tests.server.engines.support import make_settings
from tests.server.support import Running, create_job, method, upload
from tests.tiny import build_tiny_model


@pytest.fixture
def http(service: Running, key: str) -> Iterator[httpx.Client]:
    with service.http(key) as http:
        yield http


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"suffix": "x" * 10_000}, "suffix"),
        ({"suffix": "../../x"}, "suffix"),
        ({"metadata": {"k" * 10_000: "v"}}, f"metadata.{'k' * 190}…"),
        ({"method": method(lora_rank=0)}, "method.f_dpo.hyperparameters.lora_rank"),
        ({"method": method(trained_weights="some")}, "method.f_dpo.hyperparameters.trained_weights"),
        ({"method": method(lora_rank=-1)}, "method.f_dpo.hyperparameters.lora_rank"),
        ({"method": method(lora_rank=65)}, "method.f_dpo.hyperparameters.lora_rank"),
        ({"method": method(lora_rank=10**30)}, "method.f_dpo.hyperparameters.lora_rank"),
        ({"method": method(batch_size=10**9)}, "method.f_dpo.hyperparameters.batch_size"),
        ({"method": method(micro_batch_size=10**9)}, "method.f_dpo.hyperparameters.micro_batch_size"),
        ({"method": method(n_epochs=10**9)}, "method.f_dpo.hyperparameters.n_epochs"),
        ({"method": method(max_steps=10**9)}, "method.f_dpo.hyperparameters.max_steps"),
        ({"method": method(max_length=10**9)}, "method.f_dpo.hyperparameters.max_length"),
        ({"method": method(learning_rate_multiplier=1e300)}, "…learning_rate_multiplier"),
        ({"method": method(divergence="os:system")}, "method.f_dpo.hyperparameters.divergence"),
        ({"method": method(trust_remote_code=True)}, "method.f_dpo.hyperparameters.trust_remote_code"),
        ({"method": method(model_path="/etc")}, "method.f_dpo.hyperparameters.model_path"),
        ({"method": method(output_dir="/etc")}, "method.f_dpo.hyperparameters.output_dir"),
        ({"extra_body": {"trust_remote_code": True}}, "trust_remote_code"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_job_out_of_bounds_is_refused_by_name(
    service: Running, client: OpenAI, changes: dict[str, Any], param: str
) -> None:
    jobs = set(service.settings.jobs_dir.iterdir())
    with pytest.raises(openai.BadRequestError) as refused:
        create_job(client, **changes)
    assert refused.value.param == re.sub("^…", "method.f_dpo.hyperparameters.", param)
    assert set(service.settings.jobs_dir.iterdir()) == jobs
    assert client.fine_tuning.jobs.list().data == []


def test_a_refusal_does_not_send_back_what_was_too_long(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create_job(client, suffix="x" * 10_000)
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
@pytest.mark.parametrize("field", ["beta", "learning_rate_multiplier", "lora_rank", "batch_size"])
def test_numbers_that_are_none_are_refused(
    http: httpx.Client, client: OpenAI, field: str, number: str
) -> None:
    text = (
        '{"model": "tiny-llama", "training_file": "%s", '
        '"method": {"type": "f_dpo", "f_dpo": {"hyperparameters": {"%s": %s}}}}'
    )
    headers = {"content-type": "application/json"}
    answer = http.post(
        "/v1/fine_tuning/jobs", content=text % (upload(client), field, number), headers=headers
    )
    assert answer.status_code == 400, answer.text
    assert client.fine_tuning.jobs.list().data == []


def test_a_gzip_that_grows_without_end_is_refused(
    client: OpenAI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limit = 2**20
    monkeypatch.setitem(check_file.__kwdefaults__, "max_bytes", limit)  # else 2 GiB
    for name, text in {"one line": b"x" * (64 * limit), "many lines": b"{}\n" * (8 * limit)}.items():
        bomb = gzip.compress(text)
        assert len(bomb) < len(text) // 100
        file_id = upload(client, bomb, name=f"{name}.jsonl.gz")
        with pytest.raises(openai.BadRequestError, match=r"too much text|cannot be used") as refused:
            create_job(client, training_file=file_id)
        assert refused.value.code == "invalid_training_file"


@pytest.mark.parametrize(
    "name",
    [
        "../../../escaped",
        "/etc/passwd",
        "..\\..\\escaped",
        "a/../../escaped",
        "file:///escaped",
        "x" * 1000,
        ".first-key",
        "\u202egnp.exe",
    ],
)
def test_a_file_lies_under_its_id_whatever_it_is_called(service: Running, client: OpenAI, name: str) -> None:
    around = set(service.settings.root.parent.iterdir()) | set(service.settings.root.iterdir())
    file_id = upload(client, b"x", name=name, purpose="user_data")
    assert (service.settings.files_dir / file_id).read_bytes() == b"x"
    assert set(service.settings.root.parent.iterdir()) | set(service.settings.root.iterdir()) == around
    kept = client.files.retrieve(file_id).filename
    assert not re.search(r"[/\\]", kept)
    assert len(kept) <= 255


@pytest.mark.parametrize(
    "name", ["../{0}", "{1}", "./{0}", "{0}/", "{0}/.", "../models/{0}", "~/{0}", ".{0}"]
)
def test_a_base_model_is_a_name_in_the_models_folder(
    service: Running, client: OpenAI, http: httpx.Client, name: str
) -> None:
    outside = service.settings.root / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "config.json").write_text("{}")
    given = name.format("outside", outside)
    with pytest.raises(openai.NotFoundError) as refused:
        create_job(client, model=given)
    assert refused.value.param == "model"
    for path in (quote(given, safe=""), given):
        assert http.get(f"/v1/models/{path}").status_code in {401, 404}
        assert http.delete(f"/v1/models/{path}").status_code in {401, 404, 405}
    answer = http.post("/v1/chat/completions", json={"model": given, "messages": []})
    assert answer.status_code == 404
    assert (outside / "config.json").exists()


def test_engines_run_no_code_of_a_model(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    build_tiny_model(settings.models_dir / "tiny")
    command = vllm_command(settings, "tiny", 9)
    trusts = [argument for argument in command.arguments if "trust" in argument]
    assert trusts == ["--trust-request-chat-template"]  # a job's own template, which only the service sends
    assert "127.0.0.1" in command.arguments
