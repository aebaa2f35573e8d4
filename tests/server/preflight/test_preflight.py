"""Preview and estimate, with a real tokenizer, against the library's own functions and a count by hand."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from alignkit.data.dataset import load_rows
from alignkit.data.report import preview_row
from alignkit.data.tokens import chat_tokenizer
from alignkit.estimate import at_hand, estimate, lengths_of
from alignkit.recipe import Recipe
from alignkit_server.tables import Job
from tests.preference import pair_ids
from tests.server.support import (
    BASE_MODEL,
    TINY_CONFIG,
    Running,
    add_base_model,
    create_job,
    method,
    pairs,
    serve,
    upload,
)
from tests.tiny import build_tiny_tokenizer


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("home")) as running:
        folder = running.settings.models_dir / BASE_MODEL
        build_tiny_tokenizer(folder)
        (folder / "config.json").write_text(TINY_CONFIG)
        yield running


@pytest.fixture
def http(service: Running, key: str) -> Iterator[httpx.Client]:
    with service.http(key) as http:
        http.timeout = 120
        yield http


def ask(http: httpx.Client, what: str, **request: Any) -> Any:
    body = {"model": BASE_MODEL, "method": method()} | request
    answer = http.post(f"/v1/fine_tuning/{what}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_preview_is_what_the_library_shows(service: Running, client: OpenAI, http: httpx.Client) -> None:
    file_id = upload(client, pairs(6))
    shown = ask(http, "preview", training_file=file_id, rows=2, offset=3, method=method(max_length=16))
    assert (shown["model"], shown["method"], shown["max_length"]) == (BASE_MODEL, "f_dpo", 16)
    tokenizer = chat_tokenizer(service.settings.models_dir / BASE_MODEL, field="model")
    rows = load_rows(service.settings.files_dir / file_id, "f_dpo")
    assert [row["index"] for row in shown["rows"]] == [4, 5]
    for found in shown["rows"]:
        expected = preview_row(rows[found["index"] - 1], tokenizer, max_length=16)
        assert found["dropped"] == expected.dropped
        assert [segment["text"] for segment in found["sequences"]["chosen"]] == [
            segment.text for segment in expected.sequences["chosen"]
        ]
        assert any(segment["cut"] for segment in found["sequences"]["rejected"])
    assert ask(http, "preview", training_file=file_id, offset=6)["rows"] == []


def test_what_makes_no_job_makes_no_preview(client: OpenAI, http: httpx.Client) -> None:
    file_id = upload(client)
    for what in ("preview", "jobs/estimate"):
        body = {"model": BASE_MODEL, "training_file": file_id, "method": method(beta=5)}
        answer = http.post(f"/v1/fine_tuning/{what}", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "method.f_dpo.hyperparameters.beta"
    assert client.fine_tuning.jobs.list().data == []


def test_a_model_without_a_tokenizer_says_so(service: Running, client: OpenAI, http: httpx.Client) -> None:
    add_base_model(service.settings.root, "mute")
    body = {"model": "mute", "training_file": upload(client), "method": method()}
    answer = http.post("/v1/fine_tuning/preview", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "model"
    assert str(service.settings.root) not in answer.text


def test_an_estimate_counts_tokens_and_steps(service: Running, client: OpenAI, http: httpx.Client) -> None:
    file_id = upload(client, pairs(10))
    tokenizer = chat_tokenizer(service.settings.models_dir / BASE_MODEL, field="model")
    counted = 0
    for row in load_rows(service.settings.files_dir / file_id, "f_dpo"):
        pair = pair_ids(row, tokenizer)
        counted += 2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected)
    options: Any = {"n_epochs": 2, "batch_size": 4}
    found = ask(http, "jobs/estimate", training_file=file_id, method=method(**options))
    assert (found["rows"], found["sampled_rows"], found["dropped_rows"], found["steps"]) == (10, 10, 0, 6)
    assert found["tokens"] == 2 * counted
    assert found["based_on_jobs"] == 0
    assert found["seconds"] > 0  # by the device's data sheet
    limited = ask(http, "jobs/estimate", training_file=file_id, method=method(**options, max_steps=5))
    assert (limited["steps"], limited["tokens"]) == (5, 2 * counted)
    none = ask(http, "jobs/estimate", training_file=file_id, method=method(max_length=16))
    assert (none["dropped_rows"], none["steps"], none["tokens"]) == (10, 0, 0)


def test_an_estimate_of_memory_is_the_librarys(service: Running, client: OpenAI, http: httpx.Client) -> None:
    file_id = upload(client, pairs(10))
    found = ask(http, "jobs/estimate", training_file=file_id, method=method(batch_size=2))
    model, memory = service.settings.models_dir / BASE_MODEL, found["memory"]
    recipe = Recipe.parse(
        {
            "model": {"path": str(model)},
            "data": {"train": str(service.settings.files_dir / file_id)},
            "method": {"type": "f_dpo"},
            "training": {"batch_size": 2},
            "output_dir": "unused",
        }
    )
    expected = estimate(recipe, lengths_of(recipe), device=at_hand())
    assert memory["peak_bytes"] == expected.memory.peak
    assert memory["bytes_by_kind"]["weights"] == expected.memory.kinds["weights"]
    assert (memory["device"], memory["available_bytes"]) == (expected.device.name, expected.device.usable)
    assert memory["trainable_parameters"] == expected.trainable
    assert found["fits"] is expected.fits
    dropped = ask(http, "jobs/estimate", training_file=file_id, method=method(max_length=16))
    assert (dropped["memory"], dropped["fits"]) == (None, None)


def test_what_d2o_draws_is_counted(client: OpenAI, http: httpx.Client) -> None:
    rows = "".join(json.dumps({"prompt": f"What is {n}?", "rejected": "No."}) + "\n" for n in range(8))
    options: Any = {"n_epochs": 1, "batch_size": 4}
    tokens = {}
    for samples in (1, 3):
        given = {"type": "d2o", "d2o": {"hyperparameters": options | {"samples_per_prompt": samples}}}
        found = ask(http, "jobs/estimate", training_file=upload(client, rows.encode()), method=given)
        tokens[samples] = found["tokens"]
    assert tokens[3] == 2 * tokens[1]


def test_an_architecture_that_is_not_estimated_has_no_memory(
    service: Running, client: OpenAI, http: httpx.Client
) -> None:
    folder = service.settings.models_dir / "recurrent"
    build_tiny_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    whole = {"type": "f_dpo", "f_dpo": {"hyperparameters": {"trained_weights": "all"}}}
    found = ask(http, "jobs/estimate", training_file=upload(client), model="recurrent", method=whole)
    assert (found["memory"], found["fits"]) == (None, None)
    assert found["tokens"] > 0


def test_an_estimate_of_time_is_what_earlier_jobs_took(
    service: Running, client: OpenAI, http: httpx.Client
) -> None:
    file_id = upload(client, pairs(10))
    for seconds, attempt in ((10, 1), (20, 1), (40, 1), (1, 2)):
        job = create_job(client, training_file=file_id)
        fields = {"started_at": 100, "finished_at": 100 + seconds, "trained_tokens": 1000}
        service.ledger.transition(job.id, "succeeded", only_from=("queued",), **fields)
        with service.services.database.writing() as session:
            session.query(Job).where(Job.id == job.id).one().attempt = attempt
    found = ask(http, "jobs/estimate", training_file=file_id)
    assert found["based_on_jobs"] == 3
    assert found["seconds"] == pytest.approx(found["tokens"] / 50, abs=0.1)
    other = ask(http, "jobs/estimate", training_file=file_id, method={"type": "dpo"})
    assert other["based_on_jobs"] == 0


def test_a_job_costs_its_time_on_its_gpus_at_the_price_of_the_service(
    service: Running, client: OpenAI, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = {"training_file": upload(client, pairs(10))}
    assert ask(http, "jobs/estimate", **request)["cost"] is None
    monkeypatch.setattr(service.settings, "price_per_gpu_hour", 3.6e6)
    monkeypatch.setattr(service.settings, "currency", "EUR")
    monkeypatch.setattr("alignkit_server.preflight.service.gpus_of", lambda *_: 4)
    found = ask(http, "jobs/estimate", **request)
    told = {"currency": "EUR", "per_gpu_hour": 3.6e6, "gpus": 4}
    assert found["cost"] == told | {"amount": pytest.approx(4000 * found["seconds"])}
    timeless = ask(http, "jobs/estimate", **request, method=method(max_length=16))
    assert (timeless["seconds"], timeless["cost"]) == (None, None)


def test_a_large_file_is_sampled(client: OpenAI, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignkit_server.preflight.service.SAMPLE_ROWS", 5)
    row = json.loads(pairs(1))
    content = "".join(json.dumps(row) + "\n" for _ in range(30)).encode()
    once = method(n_epochs=1)
    found = ask(http, "jobs/estimate", training_file=upload(client, content), method=once)
    assert (found["rows"], found["sampled_rows"]) == (30, 5)
    fifth = ask(
        http, "jobs/estimate", training_file=upload(client, content[: len(content) // 5]), method=once
    )
    assert (fifth["rows"], fifth["sampled_rows"]) == (6, 6)
    assert found["tokens"] == 5 * fifth["tokens"]
