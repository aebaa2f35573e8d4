"""Whether an unfinished job still needs a file or a model."""

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from alignkit_server.job_status import UNFINISHED
from alignkit_server.tables import Job


def unfinished_job(session: Session, project_id: str, which: ColumnElement[bool]) -> str | None:
    """The id of an unfinished job of the project that satisfies `which`, or None."""
    query = select(Job.id).where(Job.project_id == project_id, Job.status.in_(UNFINISHED), which)
    return session.scalar(query.limit(1))
