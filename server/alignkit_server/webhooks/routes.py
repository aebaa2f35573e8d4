"""/v1/webhook_endpoints and /v1/webhook_event_types."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query

from alignkit_server.dependencies import ProjectDep, ServicesDep
from alignkit_server.errors import documented
from alignkit_server.limits.turns import end_turn
from alignkit_server.pagination import After, CursorListObject, PageQuery
from alignkit_server.tables import Endpoint
from alignkit_server.webhooks.repository import EndpointRepository
from alignkit_server.webhooks.schemas import (
    EVENT_TYPES,
    EndpointDeleted,
    EndpointObject,
    EndpointRequest,
    EndpointUpdate,
    EndpointWithSecret,
    EventTypeList,
    RotateRequest,
    TestRequest,
    TestResult,
)
from alignkit_server.webhooks.service import WebhookServiceDep, try_out

router = APIRouter(prefix="/v1", tags=["webhooks"])


@router.get("/webhook_event_types", responses=documented())
def list_webhook_event_types(_: ProjectDep) -> EventTypeList:
    """List the events that an endpoint can subscribe to."""
    return EventTypeList(data=list(EVENT_TYPES))


@router.post("/webhook_endpoints", responses=documented())
def create_webhook_endpoint(body: EndpointRequest, webhooks: WebhookServiceDep) -> EndpointWithSecret:
    """Add a URL that receives the project's events. Only this answer contains the signing secret."""
    return webhooks.create(body)


@router.get("/webhook_endpoints", responses=documented(404))
def list_webhook_endpoints(
    webhooks: WebhookServiceDep, after: After = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> CursorListObject[EndpointObject]:
    """List the project's endpoints, newest first."""
    return webhooks.list(PageQuery(after, limit))


@router.get("/webhook_endpoints/{endpoint_id}", responses=documented(404))
def retrieve_webhook_endpoint(endpoint_id: str, webhooks: WebhookServiceDep) -> EndpointObject:
    """Retrieve an endpoint."""
    return webhooks.get(endpoint_id)


@router.post("/webhook_endpoints/{endpoint_id}", responses=documented(404))
def update_webhook_endpoint(
    endpoint_id: str, body: EndpointUpdate, webhooks: WebhookServiceDep
) -> EndpointObject:
    """Change an endpoint."""
    return webhooks.update(endpoint_id, body)


@router.delete("/webhook_endpoints/{endpoint_id}", responses=documented(404))
def delete_webhook_endpoint(endpoint_id: str, webhooks: WebhookServiceDep) -> EndpointDeleted:
    """Delete an endpoint and its undelivered events."""
    return webhooks.delete(endpoint_id)


@router.post("/webhook_endpoints/{endpoint_id}/rotate_secret", responses=documented(404))
def rotate_webhook_secret(
    endpoint_id: str, webhooks: WebhookServiceDep, body: RotateRequest | None = None
) -> EndpointWithSecret:
    """Replace an endpoint's signing secret. Only this answer contains the new one."""
    keep_old = body is not None and body.keep_old_secret_active_for_24_hours
    return webhooks.rotate(endpoint_id, keep_old=keep_old)


@router.post("/webhook_endpoints/{endpoint_id}/test", responses=documented(404))
async def try_webhook_endpoint(
    endpoint_id: str, body: TestRequest, project: ProjectDep, services: ServicesDep
) -> TestResult:
    """Send a sample event and return the endpoint's answer. No database transaction is open meanwhile."""

    def find() -> Endpoint:
        with services.database.reading() as session:
            return EndpointRepository(session, project.project_id).get(endpoint_id)

    endpoint = await to_thread.run_sync(find)
    end_turn()
    return await try_out(endpoint, body.event_type, services)
