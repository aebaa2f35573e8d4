"""Models of a project: list, delete."""

from typing import Annotated

from fastapi import Depends
from sqlalchemy.orm import Session

from alignkit_server.audit.record import Audit
from alignkit_server.catalog.model_catalog import BASE, ResolvedModel, fine_tuned
from alignkit_server.catalog.repository import ModelRepository, UsableModels
from alignkit_server.database import after_commit
from alignkit_server.dependencies import ProjectDep, ServicesDep, SessionDep
from alignkit_server.errors import ApiError, in_use
from alignkit_server.keys.service import Principal
from alignkit_server.models.schemas import ModelDeleted, ModelList, ModelObject
from alignkit_server.services import Services


class ModelService:
    """The models that one project may use."""

    def __init__(self, session: Session, project: Principal, services: Services) -> None:
        self._session = session
        self._project = project
        self._services = services
        self._models = ModelRepository(session, project.project_id)
        self._usable = UsableModels(session, project.project_id)

    def list(self) -> ModelList:
        """Base models first, then the fine-tuned models that the project may use, newest first."""
        catalog = self._services.catalog
        bases = [base for name in catalog.bases() if (base := catalog.base(name))]
        tuned = [
            ResolvedModel(row.name, row.base_model, row.kind, row.created_at, owner)
            for row, _, owner in self._usable.ready()
        ]
        return ModelList(data=[_present(model) for model in (*bases, *tuned)])

    def get(self, name: str) -> ModelObject:
        """One model. Raises 404 if it is missing or not ready."""
        return _present(self._find(name))

    def delete(self, name: str) -> ModelDeleted:
        """Delete a fine-tuned model and take it out of serving.

        Raises 403 for a base model or another project's model, 409 while an unfinished job needs it.
        """
        model = self._find(name)
        if model.kind == BASE:
            raise ApiError(
                403,
                f"{name!r} is a base model of this service: only fine-tuned models can be deleted.",
                param="model",
            )
        found = self._models.by_name(name)
        if found is None:
            raise ApiError(
                403,
                f"{name!r} belongs to the project {model.owner}, and only that project can delete it.",
                param="model",
            )
        self._models.lock(name)
        job_id = self._models.user_of(name)
        if job_id is not None:
            raise in_use("model", repr(name), job_id, param="model")
        made_by, step = found.model.job_id, found.model.step
        self._models.delete(found.model)
        Audit(self._session, self._project).record("model.deleted", name, job_id=made_by)
        after_commit(self._session, lambda: self._services.unpublish(name, model.base_model, made_by, step))
        return ModelDeleted(id=name)

    def _find(self, name: str) -> ResolvedModel:
        base = self._services.catalog.base(name)
        return base or fine_tuned(self._session, name, self._project.project_id)


def _present(model: ResolvedModel) -> ModelObject:
    return ModelObject(
        id=model.name,
        created=model.created_at,
        owned_by=model.owner,
        parent=None if model.kind == BASE else model.base_model,
        kind=model.kind,
    )


async def get_service(session: SessionDep, project: ProjectDep, services: ServicesDep) -> ModelService:
    """The service for one request."""
    return ModelService(session, project, services)


ModelServiceDep = Annotated[ModelService, Depends(get_service)]
