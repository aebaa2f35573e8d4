"""/healthz and /readyz: the only answers without a key."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from alignkit_server.dependencies import ServicesDep
from alignkit_server.errors import ApiError, ErrorEnvelope

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """How the service is."""

    status: Literal["ok", "ready"]


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
def healthz() -> Health:
    """Say that the process is up."""
    return Health(status="ok")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": ErrorEnvelope, "description": "Not ready"}})
def readyz(services: ServicesDep) -> Health:
    """Say whether the database answers and jobs are worked on."""
    try:
        with services.database.reading() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError as error:
        raise _not_ready("The database does not answer.") from error
    if not services.runner_started:
        raise _not_ready("The job runner is not started.")
    return Health(status="ready")


def _not_ready(message: str) -> ApiError:
    return ApiError(503, message, type="server_error", code="not_ready")
