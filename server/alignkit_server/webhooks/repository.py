"""Queries on webhook endpoints and their deliveries."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from alignkit_server.clock import now
from alignkit_server.ids import DELIVERY, new_id
from alignkit_server.pagination import Page, PageQuery
from alignkit_server.scoped import ScopedRepository
from alignkit_server.tables import Delivery, Endpoint, Job

PENDING = "pending"


class EndpointRepository(ScopedRepository[Endpoint]):
    """One project's endpoints."""

    table = Endpoint
    kind = "webhook endpoint"

    def list(self, query: PageQuery) -> Page[Endpoint]:
        """A page of the endpoints."""
        return self.page(self.select(), query)

    def all(self) -> Sequence[Endpoint]:
        """All endpoints."""
        return self._session.scalars(self.select()).all()

    def count(self) -> int:
        """Number of endpoints."""
        return self._session.scalar(select(func.count()).select_from(self.select().subquery())) or 0


def announce(session: Session, job: Job, status: str) -> None:
    """Store an event about the end of `job` for every endpoint that subscribed to it.

    Call it in the transaction that ends the job, so that neither exists without the other, whatever crashes.
    """
    event_type = f"fine_tuning.job.{status}"
    for endpoint in EndpointRepository(session, job.project_id).all():
        if event_type in endpoint.event_types:
            session.add(_delivery(endpoint, job, event_type))


def _delivery(endpoint: Endpoint, job: Job, event_type: str) -> Delivery:
    event_id, created_at = new_id(DELIVERY), now()
    return Delivery(
        id=event_id,
        project_id=job.project_id,
        created_at=created_at,
        endpoint_id=endpoint.id,
        job_id=job.id,
        event_type=event_type,
        payload=event(event_id, event_type, job.id, created_at),
        status=PENDING,
        attempts=0,
    )


def event(event_id: str, event_type: str, job_id: str, created_at: int) -> dict[str, object]:
    """An event in OpenAI's form."""
    return {
        "id": event_id,
        "object": "event",
        "created_at": created_at,
        "type": event_type,
        "data": {"id": job_id},
    }
