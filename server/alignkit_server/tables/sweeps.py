"""Sweeps: one request for a job at every combination of some hyperparameters."""

from typing import Any

from sqlalchemy import JSON, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from alignkit_server.tables.base import Base, Owned


class Sweep(Owned, Base):
    """A sweep. Its points are ordinary jobs; `status` and `rung` change only under a lock of the row."""

    __tablename__ = "sweeps"
    __table_args__ = (Index("uq_sweeps_idempotency_key", "project_id", "idempotency_key", unique=True),)

    status: Mapped[str] = mapped_column(String(32), index=True)
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The request's fields as they are shown, without `sweep`."""
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The options that vary, and `halving`."""
    points: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """{"job": id, "values": {option: value}} of each combination, in order."""
    stopped: Mapped[dict[str, str]] = mapped_column(JSON)
    """Id of each job that was stopped at a rung -> why."""
    rung: Mapped[int]
    """Index of the rung at which jobs are compared next."""
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    finished_at: Mapped[int | None]
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    request_hash: Mapped[str | None] = mapped_column(String(64))
