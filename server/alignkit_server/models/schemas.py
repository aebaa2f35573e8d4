"""Models in the form of OpenAI's API, with some additional fields."""

from typing import Literal

from pydantic import BaseModel, Field


class ModelObject(BaseModel):
    """A model that can be used for completions."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    parent: str | None = Field(description="base model of a fine-tuned model")
    kind: str = Field(description="base, adapter, or full if all weights were trained")


class ModelList(BaseModel):
    """All models that the project may use; like OpenAI's list, it has no pages."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ModelDeleted(BaseModel):
    """The confirmation that a model was deleted."""

    id: str
    object: Literal["model"] = "model"
    deleted: bool = True
