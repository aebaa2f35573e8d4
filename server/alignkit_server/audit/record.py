"""Writes to the audit log, in the transaction of the action itself, so that neither is without the other."""

from typing import Annotated, Any, Literal

from fastapi import Depends
from sqlalchemy.orm import Session

from alignkit_server.clock import now
from alignkit_server.dependencies import ProjectDep, SessionDep
from alignkit_server.ids import AUDIT, new_id
from alignkit_server.keys.service import Principal
from alignkit_server.tables import AuditLog

Action = Literal[
    "api_key.created",
    "api_key.updated",
    "api_key.deleted",
    "project.created",
    "project.updated",
    "checkpoint.permission.created",
    "checkpoint.permission.deleted",
    # not OpenAI's
    "file.deleted",
    "upload.cancelled",
    "model.deleted",
    "job.pruned",
    "eval.deleted",
    "eval.run.deleted",
    "webhook_endpoint.created",
    "webhook_endpoint.updated",
    "webhook_endpoint.secret_rotated",
    "webhook_endpoint.deleted",
]
"""The recorded actions, under OpenAI's names if it has one."""


def add_entry(
    session: Session,
    actor: Principal | None,
    project: tuple[str, str],
    action: Action,
    resource_id: str,
    **details: Any,
) -> None:
    """Record what `actor`, or the service itself, does to a thing of that project, given by its id and name."""
    session.add(
        AuditLog(
            id=new_id(AUDIT),
            effective_at=now(),
            type=action,
            project_id=project[0],
            project_name=project[1],
            actor_key_id=actor.key_id if actor else None,
            actor_project_id=actor.project_id if actor else None,
            resource_id=resource_id,
            details={"id": resource_id} | details,
        )
    )


class Audit:
    """Records what one key does."""

    def __init__(self, session: Session, actor: Principal) -> None:
        self._session = session
        self._actor = actor

    def record(self, action: Action, resource_id: str, **details: Any) -> None:
        """Record an action on a thing of the actor's own project; `details` are shown beside the thing's id."""
        self.record_in(self._actor.project_id, self._actor.project_name, action, resource_id, **details)

    def record_in(
        self, project_id: str, project_name: str, action: Action, resource_id: str, **details: Any
    ) -> None:
        """Record an action on a thing of that project."""
        add_entry(self._session, self._actor, (project_id, project_name), action, resource_id, **details)


async def get_audit(session: SessionDep, actor: ProjectDep) -> Audit:
    """The log for one request."""
    return Audit(session, actor)


AuditDep = Annotated[Audit, Depends(get_audit)]
