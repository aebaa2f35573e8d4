"""/v1/fine_tuning/methods describes what creating a job accepts, and nothing else."""

from typing import Any

import openai
import pytest
from openai import OpenAI

from alignkit.methods import METHODS
from tests.server.support import Running, create_job, method, upload


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
