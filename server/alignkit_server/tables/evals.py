"""Evals, their runs, and the rows that each run grades."""

from typing import Any

from sqlalchemy import JSON, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from alignkit_server.tables.base import Base, Owned


class Eval(Owned, Base):
    """An evaluation: the schema of its rows, and the graders that judge them."""

    __tablename__ = "evals"

    name: Mapped[str] = mapped_column(String(255))
    data_source_config: Mapped[dict[str, Any]] = mapped_column(JSON)
    testing_criteria: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    labels: Mapped[dict[str, str] | None] = mapped_column("metadata", JSON(none_as_null=True))


class EvalRun(Owned, Base):
    """A run of an evaluation on its own rows. `status` changes only in a transaction that locks the run."""

    __tablename__ = "eval_runs"

    eval_id: Mapped[str] = mapped_column(ForeignKey("evals.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(16), index=True)
    """queued, in_progress, completed, failed or canceled."""
    model: Mapped[str] = mapped_column(String(255))
    """The sampled model; empty if the rows bring their own answers."""
    data_source: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The run's data source as it was requested, without its rows."""
    labels: Mapped[dict[str, str] | None] = mapped_column("metadata", JSON(none_as_null=True))
    error: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    total: Mapped[int]
    """Number of rows."""
    tally: Mapped[dict[str, Any]] = mapped_column(JSON)
    """Counts of the graded rows, of each grader's passes, and of each model's tokens."""
    disk_bytes: Mapped[int]
    """Bytes of its rows, answers and grades, which count as the project's."""


class EvalItem(Owned, Base):
    """A row of a run: what was given, the sampled answer, and the grades."""

    __tablename__ = "eval_items"
    __table_args__ = (UniqueConstraint("run_id", "number"),)

    run_id: Mapped[str] = mapped_column(ForeignKey("eval_runs.id", ondelete="CASCADE"))
    number: Mapped[int]
    status: Mapped[str] = mapped_column(String(16))
    """waiting, pass, fail or error."""
    item: Mapped[dict[str, Any]] = mapped_column(JSON)
    given: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """The row's own sample; null if a model is sampled or the graders need none."""
    sample: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    results: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
