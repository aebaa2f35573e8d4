"""/v1/fine_tuning/methods describes what creating a job accepts, and nothing else."""

from typing import Any

import openai
import pytest
from openai import OpenAI

from alignkit import terms
from alignkit.methods import METHODS
from tests.server.support import BASE_MODEL, Running, create_job, method, upload


def test_the_description_is_what_checks_a_job(service: Running, client: OpenAI, key: str) -> None:
    with service.http(key) as http:
        listed = http.get("/v1/fine_tuning/methods").json()
    described: dict[str, Any] = {found["id"]: found["hyperparameters"] for found in listed["data"]}
    assert list(described) == list(METHODS)
    training = upload(client)
    properties = described["f_dpo"]["properties"]
    beta = next(form for form in properties["beta"]["anyOf"] if form["type"] == "number")
    assert (beta["exclusiveMinimum"], beta["maximum"]) == (0, 2)
    assert create_job(client, training_file=training, method=method(beta=beta["maximum"]))
    with pytest.raises(openai.BadRequestError):
        create_job(client, training_file=training, method=method(beta=beta["maximum"] + 0.01))
    defaults = {name: field["default"] for name, field in properties.items()}
    explicit = create_job(client, training_file=training, seed=1, method=method(**defaults))
    plain = create_job(client, training_file=training, seed=1)
    assert explicit.to_dict()["method"] == plain.to_dict()["method"]
    assert described["f_dpo"]["additionalProperties"] is False


@pytest.mark.parametrize("name", METHODS)
def test_the_rank_described_is_the_rank_taken(service: Running, client: OpenAI, key: str, name: str) -> None:
    with service.http(key) as http:
        listed = http.get("/v1/fine_tuning/methods").json()
    described = next(found["hyperparameters"] for found in listed["data"] if found["id"] == name)
    most = described["properties"]["lora_rank"]["maximum"]
    assert most == service.settings.engine.max_lora_rank == 64
    training = upload(client)

    def ask(rank: int) -> Any:
        given = {"lora_rank": rank} | dict.fromkeys(described.get("required", ()), BASE_MODEL)
        form = {"type": name, name: {"hyperparameters": given}}
        return create_job(client, training_file=training, method=form)

    assert ask(most).status == "queued"
    with pytest.raises(openai.BadRequestError, match="lora_rank: expected at most 64"):
        ask(most + 1)


def test_the_divergences_described_are_those_taken(service: Running, client: OpenAI, key: str) -> None:
    with service.http(key) as http:
        listed = http.get("/v1/fine_tuning/methods").json()
    described = next(found["hyperparameters"] for found in listed["data"] if found["id"] == "f_dpo")
    training = upload(client)
    for divergence in described["properties"]["divergence"]["enum"]:
        assert create_job(client, training_file=training, method=method(divergence=divergence))


def test_a_job_takes_the_terms_that_are_listed_and_refuses_others(
    service: Running, client: OpenAI, key: str
) -> None:
    with service.http(key) as http:
        listed = {found["id"]: found["terms"] for found in http.get("/v1/fine_tuning/methods").json()["data"]}
    assert listed["f_dpo"] == list(terms.fitting(METHODS["f_dpo"]))
    assert listed["orpo"] == ["robust", "anchor", "repel"]
    assert listed["sinkd"] == []
    training = upload(client)
    job = create_job(client, training_file=training, method=method(terms=[{"type": "robust", "strength": 3}]))
    assert job.to_dict()["method"]["f_dpo"]["hyperparameters"]["terms"][0]["strength"] == 3
    with pytest.raises(openai.BadRequestError, match=r"terms\.0\.type: expected one of robust"):
        create_job(client, training_file=training, method=method(terms=[{"type": "my_package.terms:Mine"}]))
