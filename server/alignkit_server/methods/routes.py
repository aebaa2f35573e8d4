"""/v1/fine_tuning/methods."""

from typing import Any

from fastapi import APIRouter

from alignkit import terms
from alignkit.methods import METHODS, Method, hyperparameters_of
from alignkit_server.dependencies import ProjectDep, ServicesDep
from alignkit_server.errors import documented
from alignkit_server.methods.schemas import MethodDescription, MethodList

router = APIRouter(prefix="/v1/fine_tuning/methods", tags=["fine-tuning"])


@router.get("", responses=documented())
def list_methods(_: ProjectDep, services: ServicesDep) -> MethodList:
    """List the methods and their hyperparameters, with the schemas that jobs are checked against."""
    most = services.settings.engine.max_lora_rank
    return MethodList(
        data=[
            MethodDescription(
                id=name,
                description=method.summary(),
                rows=method.rows,
                hyperparameters=_schema(method, most),
                terms=list(terms.fitting(method)),
            )
            for name, method in METHODS.items()
        ]
    )


def _schema(method: type[Method], max_lora_rank: int) -> dict[str, Any]:
    """The method's schema, restricted to what this server's engine supports."""
    schema = hyperparameters_of(method).model_json_schema()
    rank = schema["properties"]["lora_rank"]
    rank["maximum"] = min(rank["maximum"], max_lora_rank)
    return schema
