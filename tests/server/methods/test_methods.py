"""/v1/fine_tuning/methods describes what creating a job accepts, and nothing else."""

import re
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from alignkit.methods import METHODS, Hyperparameters, hyperparameters_of
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


@pytest.mark.parametrize("name", METHODS)
def test_the_services_page_names_what_each_method_takes_of_its_own(name: str) -> None:
    page = (Path(__file__).parents[3] / "docs" / "service.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line.split("|")[2] for line in page.splitlines() if line[:3] == "| `"}
    own = set(hyperparameters_of(METHODS[name]).model_fields) - set(Hyperparameters.model_fields)
    shared = set(hyperparameters_of(METHODS["dpo"]).model_fields) & own if name == "f_dpo" else set()
    assert set(re.findall(r"`(\w+)`", rows[f"`{name}`"])) == own - shared
