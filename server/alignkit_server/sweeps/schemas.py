"""Sweeps in the API: a job's request with the hyperparameters that vary."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from alignkit_server.jobs.schemas import JobError, JobRequest, Label, LabelValue

MOST_JOBS = 64
"""Jobs of a sweep; each is a job in the project's queue."""
OWN_LABELS = 2
"""Labels that a sweep gives each job: `sweep`, its id, and `name`, the job's values."""


class SweepRequest(JobRequest):
    """A request to create a job at every combination of some hyperparameters."""

    metadata: Annotated[dict[Label, LabelValue], Field(max_length=16 - OWN_LABELS)] | None = Field(
        None,
        description="labels of every job, beside `sweep` (the sweep's id) and `name`, unless it has these too",
    )
    sweep: dict[str, Any] = Field(
        description=f"hyperparameters of the method and their values, such as {{'beta': [0.05, 0.1]}}, at most "
        f"{MOST_JOBS} combinations; and `halving`: metric, goal (max or min), rungs (ascending steps), keep"
    )


class SweepPoint(BaseModel):
    """One job of a sweep: a line of its table."""

    job: str = Field(description="the job's id")
    values: dict[str, Any] = Field(description="value of each hyperparameter that varies")
    status: str = Field(description="the job's status; stopped if it was weak at a rung")
    step: int | None = Field(description="last step with metrics; null in lists and before the first")
    reason: str | None = Field(description="why the job was stopped or failed")
    metrics: dict[str, float] = Field(description="last values; empty in lists")


class SweepObject(BaseModel):
    """A sweep and its table."""

    id: str
    object: Literal["fine_tuning.sweep"] = "fine_tuning.sweep"
    created_at: int
    finished_at: int | None
    status: Literal["running", "succeeded", "failed", "cancelled"]
    error: JobError | None
    model: str
    training_file: str
    validation_file: str | None
    method: dict[str, Any] | None = Field(description="the method as requested")
    metadata: dict[str, str] | None
    sweep: dict[str, Any] = Field(description="the hyperparameters that vary, and halving")
    next_rung: int | None = Field(description="step at which jobs are compared next; null if at none")
    best: str | None = Field(
        description="id of the succeeded job that is best by halving's metric; null in lists, and without halving"
    )
    points: list[SweepPoint]
