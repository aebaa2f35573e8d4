"""GET /v1/organization/audit_logs; for keys with the scope admin only."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from alignkit_server.audit.repository import AuditRepository, Wanted
from alignkit_server.dependencies import SessionDep
from alignkit_server.errors import documented
from alignkit_server.pagination import After, CursorListObject
from alignkit_server.tables import AuditLog

MAX_VALUES = 100

router = APIRouter(prefix="/v1/organization/audit_logs", tags=["projects"])


class AuditProject(BaseModel):
    """Whose thing it was, under the name that it had."""

    id: str
    name: str


class AuditServiceAccount(BaseModel):
    """The project of the key: here keys have no users."""

    id: str


class AuditKey(BaseModel):
    """The key that asked."""

    id: str
    type: Literal["service_account"] = "service_account"
    service_account: AuditServiceAccount


class AuditActor(BaseModel):
    """Who acted."""

    type: Literal["api_key"] = "api_key"
    api_key: AuditKey


class AuditLogObject(BaseModel):
    """An action. What it did is under the key that its type names, such as `api_key.created`."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: str
    effective_at: int
    project: AuditProject
    actor: AuditActor | None


def _values(name: str, what: str) -> Any:
    return Query(alias=f"{name}[]", max_length=MAX_VALUES, description=f"only {what}")


def _time(name: str) -> Any:
    return Query(alias=f"effective_at[{name}]", ge=0, le=2**40)


@router.get("", responses=documented(404))
def list_audit_logs(
    *,
    session: SessionDep,
    project_ids: Annotated[list[str], _values("project_ids", "of these projects")] = [],  # noqa: B006
    event_types: Annotated[list[str], _values("event_types", "of these types")] = [],  # noqa: B006
    actor_ids: Annotated[list[str], _values("actor_ids", "by these keys")] = [],  # noqa: B006
    actor_emails: Annotated[list[str], _values("actor_emails", "by these people; there are none")] = [],  # noqa: B006
    resource_ids: Annotated[list[str], _values("resource_ids", "on these things")] = [],  # noqa: B006
    gt: Annotated[int | None, _time("gt")] = None,
    gte: Annotated[int | None, _time("gte")] = None,
    lt: Annotated[int | None, _time("lt")] = None,
    lte: Annotated[int | None, _time("lte")] = None,
    after: After = None,
    before: Annotated[str | None, Query(description="id of the first object of the page after")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> CursorListObject[AuditLogObject]:
    """List what was done to keys, projects and permissions, and what was deleted, newest first."""
    times = {"gt": gt, "gte": gte, "lt": lt, "lte": lte}
    wanted = Wanted(
        project_ids=project_ids,
        event_types=event_types,
        actor_ids=actor_ids,
        actor_emails=actor_emails,
        resource_ids=resource_ids,
        times={name: value for name, value in times.items() if value is not None},
    )
    page = AuditRepository(session).page(wanted, after=after, before=before, limit=limit)
    return CursorListObject.of(page, _present)


def _present(row: AuditLog) -> AuditLogObject:
    actor = None
    if row.actor_key_id is not None:
        account = AuditServiceAccount(id=row.actor_project_id or "")
        actor = AuditActor(api_key=AuditKey(id=row.actor_key_id, service_account=account))
    return AuditLogObject(
        id=row.id,
        type=row.type,
        effective_at=row.effective_at,
        project=AuditProject(id=row.project_id, name=row.project_name),
        actor=actor,
        **{row.type: row.details},
    )
