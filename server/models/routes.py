"""/v1/models."""

from fastapi import APIRouter

from server.errors import documented
from server.models.schemas import ModelDeleted, ModelList, ModelObject
from server.models.service import ModelServiceDep

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", responses=documented())
def list_models(models: ModelServiceDep) -> ModelList:
    """List the base models and the project's fine-tuned ones."""
    return models.list()


@router.get("/{model:path}", responses=documented(404))
def retrieve_model(model: str, models: ModelServiceDep) -> ModelObject:
    """Retrieve a model."""
    return models.get(model)


@router.delete("/{model:path}", responses=documented(403, 404))
def delete_model(model: str, models: ModelServiceDep) -> ModelDeleted:
    """Delete a fine-tuned model."""
    return models.delete(model)
