"""Methods in the API's form."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class MethodDescription(BaseModel):
    """A method; its id is the `method.type` of a job."""

    id: str
    object: Literal["fine_tuning.method"] = "fine_tuning.method"
    description: str = Field(description="What the method is for")
    rows: str = Field(description="Kind of rows in its files, such as preference or completion")
    hyperparameters: dict[str, Any] = Field(
        description="JSON Schema of method.<type>.hyperparameters: types, bounds and defaults"
    )
    terms: list[str] = Field(description="Types of the terms that its jobs may add to the loss")


class MethodList(BaseModel):
    """All methods that this server can train."""

    object: Literal["list"] = "list"
    data: list[MethodDescription]
