"""Projects and keys in the form of OpenAI's administration API, plus this service's scopes, limits and usage."""

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
    """A request to create a project."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: ProjectName = Field(description="name of the project; part of its models' names")


class ProjectLimits(BaseModel):
    """Changes to a project's limits: a number sets a limit, null restores the service's, omitted ones stay."""

    model_config = ConfigDict(strict=True, extra="forbid")

    requests_per_minute: Annotated[int, Field(ge=1, le=10**9)] | None = None
    jobs_queued: Annotated[int, Field(ge=0, le=10**9)] | None = None
    jobs_running: Annotated[int, Field(ge=0, le=10**9)] | None = None
    requests_open: Annotated[int, Field(ge=1, le=10**9)] | None = None
    streams_open: Annotated[int, Field(ge=1, le=10**9)] | None = None
    tokens_open: Annotated[int, Field(ge=1, le=10**12)] | None = None
    eval_runs_open: Annotated[int, Field(ge=0, le=10**9)] | None = None
    file_bytes: Annotated[int, Field(ge=0, le=2**62)] | None = None
    disk_bytes: Annotated[int, Field(ge=0, le=2**62)] | None = None
    gpu_seconds: Annotated[int, Field(ge=0, le=10**12)] | None = None
    job_gpu_seconds: Annotated[int, Field(ge=1, le=10**12)] | None = None


class ProjectUpdate(BaseModel):
    """Changes to a project. Its name cannot change, because it is part of its models' names."""

    model_config = ConfigDict(strict=True, extra="forbid")

    limits: ProjectLimits


class UsageObject(BaseModel):
    """The current usage of a project; gpu_seconds counts the jobs of the last 30 days, seconds times GPUs;
    disk_bytes is measured every minute."""

    jobs_queued: int
    jobs_running: int
    file_bytes: int
    disk_bytes: int
    gpu_seconds: int


class ProjectObject(BaseModel):
    """A project; `limits` are those in effect, null for no limit."""

    id: str
    object: Literal["organization.project"] = "organization.project"
    name: str
    created_at: int
    archived_at: None = None
    status: Literal["active"] = "active"
    limits: Limits
    usage: UsageObject


class KeyRequest(BaseModel):
    """A request to create a key."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: KeyName
    scopes: Scopes = Field(default_factory=lambda: list(PROJECT_SCOPES))
    expires_in_seconds: Seconds | None = None


class KeyUpdate(BaseModel):
    """Changes to a key; omitted fields stay."""

    model_config = ConfigDict(strict=True, extra="forbid")

    scopes: Scopes | None = None
    expires_in_seconds: Seconds | None = None


class KeyRotation(BaseModel):
    """The grace period in which the old key stays valid, so that its users can be given the new one."""

    model_config = ConfigDict(strict=True, extra="forbid")

    grace_seconds: Annotated[int, Field(ge=0, le=MAX_GRACE_SECONDS)] = 0


class KeyOwner(BaseModel):
    """The owner of a key; always empty, because keys belong to their project (OpenAI's belong to users)."""

    type: None = None


class KeyObject(BaseModel):
    """A key, without its value."""

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
    """A newly created key; no other answer contains its value."""

    value: str


class KeyProject(BaseModel):
    """The project that a key opens."""

    id: str
    name: str


class OwnKeyObject(BaseModel):
    """The key that a request was made with, without its value, and its project's limits and usage."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    redacted_value: str
    scopes: list[str]
    created_at: int
    expires_at: int | None
    project: KeyProject
    limits: Limits
    usage: UsageObject


class KeyDeleted(BaseModel):
    """The confirmation that a key was revoked."""

    id: str
    object: Literal["organization.project.api_key.deleted"] = "organization.project.api_key.deleted"
    deleted: bool = True
