"""Models as the API gives them: OpenAI's, with what this service knows beyond."""

from typing import Literal

from pydantic import BaseModel, Field


class ModelObject(BaseModel):
    """A model that can answer."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    parent: str | None = Field(description="the base model of a fine-tuned one")
    kind: str = Field(description="base, adapter, or full where all weights were trained")


class ModelList(BaseModel):
    """Every model the project may use; OpenAI's list has no pages."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ModelDeleted(BaseModel):
    """Says that a model is gone."""

    id: str
    object: Literal["model"] = "model"
    deleted: bool = True
