"""/v1/fine_tuning/methods."""

from typing import Any

from fastapi import APIRouter

from alignkit.methods import METHODS, Method, hyperparameters_of
from alignkit_server.dependencies import ProjectDep, ServicesDep
from alignkit_server.errors import documented
from alignkit_server.methods.schemas import MethodDescription, MethodList

router = APIRouter(prefix="/v1/fine_tuning/methods", tags=["fine-tuning"])


@router.get("", responses=documented())
def list_methods(_: ProjectDep, services: ServicesDep) -> MethodList:
    """List the methods with their hyperparameters, by the very schema that checks those of a job."""
    most = services.settings.engine.max_lora_rank
    return MethodList(
        data=[
            MethodDescription(
                id=name, description=method.summary(), rows=method.rows, hyperparameters=_schema(method, most)
            )
            for name, method in METHODS.items()
        ]
    )


def _schema(method: type[Method], max_lora_rank: int) -> dict[str, Any]:
    """The method's schema, within what this server's engine takes."""
    schema = hyperparameters_of(method).model_json_schema()
    rank = schema["properties"]["lora_rank"]
    rank["maximum"] = min(rank["maximum"], max_lora_rank)
    return schema
