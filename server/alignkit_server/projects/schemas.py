"""Projects and keys as OpenAI's administration API gives them, with this service's scopes, limits and usage."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from alignkit_server.keys.scopes import PROJECT_SCOPES, Scope
from alignkit_server.settings import Limits

MAX_EXPIRY_SECONDS = 10 * 365 * 24 * 3600
MAX_GRACE_SECONDS = 30 * 24 * 3600
Scopes = Annotated[list[Scope], Field(min_length=1, max_length=5)]
KeyName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")]
ProjectName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
Seconds = Annotated[int, Field(ge=1, le=MAX_EXPIRY_SECONDS)]


class ProjectRequest(BaseModel):
    """A new project."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: ProjectName = Field(description="part of its models' names")


class ProjectLimits(BaseModel):
    """Limits of a project: a number sets it, null takes the service's again, what is left out stays."""

    model_config = ConfigDict(strict=True, extra="forbid")

    requests_per_minute: Annotated[int, Field(ge=1, le=10**9)] | None = None
    jobs_queued: Annotated[int, Field(ge=0, le=10**9)] | None = None
    jobs_running: Annotated[int, Field(ge=0, le=10**9)] | None = None
    requests_open: Annotated[int, Field(ge=1, le=10**9)] | None = None
    streams_open: Annotated[int, Field(ge=1, le=10**9)] | None = None
    tokens_open: Annotated[int, Field(ge=1, le=10**12)] | None = None
    file_bytes: Annotated[int, Field(ge=0, le=2**62)] | None = None
    gpu_seconds: Annotated[int, Field(ge=0, le=10**12)] | None = None


class ProjectUpdate(BaseModel):
    """What can be changed of a project; its name is part of its models' names and cannot."""

    model_config = ConfigDict(strict=True, extra="forbid")

    limits: ProjectLimits


class UsageObject(BaseModel):
    """What a project uses now; the seconds are of the jobs of the last 30 days."""

    jobs_queued: int
    jobs_running: int
    file_bytes: int
    gpu_seconds: int


class ProjectObject(BaseModel):
    """A project; `limits` are those in force, null for none."""

    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: None = None
    status: Literal["active"] = "active"
    limits: Limits
    usage: UsageObject


class KeyRequest(BaseModel):
    """A new key."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: KeyName
    scopes: Scopes = Field(default_factory=lambda: list(PROJECT_SCOPES))
    expires_in_seconds: Seconds | None = None


class KeyUpdate(BaseModel):
    """What to change of a key; what is left out stays."""

    model_config = ConfigDict(strict=True, extra="forbid")

    scopes: Scopes | None = None
    expires_in_seconds: Seconds | None = None


class KeyRotation(BaseModel):
    """How long the old key goes on opening, so that its users can be given the new one."""

    model_config = ConfigDict(strict=True, extra="forbid")

    grace_seconds: Annotated[int, Field(ge=0, le=MAX_GRACE_SECONDS)] = 0


class KeyOwner(BaseModel):
    """Keys belong to their project; OpenAI's have a user or a service account here."""

    type: None = None


class KeyObject(BaseModel):
    """A key, without itself."""

    id: str
    object: Literal["organization.project.api_key"] = "organization.project.api_key"
    name: str
    redacted_value: str
    scopes: list[str]
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    owner: KeyOwner = KeyOwner()
    owner_project_access: Literal["active"] = "active"


class NewKeyObject(KeyObject):
    """A key that was just made: the only answer that ever holds its value."""

    value: str


class KeyDeleted(BaseModel):
    """Says that a key opens nothing any more."""

    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: bool = True
