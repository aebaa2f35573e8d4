"""Webhook endpoints of a project: add, change, try out, remove."""

from typing import Annotated

from fastapi import Depends
from sqlalchemy.orm import Session

from alignkit_server.clock import now
from alignkit_server.dependencies import ProjectDep, ServicesDep, SessionDep
from alignkit_server.errors import ApiError
from alignkit_server.ids import DELIVERY, WEBHOOK, new_id
from alignkit_server.keys.service import Principal
from alignkit_server.pagination import CursorListObject, PageQuery
from alignkit_server.services import Services
from alignkit_server.tables import Endpoint
from alignkit_server.webhooks.repository import EndpointRepository, event
from alignkit_server.webhooks.schemas import (
    EndpointDeleted,
    EndpointObject,
    EndpointRequest,
    EndpointUpdate,
    EndpointWithSecret,
    TestResult,
)
from alignkit_server.webhooks.sender import active_secrets, new_secret, send
from alignkit_server.webhooks.targets import TargetError, check_url

MAX_ENDPOINTS = 20
DAY_SECONDS = 86400


class WebhookService:
    """The endpoints of one project."""

    def __init__(self, session: Session, project: Principal, services: Services) -> None:
        self._endpoints = EndpointRepository(session, project.project_id)
        self._private = services.settings.webhook_private_targets

    def create(self, request: EndpointRequest) -> EndpointWithSecret:
        """Add an endpoint; its secret is shown in this answer only."""
        check_url(request.url, private=self._private)
        if self._endpoints.count() >= MAX_ENDPOINTS:
            raise ApiError(400, f"The project has {MAX_ENDPOINTS} webhook endpoints, which is the most.")
        created_at = now()
        endpoint = Endpoint(
            id=new_id(WEBHOOK),
            name=request.name,
            url=request.url,
            event_types=list(request.event_types),
            secret=new_secret(),
            created_at=created_at,
            updated_at=created_at,
        )
        self._endpoints.add(endpoint)
        return _with_secret(endpoint)

    def list(self, query: PageQuery) -> CursorListObject[EndpointObject]:
        """A page of endpoints, newest first."""
        return CursorListObject.of(self._endpoints.list(query), _present)

    def get(self, endpoint_id: str) -> EndpointObject:
        """One endpoint."""
        return _present(self._endpoints.get(endpoint_id))

    def update(self, endpoint_id: str, request: EndpointUpdate) -> EndpointObject:
        """Change what is given."""
        endpoint = self._endpoints.get(endpoint_id)
        if request.url is not None:
            check_url(request.url, private=self._private)
        changes = {
            name: value
            for name, value in request.model_dump(exclude_none=True).items()
            if getattr(endpoint, name) != value
        }
        for name, value in changes.items():
            setattr(endpoint, name, value)
        if changes:
            endpoint.updated_at = now()
        return _present(endpoint)

    def rotate(self, endpoint_id: str, *, keep_old: bool) -> EndpointWithSecret:
        """Give the endpoint a new secret; where `keep_old`, events are signed with both for a day."""
        endpoint = self._endpoints.get(endpoint_id)
        endpoint.old_secret = endpoint.secret if keep_old else None
        endpoint.old_secret_until = now() + DAY_SECONDS if keep_old else None
        endpoint.secret, endpoint.updated_at = new_secret(), now()
        return _with_secret(endpoint)

    def delete(self, endpoint_id: str) -> EndpointDeleted:
        """Remove an endpoint, and what is still on its way to it."""
        self._endpoints.delete(self._endpoints.get(endpoint_id))
        return EndpointDeleted(id=endpoint_id)


async def try_out(endpoint: Endpoint, event_type: str, services: Services) -> TestResult:
    """Send a sample, now and once; 400 where the endpoint does not answer at all."""
    event_id = new_id(DELIVERY)
    payload = event(event_id, event_type, "ftjob-sample", now())
    private = services.settings.webhook_private_targets
    places = services.samples.of(endpoint.project_id)
    try:
        async with places.sending:
            status = await send(
                endpoint.url, active_secrets(endpoint), payload, private=private, lookups=places.lookups
            )
    except TargetError as error:
        raise ApiError(
            400, f"The endpoint {endpoint.url} does not answer: {error}.", code="webhook_unreachable"
        ) from error
    return TestResult(webhook_endpoint_id=endpoint.id, event_type=event_type, status_code=status)


def _present(endpoint: Endpoint) -> EndpointObject:
    return EndpointObject(
        id=endpoint.id,
        created_at=endpoint.created_at,
        updated_at=endpoint.updated_at,
        name=endpoint.name,
        url=endpoint.url,
        event_types=endpoint.event_types,
        signing_secret_hint=f"whsec_…{endpoint.secret[-4:]}",
    )


def _with_secret(endpoint: Endpoint) -> EndpointWithSecret:
    return EndpointWithSecret(signing_secret=endpoint.secret, **_present(endpoint).model_dump())


async def get_service(session: SessionDep, project: ProjectDep, services: ServicesDep) -> WebhookService:
    """The service for one request."""
    return WebhookService(session, project, services)


WebhookServiceDep = Annotated[WebhookService, Depends(get_service)]
