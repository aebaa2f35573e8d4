"""A project's webhook endpoints, and the events to deliver to them."""

from typing import Any

from sqlalchemy import JSON, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from alignkit_server.tables.base import Base, Owned


class Endpoint(Owned, Base):
    """A URL that receives events. Its secrets are sealed; see `alignkit_server.webhooks.signing`."""

    __tablename__ = "webhook_endpoints"

    name: Mapped[str] = mapped_column(String(255))
    url: Mapped[str] = mapped_column(Text)
    event_types: Mapped[list[str]] = mapped_column(JSON)
    secret: Mapped[str] = mapped_column(Text)
    old_secret: Mapped[str | None] = mapped_column(Text)
    old_secret_until: Mapped[int | None]
    updated_at: Mapped[int]


class Delivery(Owned, Base):
    """An event to deliver to an endpoint, stored in the same transaction as the change that it reports."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (UniqueConstraint("endpoint_id", "job_id", "event_type"),)

    endpoint_id: Mapped[str] = mapped_column(
        ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), index=True
    )
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    event_type: Mapped[str] = mapped_column(String(64))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(String(16), index=True)
    """pending, delivered or given_up."""
    attempts: Mapped[int]
    last_answer: Mapped[str | None] = mapped_column(Text)
    """The result of the last attempt, in words."""
