"""Whether an unfinished job still needs a file or a model."""

from sqlalchemy import ColumnElement, literal, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from alignkit.methods.hyperparameters import TERMS
from alignkit_server.job_status import UNFINISHED
from alignkit_server.tables import Job


def unfinished_job(session: Session, project_id: str, which: ColumnElement[bool]) -> str | None:
    """The id of an unfinished job of the project that satisfies `which`, or None."""
    query = select(Job.id).where(Job.project_id == project_id, Job.status.in_(UNFINISHED), which)
    return session.scalar(query.limit(1))


def in_terms(name: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Whether a job's terms name the model or file of that name or id, which may be a column."""
    given = Job.hyperparameters[TERMS].as_string()
    if isinstance(name, str):
        return given.contains(f'"{name}"', autoescape=True)
    return given.contains(literal('"') + name + literal('"'))


def uses_file(file_id: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Whether a job reads the file: as its training or validation file, or for a term."""
    return or_(Job.training_file == file_id, Job.validation_file == file_id, in_terms(file_id))
