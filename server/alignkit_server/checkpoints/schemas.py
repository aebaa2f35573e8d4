"""Permissions on checkpoints as OpenAI's API gives and takes them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from alignkit_server.jobs.schemas import Name

MAX_PROJECTS = 100


class PermissionRequest(BaseModel):
    """Which projects may use the checkpoint."""

    model_config = ConfigDict(strict=True, extra="forbid")

    project_ids: Annotated[list[Name], Field(min_length=1, max_length=MAX_PROJECTS)]


class PermissionObject(BaseModel):
    """A project's permission to use a checkpoint."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


class PermissionDeleted(BaseModel):
    """Says that a permission is gone."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: bool = True
