"""Jobs, what they reported, and the checkpoints they made."""

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from alignkit_server.tables.base import Base, Owned


class Job(Owned, Base):
    """A fine-tuning job. `status` changes by compare-and-set only.

    `turn` counts the jobs of the whole service in the order in which they left the queue; null while one waits.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("uq_jobs_idempotency_key", "project_id", "idempotency_key", unique=True),
        Index("ix_jobs_project_id_turn", "project_id", "turn"),
        Index("ix_jobs_project_id_seq", "project_id", "seq"),
    )

    status: Mapped[str] = mapped_column(String(32), index=True)
    base_model: Mapped[str] = mapped_column(String(96))
    start_model: Mapped[str | None] = mapped_column(String(255))
    """The fine-tuned model that it trains on from; null where that is the base model itself."""
    training_file: Mapped[str] = mapped_column(String(64))
    validation_file: Mapped[str | None] = mapped_column(String(64))
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int]
    method_type: Mapped[str] = mapped_column(String(32))
    hyperparameters: Mapped[dict[str, Any]] = mapped_column(JSON)
    recipe: Mapped[dict[str, Any]] = mapped_column(JSON)
    labels: Mapped[dict[str, str] | None] = mapped_column("metadata", JSON(none_as_null=True))
    result_files: Mapped[list[str]] = mapped_column(JSON)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    fine_tuned_model: Mapped[str | None] = mapped_column(String(255))
    trained_tokens: Mapped[int | None]
    started_at: Mapped[int | None]
    """When it first began to run."""
    running_since: Mapped[int | None]
    """When it last began to run; null while it does not."""
    run_seconds: Mapped[int] = mapped_column(server_default="0")
    """For how long it has run, up to when it last stopped."""
    finished_at: Mapped[int | None]
    estimated_finish: Mapped[int | None]
    attempt: Mapped[int] = mapped_column(server_default="1")
    """Counts the times the job was put into the queue: once, and once more a resume."""
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    request_hash: Mapped[str | None] = mapped_column(String(64))
    turn: Mapped[int | None] = mapped_column(index=True, unique=True)


class Event(Owned, Base):
    """Something a job reported; `source_line` is its line in the run's own record, where it comes from there."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("job_id", "source_line"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    level: Mapped[str] = mapped_column(String(8))
    message: Mapped[str] = mapped_column(Text)
    type: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    source_line: Mapped[int | None]


class Checkpoint(Owned, Base):
    """A job's state at a step; it has a `model_name` once it is published."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    step: Mapped[int]
    model_name: Mapped[str | None] = mapped_column(String(255))
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)
    path: Mapped[str] = mapped_column(Text)
