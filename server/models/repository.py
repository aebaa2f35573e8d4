"""Queries on fine-tuned models."""

from collections.abc import Sequence

from sqlalchemy import select

from server.jobs.tables import Job
from server.models.tables import FineTunedModel
from server.scoped import ScopedRepository


class ModelRepository(ScopedRepository[FineTunedModel]):
    """One project's fine-tuned models."""

    table = FineTunedModel
    kind = "model"

    def ready(self) -> Sequence[FineTunedModel]:
        """The models of jobs that succeeded, newest first."""
        done = select(Job.id).where(Job.status == "succeeded")
        query = self.select().where(FineTunedModel.job_id.in_(done))
        return self._session.scalars(query.order_by(FineTunedModel.seq.desc())).all()

    def by_name(self, name: str) -> tuple[FineTunedModel, str] | None:
        """The model of that name and its job's status."""
        query = self.select().add_columns(Job.status).join(Job, FineTunedModel.job_id == Job.id)
        found = self._session.execute(query.where(FineTunedModel.name == name)).one_or_none()
        return None if found is None else (found[0], found[1])
