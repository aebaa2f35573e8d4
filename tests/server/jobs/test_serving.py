"""A job says how its result is to be served, and is refused where that cannot work."""

import json
from typing import Any

import openai
import pytest
from openai import OpenAI

from alignkit_server.jobs import mergeable
from tests.server.shapes import conforms
from tests.server.support import BASE_MODEL, Running, create_job, method


@pytest.mark.parametrize("serving", [None, "adapter", "merged"])
def test_a_job_shows_how_its_result_will_be_served(
    serving: str | None, service: Running, client: OpenAI
) -> None:
    job = create_job(client, method={"type": "dpo"}, extra_body={"serving": serving} if serving else {})
    conforms(job)
    assert job.serving == serving or (serving is None and job.serving == "adapter")
    assert client.fine_tuning.jobs.retrieve(job.id).serving == job.serving  # type: ignore[attr-defined]
    assert service.ledger.get(job.id).serving == job.serving


def refusal(client: OpenAI, serving: str, **changes: Any) -> str:
    with pytest.raises(openai.BadRequestError) as refused:
        create_job(client, extra_body={"serving": serving}, **changes)
    assert refused.value.param == "serving"
    assert client.fine_tuning.jobs.list().data == []
    return str(refused.value)


def test_an_unknown_serving_is_refused(client: OpenAI) -> None:
    assert "'merged_fp8'" in refusal(client, "merged_int4")


def test_all_weights_have_an_engine_of_their_own_anyway(client: OpenAI) -> None:
    assert "trains all weights" in refusal(client, "merged", method=method(trained_weights="all"))


def test_fp8_needs_a_gpu(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mergeable, "runs_on_gpu", lambda: False)
    assert "needs a GPU for the engine, and this server has none" in refusal(client, "merged_fp8")


def test_fp8_needs_an_engine_of_16_bits(
    service: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mergeable, "runs_on_gpu", lambda: True)
    monkeypatch.setattr(service.settings.engine, "dtype", "float32")
    assert "computes in float32" in refusal(client, "merged_fp8")


def test_what_cannot_be_merged_for_want_of_memory_is_refused(
    service: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.settings, "export_bytes", 1)
    assert "ALIGNKIT_EXPORT_BYTES gives it 1" in refusal(client, "merged")


def test_what_has_no_room_on_the_disk_is_refused(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mergeable, "has_room", lambda *_: False)
    assert "the server's disk has no room" in refusal(client, "merged")


def test_an_adapter_is_not_merged_into_quantised_weights(
    service: Running, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mergeable, "quantization_of", lambda _: "bitsandbytes")
    assert f"the weights of {BASE_MODEL} are quantised with bitsandbytes" in refusal(client, "merged")


def test_an_idempotency_key_covers_the_serving(client: OpenAI) -> None:
    headers = {"Idempotency-Key": json.dumps("serving")}
    file = create_job(client).training_file
    first = create_job(client, training_file=file, extra_headers=headers, extra_body={"serving": "merged"})
    assert first.serving == "merged"
    with pytest.raises(openai.ConflictError):
        create_job(client, training_file=file, extra_headers=headers)
