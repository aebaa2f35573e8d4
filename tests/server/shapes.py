"""Strict validation of answers against the models of the official client, which itself validates nothing.

Every field must have the documented type. A field that the client does not know must be one that this service
documents as its own.
"""

from typing import Any

import pydantic
from openai import BaseModel as ClientModel

from alignkit.methods import Hyperparameters

OWN_HYPERPARAMETERS = set(Hyperparameters.model_fields)
OWN_FIELDS = {
    "FineTuningJob": {"queue_position", "serving", "usage"},
    "Model": {"parent", "kind"},
    "DpoHyperparameters": OWN_HYPERPARAMETERS,
    "SupervisedHyperparameters": OWN_HYPERPARAMETERS,
}
"""Fields beyond OpenAI's, by the client's class."""
PAGE_FIELDS = {"object", "first_id", "last_id"}
"""OpenAI's own, which the client's pages leave out."""


def conforms(answer: ClientModel) -> None:
    """Assert that `answer`, which the client has parsed, is what its class says, in every part."""
    plain = answer.to_dict(mode="json", exclude_unset=True)
    parsed = pydantic.TypeAdapter(type(answer)).validate_json(
        pydantic.TypeAdapter(Any).dump_json(plain), strict=True
    )
    _no_unknown_fields(parsed)


def _no_unknown_fields(value: Any) -> None:
    if isinstance(value, ClientModel):
        name = type(value).__name__
        known = PAGE_FIELDS if "Page[" in name else OWN_FIELDS.get(name, set())
        unknown = set(value.model_extra or {}) - known
        assert not unknown, f"{name} has {unknown}, which neither OpenAI nor this service documents"
        missing = {key for key, field in type(value).model_fields.items() if field.is_required()}
        assert missing <= value.model_fields_set, f"{name} lacks {missing - value.model_fields_set}"
        for key in type(value).model_fields:
            _no_unknown_fields(getattr(value, key))
    elif isinstance(value, list):
        for item in value:
            _no_unknown_fields(item)
