"""Queries on fine-tuned models."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Select, or_, select

from alignkit.methods import METHODS, names_of_models
from alignkit_server.in_use import in_terms, unfinished_job
from alignkit_server.scoped import ScopedRepository
from alignkit_server.tables import FineTunedModel, Job, Permission, Project


class FoundModel(NamedTuple):
    """A model, its job's status, and the name of the project that made it."""

    model: FineTunedModel
    status: str
    owner: str


class ModelRepository(ScopedRepository[FineTunedModel]):
    """One project's fine-tuned models."""

    table = FineTunedModel
    kind = "model"

    def by_name(self, name: str) -> FoundModel | None:
        """The model with that name, or None."""
        found = self._session.execute(_described(self.select()).where(FineTunedModel.name == name))
        row = found.one_or_none()
        return None if row is None else FoundModel(*row)

    def lock(self, name: str) -> FineTunedModel | None:
        """The model, locked until the end of the transaction against deletion and use by others."""
        return self._session.scalar(self.select().where(FineTunedModel.name == name).with_for_update())

    def user_of(self, name: str) -> str | None:
        """The id of an unfinished job that starts from the model or uses it as teacher, or None."""
        named = {option for method in METHODS.values() for option in names_of_models(method)}
        by_name = (Job.hyperparameters[option].as_string() == name for option in sorted(named))
        return unfinished_job(
            self._session, self._project_id, or_(Job.start_model == name, in_terms(name), *by_name)
        )


class UsableModels(ModelRepository):
    """The models that one project may use: its own, and those it has permission for."""

    def select(self) -> Select[FineTunedModel]:
        """A query for the models that the project may use."""
        permitted = select(Permission.model_id).where(Permission.grantee_id == self._project_id)
        own = FineTunedModel.project_id == self._project_id
        return select(FineTunedModel).where(or_(own, FineTunedModel.id.in_(permitted)))

    def ready(self) -> Sequence[FoundModel]:
        """The models of succeeded jobs, newest first."""
        query = _described(self.select()).where(Job.status == "succeeded")
        rows = self._session.execute(query.order_by(FineTunedModel.seq.desc()))
        return [FoundModel(*row) for row in rows]


def _described(statement: Select[FineTunedModel]) -> Select[FineTunedModel, str, str]:
    return (
        statement.add_columns(Job.status, Project.name)
        .join(Job, FineTunedModel.job_id == Job.id)
        .join(Project, FineTunedModel.project_id == Project.id)
    )
