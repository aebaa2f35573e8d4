"""Jobs, their events, and their checkpoints."""

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from alignkit_server.tables.base import Base, Owned


class Job(Owned, Base):
    """A fine-tuning job. `status` changes only by compare-and-set.

    `turn` numbers the jobs of the whole service in the order in which they left the queue; null while a job waits.
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
    """The fine-tuned model that training starts from; null if it starts from the base model."""
    training_file: Mapped[str] = mapped_column(String(64))
    validation_file: Mapped[str | None] = mapped_column(String(64))
    suffix: Mapped[str | None] = mapped_column(String(64))
    serving: Mapped[str] = mapped_column(String(16), server_default="adapter")
    """How its result is served, of alignkit_server.engines.serving."""
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
    """Time of the first start."""
    running_since: Mapped[int | None]
    """Time of the last start; null while the job is not running."""
    run_seconds: Mapped[int] = mapped_column(server_default="0")
    """Seconds of running up to the last stop."""
    gpus: Mapped[int] = mapped_column(server_default="1")
    """GPUs that it trains on, over all nodes; 1 where it trains on none."""
    peak_bytes: Mapped[int | None]
    """Peak memory of its training process; null until a start of its training has ended."""
    finished_at: Mapped[int | None]
    estimated_finish: Mapped[int | None]
    attempt: Mapped[int] = mapped_column(server_default="1")
    """Number of times the job was queued: once, plus once per resume."""
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    request_hash: Mapped[str | None] = mapped_column(String(64))
    turn: Mapped[int | None] = mapped_column(index=True, unique=True)
    disk_bytes: Mapped[int | None]
    """Of its folder and its models, as last measured; null before."""
    pruned_at: Mapped[int | None]
    """When its folder was removed."""


class Event(Owned, Base):
    """An event of a job; `source_line` is its line in the run's events.jsonl, if it comes from there."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("job_id", "source_line"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    level: Mapped[str] = mapped_column(String(8))
    message: Mapped[str] = mapped_column(Text)
    type: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    source_line: Mapped[int | None]


class Checkpoint(Owned, Base):
    """A job's checkpoint at a step; `model_name` is set when it is published."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    step: Mapped[int]
    model_name: Mapped[str | None] = mapped_column(String(255))
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)
    path: Mapped[str] = mapped_column(Text)
