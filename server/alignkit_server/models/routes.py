"""/v1/models."""

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from alignkit_server.errors import documented
from alignkit_server.models.schemas import ModelDeleted, ModelList, ModelObject
from alignkit_server.models.service import ModelServiceDep

TAR = "application/x-tar"
TAR_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {TAR: {"schema": {"type": "string", "format": "binary"}}}}
}
router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", responses=documented())
def list_models(models: ModelServiceDep) -> ModelList:
    """List the base models, and the fine-tuned models that the project may use."""
    return models.list()


@router.get("/{model:path}/archive", responses=documented(403, 404) | TAR_RESPONSE, response_class=Response)
def download_model(model: str, models: ModelServiceDep) -> StreamingResponse:
    """Download the files of a fine-tuned model as a tar archive."""
    archive = models.archive(model)
    headers = {
        "content-length": str(archive.size),
        "content-disposition": f"attachment; filename*=UTF-8''{quote(model, safe='')}.tar",
    }
    return StreamingResponse(archive.chunks(), media_type=TAR, headers=headers)


@router.get("/{model:path}", responses=documented(404))
def retrieve_model(model: str, models: ModelServiceDep) -> ModelObject:
    """Retrieve a model."""
    return models.get(model)


@router.delete("/{model:path}", responses=documented(403, 404, 409))
def delete_model(model: str, models: ModelServiceDep) -> ModelDeleted:
    """Delete a fine-tuned model."""
    return models.delete(model)
