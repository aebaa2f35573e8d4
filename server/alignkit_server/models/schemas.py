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
    kind: str = Field(
        description="base, adapter, merged if an adapter is served as weights of its own, or full if all "
        "weights were trained"
    )


class ModelList(BaseModel):
    """All models that the project may use; like OpenAI's list, it has no pages."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class ArchiveOptions(BaseModel):
    """The form in which a model is downloaded."""

    form: Literal["adapter", "merged", "gguf", "ollama"] | None = Field(
        None, description="default: the adapter, or all weights if all were trained"
    )
    quantize: Literal["auto", "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = Field(
        "auto", description="how GGUF stores weights; auto is the model's own 16-bit type"
    )


class ModelDeleted(BaseModel):
    """The confirmation that a model was deleted."""

    id: str
    object: Literal["model"] = "model"
    deleted: bool = True
