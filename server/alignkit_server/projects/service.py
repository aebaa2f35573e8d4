"""Management of projects and keys by admins. A key's value is returned only once, when it is created."""

from collections.abc import Sequence
from typing import Annotated, Any

import structlog
from fastapi import Depends

from alignkit_server.audit.record import Action, AuditDep
from alignkit_server.clock import now
from alignkit_server.database import after_commit
from alignkit_server.dependencies import ProjectDep, ServicesDep, SessionDep
from alignkit_server.errors import ApiError
from alignkit_server.ids import PROJECT, new_id
from alignkit_server.keys.repository import ProjectKeyRepository
from alignkit_server.keys.service import new_key
from alignkit_server.limits.quotas import limits_of
from alignkit_server.limits.repository import UsageRepository
from alignkit_server.pagination import CursorListObject, PageQuery
from alignkit_server.projects.repository import ProjectRepository
from alignkit_server.projects.schemas import (
    KeyDeleted,
    KeyObject,
    KeyProject,
    KeyRequest,
    KeyRotation,
    KeyUpdate,
    NewKeyObject,
    OwnKeyObject,
    ProjectLimits,
    ProjectObject,
    UsageObject,
)
from alignkit_server.tables import ApiKey, Project

log = structlog.get_logger()


class ProjectService:
    """All projects and their limits."""

    def __init__(self, session: SessionDep, services: ServicesDep, audit: AuditDep) -> None:
        self._session = session
        self._audit = audit
        self._defaults = services.settings.limits
        self._projects = ProjectRepository(session)

    def create(self, name: str) -> ProjectObject:
        """Create a project. Raises 409 if the name is taken."""
        project = Project(id=new_id(PROJECT), name=name, created_at=now())
        self._projects.add(project)
        data = {"name": name, "title": name}
        self._audit.record_in(project.id, name, "project.created", project.id, data=data)
        return self._present(project)

    def list(self, query: PageQuery) -> CursorListObject[ProjectObject]:
        """A page of projects, newest first."""
        return CursorListObject.of(self._projects.page(query), self._present)

    def get(self, project_id: str) -> ProjectObject:
        """One project."""
        return self._present(self._projects.get(project_id))

    def limit(self, project_id: str, changes: ProjectLimits) -> ProjectObject:
        """Change the project's own limits."""
        project = self._projects.lock(project_id)
        changed = (project.limits or {}) | changes.model_dump(exclude_unset=True)
        project.limits = {name: value for name, value in changed.items() if value is not None}
        requested = {"limits": changes.model_dump(exclude_unset=True)}
        self._audit.record_in(
            project_id, project.name, "project.updated", project_id, changes_requested=requested
        )
        self._session.flush()
        return self._present(project)

    def _present(self, project: Project) -> ProjectObject:
        usage = UsageRepository(self._session, project.id).usage()
        return ProjectObject(
            id=project.id,
            name=project.name,
            created_at=project.created_at,
            limits=limits_of(project.limits or {}, self._defaults),
            usage=UsageObject.model_validate(usage, from_attributes=True),
        )


class KeyService:
    """The keys of one project. Raises 404 if the project does not exist."""

    def __init__(self, project_id: str, session: SessionDep, audit: AuditDep) -> None:
        self._session = session
        self._audit = audit
        self._project = ProjectRepository(session).get(project_id)
        self._keys = ProjectKeyRepository(session, project_id)

    def create(self, request: KeyRequest) -> NewKeyObject:
        """Create a key."""
        return self._issue(request.name, request.scopes, _expiry(request.expires_in_seconds))

    def list(self, query: PageQuery) -> CursorListObject[KeyObject]:
        """A page of keys, newest first."""
        return CursorListObject.of(self._keys.list(query), lambda key: KeyObject(**_fields(key)))

    def get(self, key_id: str) -> KeyObject:
        """One key."""
        return KeyObject(**_fields(self._keys.get(key_id)))

    def update(self, key_id: str, changes: KeyUpdate) -> KeyObject:
        """Change a key's scopes or expiry."""
        key = self._unexpired(key_id)
        if changes.scopes is not None:
            key.scopes = list(changes.scopes)
        if changes.expires_in_seconds is not None:
            key.expires_at = _expiry(changes.expires_in_seconds)
        self._record("api_key.updated", key_id, changes_requested=changes.model_dump(exclude_unset=True))
        self._session.flush()
        return KeyObject(**_fields(key))

    def rotate(self, key_id: str, rotation: KeyRotation) -> NewKeyObject:
        """Create a key with the same scopes and expiry; the old key expires after the grace period."""
        old = self._unexpired(key_id)
        new = self._issue(old.name, old.scopes, old.expires_at)
        end = now() + rotation.grace_seconds
        old.expires_at = end if old.expires_at is None else min(old.expires_at, end)
        requested = {"expires_in_seconds": old.expires_at - now()}
        self._record("api_key.updated", key_id, changes_requested=requested)
        self._session.flush()
        return new

    def delete(self, key_id: str) -> KeyDeleted:
        """Revoke a key: it is invalid from the next request on."""
        self._keys.delete(self._keys.get(key_id))
        self._record("api_key.deleted", key_id)
        after_commit(self._session, lambda: log.info("key revoked", key_id=key_id))
        return KeyDeleted(id=key_id)

    def _issue(self, name: str, scopes: Sequence[str], expires_at: int | None) -> NewKeyObject:
        key, token = new_key(name, scopes, expires_at)
        self._keys.add(key)
        self._record("api_key.created", key.id, data={"scopes": list(scopes)})
        log.info("key created", key_id=key.id, project=self._project.name, scopes=key.scopes)
        return NewKeyObject(**_fields(key), value=token)

    def _record(self, action: Action, key_id: str, **details: Any) -> None:
        self._audit.record_in(self._project.id, self._project.name, action, key_id, **details)

    def _unexpired(self, key_id: str) -> ApiKey:
        key = self._keys.get(key_id)
        if key.expires_at is not None and key.expires_at <= now():
            raise ApiError(
                400, f"The key {key_id} has expired: create a new one.", param="key_id", code="key_expired"
            )
        return key


class OwnKeyService:
    """The key of a request, as its holder may see it."""

    def __init__(self, session: SessionDep, services: ServicesDep, principal: ProjectDep) -> None:
        self._session = session
        self._defaults = services.settings.limits
        self._principal = principal

    def get(self) -> OwnKeyObject:
        """The key, its project, and the limits and usage that requests with it count against."""
        principal = self._principal
        key = ProjectKeyRepository(self._session, principal.project_id).get(principal.key_id)
        usage = UsageRepository(self._session, principal.project_id).usage()
        fields = _fields(key)
        return OwnKeyObject(
            **{name: fields[name] for name in OwnKeyObject.model_fields if name in fields},
            project=KeyProject(id=principal.project_id, name=principal.project_name),
            limits=limits_of(principal.limits, self._defaults),
            usage=UsageObject.model_validate(usage, from_attributes=True),
        )


def _expiry(seconds: int | None) -> int | None:
    return None if seconds is None else now() + seconds


def _fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "redacted_value": f"sk-…{key.hint}",
        "scopes": key.scopes,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
    }


ProjectServiceDep = Annotated[ProjectService, Depends()]
KeyServiceDep = Annotated[KeyService, Depends()]
OwnKeyServiceDep = Annotated[OwnKeyService, Depends()]
