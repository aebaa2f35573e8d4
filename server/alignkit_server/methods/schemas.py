"""Methods as the API describes them."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class MethodDescription(BaseModel):
    """A method: its name is `method.type` of a job."""

    id: str
    object: Literal["fine_tuning.method"] = "fine_tuning.method"
    description: str = Field(description="What the method is for")
    rows: str = Field(description="Kind of row that its files hold, such as preference or completion")
    hyperparameters: dict[str, Any] = Field(
        description="JSON Schema of method.<type>.hyperparameters: types, bounds and defaults"
    )


class MethodList(BaseModel):
    """Every method that this server trains."""

    object: Literal["list"] = "list"
    data: list[MethodDescription]
