"""Permissions on checkpoints in the form of OpenAI's API."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from alignkit_server.fields import Name

MAX_PROJECTS = 100


class PermissionRequest(BaseModel):
    """The projects that may use the checkpoint."""

    model_config = ConfigDict(strict=True, extra="forbid")

    project_ids: Annotated[list[Name], Field(min_length=1, max_length=MAX_PROJECTS)]


class PermissionObject(BaseModel):
    """A project's permission to use a checkpoint."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


class PermissionDeleted(BaseModel):
    """The confirmation that a permission was revoked."""

    id: str
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    deleted: bool = True
