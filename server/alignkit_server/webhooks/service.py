"""Webhook endpoints of a project: add, change, test, delete."""

from typing import Annotated

from fastapi import Depends
from sqlalchemy.orm import Session

from alignkit.errors import AlignkitError
from alignkit_server.audit.record import Audit
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
from alignkit_server.webhooks.sender import send
from alignkit_server.webhooks.signing import active_secrets, hint, new_secret
from alignkit_server.webhooks.targets import TargetError, check_url

MAX_ENDPOINTS = 20
DAY_SECONDS = 86400


class WebhookService:
    """The endpoints of one project."""

    def __init__(self, session: Session, project: Principal, services: Services) -> None:
        self._endpoints = EndpointRepository(session, project.project_id)
        self._private = services.settings.webhook_private_targets
        self._vault = services.vault
        self._audit = Audit(session, project)

    def create(self, request: EndpointRequest) -> EndpointWithSecret:
        """Add an endpoint; only this answer contains its secret."""
        check_url(request.url, private=self._private)
        if self._endpoints.count() >= MAX_ENDPOINTS:
            raise ApiError(400, f"The project already has {MAX_ENDPOINTS} webhook endpoints, the maximum.")
        created_at, secret = now(), new_secret()
        endpoint = Endpoint(
            id=new_id(WEBHOOK),
            name=request.name,
            url=request.url,
            event_types=list(request.event_types),
            secret=self._vault.seal(secret),
            created_at=created_at,
            updated_at=created_at,
        )
        self._endpoints.add(endpoint)
        self._audit.record("webhook_endpoint.created", endpoint.id, url=request.url)
        return self._with_secret(endpoint, secret)

    def list(self, query: PageQuery) -> CursorListObject[EndpointObject]:
        """A page of endpoints, newest first."""
        return CursorListObject.of(self._endpoints.list(query), self._present)

    def get(self, endpoint_id: str) -> EndpointObject:
        """One endpoint."""
        return self._present(self._endpoints.get(endpoint_id))

    def update(self, endpoint_id: str, request: EndpointUpdate) -> EndpointObject:
        """Change the given fields."""
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
            self._audit.record("webhook_endpoint.updated", endpoint_id, changes_requested=changes)
        return self._present(endpoint)

    def rotate(self, endpoint_id: str, *, keep_old: bool) -> EndpointWithSecret:
        """Replace the endpoint's secret; with `keep_old`, events are signed with both for a day."""
        endpoint = self._endpoints.get(endpoint_id)
        endpoint.old_secret = endpoint.secret if keep_old else None
        endpoint.old_secret_until = now() + DAY_SECONDS if keep_old else None
        secret = new_secret()
        self._audit.record("webhook_endpoint.secret_rotated", endpoint_id)
        endpoint.secret, endpoint.updated_at = self._vault.seal(secret), now()
        return self._with_secret(endpoint, secret)

    def delete(self, endpoint_id: str) -> EndpointDeleted:
        """Delete an endpoint and its undelivered events."""
        self._endpoints.delete(self._endpoints.get(endpoint_id))
        self._audit.record("webhook_endpoint.deleted", endpoint_id)
        return EndpointDeleted(id=endpoint_id)

    def _present(self, endpoint: Endpoint) -> EndpointObject:
        return EndpointObject(
            id=endpoint.id,
            created_at=endpoint.created_at,
            updated_at=endpoint.updated_at,
            name=endpoint.name,
            url=endpoint.url,
            event_types=endpoint.event_types,
            signing_secret_hint=hint(endpoint, self._vault),
        )

    def _with_secret(self, endpoint: Endpoint, secret: str) -> EndpointWithSecret:
        return EndpointWithSecret(signing_secret=secret, **self._present(endpoint).model_dump())


async def try_out(endpoint: Endpoint, event_type: str, services: Services) -> TestResult:
    """Send a sample event once, immediately. Raises 400 if the endpoint does not answer."""
    event_id = new_id(DELIVERY)
    payload = event(event_id, event_type, "ftjob-sample", now())
    private = services.settings.webhook_private_targets
    places = services.samples.of(endpoint.project_id)
    try:
        signing = active_secrets(endpoint, services.vault)
        async with places.sending:
            status = await send(endpoint.url, signing, payload, private=private, lookups=places.lookups)
    except AlignkitError as error:
        raise ApiError(
            400,
            f"No event can be signed for the endpoint {endpoint.id}: {error}. Rotate its secret.",
            code="secret_unreadable",
        ) from error
    except TargetError as error:
        raise ApiError(
            400, f"The endpoint {endpoint.url} does not answer: {error}.", code="webhook_unreachable"
        ) from error
    return TestResult(webhook_endpoint_id=endpoint.id, event_type=event_type, status_code=status)


async def get_service(session: SessionDep, project: ProjectDep, services: ServicesDep) -> WebhookService:
    """The service for one request."""
    return WebhookService(session, project, services)


WebhookServiceDep = Annotated[WebhookService, Depends(get_service)]
