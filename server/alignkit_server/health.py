"""/healthz and /readyz, which need no key."""

import sqlite3
import time
from typing import Literal

from anyio import CapacityLimiter, sleep, to_thread
from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from alignkit_server.dependencies import ServicesDep
from alignkit_server.errors import ApiError, ErrorEnvelope
from alignkit_server.services import JobRunner

QUEUE_SECONDS = 1.5
"""For which a probe waits for DBOS, which writes to the queue's database now and then."""
RETRY_SECONDS = 0.1

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The health of the service."""

    status: Literal["ok", "ready"]


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> Health:
    """Report that the process is up. Runs without a thread, so a flood of other requests cannot delay it."""
    return Health(status="ok")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": ErrorEnvelope, "description": "Not ready"}})
async def readyz(services: ServicesDep) -> Health:
    """Report whether the databases take writes, the disk has room and the job runner works.

    Uses its own threads, not the routes' pool.
    """
    try:
        await to_thread.run_sync(services.database.probe, limiter=services.probes)
    except SQLAlchemyError as error:
        raise _not_ready("The database does not answer, or cannot be written to.") from error
    if services.reserve.is_low():
        raise _not_ready("The disk is full.")
    if services.runner is None or not services.runner_started:
        raise _not_ready("The job runner is not started.")
    await _require_queue(services.runner, services.probes)
    return Health(status="ready")


async def _require_queue(runner: JobRunner, threads: CapacityLimiter) -> None:
    """Raise 503 if the queue's database takes no writes soon. Each try holds a thread, waiting none."""
    deadline = time.monotonic() + QUEUE_SECONDS
    while True:
        try:
            return await to_thread.run_sync(runner.probe, limiter=threads)
        except sqlite3.Error as error:
            if time.monotonic() > deadline:
                raise _not_ready("The queue's database does not answer, or cannot be written to.") from error
        await sleep(RETRY_SECONDS)


def _not_ready(message: str) -> ApiError:
    return ApiError(503, message, type="server_error", code="not_ready")
