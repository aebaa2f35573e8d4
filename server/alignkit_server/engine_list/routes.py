"""GET /v1/organization/engines; for keys with the scope admin only."""

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from alignkit_server.engines.facts import EngineFacts, EngineState
from alignkit_server.errors import documented

router = APIRouter(prefix="/v1/organization/engines", tags=["projects"])


class EngineObject(BaseModel):
    """A vLLM engine of the server that answers; other servers have their own."""

    id: str = Field(description="name of the model that it serves, with the model's adapters")
    object: Literal["organization.engine"] = "organization.engine"
    status: EngineState = Field(
        description="external: another program runs it at an address of ALIGNKIT_ENGINE__URLS; sleeping: its weights "
        "wait in the server's memory, and not on the GPU"
    )
    in_use: int = Field(description="requests and jobs that use it now")
    error: str | None = Field(description="why its last start failed")


class EngineList(BaseModel):
    """Every engine that was asked for since the server started, by name."""

    object: Literal["list"] = "list"
    data: list[EngineObject]


@router.get("", responses=documented())
def list_engines(request: Request) -> EngineList:
    """List the engines of this server with their states."""
    engines: list[EngineFacts] = request.app.state.engine_facts()
    return EngineList(
        data=[
            EngineObject(id=one.model, status=one.status, in_use=one.in_use, error=one.error)
            for one in engines
        ]
    )
