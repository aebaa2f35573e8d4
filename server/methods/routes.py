"""/v1/fine_tuning/methods."""

from fastapi import APIRouter

from alignkit.methods import METHODS
from server.dependencies import ProjectDep
from server.errors import documented
from server.methods.schemas import MethodDescription, MethodList

router = APIRouter(prefix="/v1/fine_tuning/methods", tags=["fine-tuning"])


@router.get("", responses=documented())
def list_methods(_: ProjectDep) -> MethodList:
    """List the methods with their hyperparameters, by the very schema that checks those of a job."""
    return MethodList(
        data=[
            MethodDescription(id=name, hyperparameters=method.hyperparameters.model_json_schema())
            for name, method in METHODS.items()
        ]
    )
