"""Converts rows of jobs, events and checkpoints to API objects."""

from collections.abc import Mapping
from typing import Any

from alignkit_server.clock import now
from alignkit_server.jobs.schemas import (
    CheckpointObject,
    EventObject,
    JobError,
    JobObject,
    JobUsage,
    MethodObject,
)
from alignkit_server.keys.service import Principal
from alignkit_server.tables import Checkpoint, Event, Job

OPENAI_HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")
"""Hyperparameters that OpenAI's job object repeats at its top level."""


UNTOLD = "The reason can quote rows of the job's files: a key with the scope read is told it."


def present_error(error: Mapping[str, Any] | None, project: Principal) -> JobError | None:
    """Why a job or a sweep failed; the message only for who may see rows, which it can quote."""
    if not error:
        return None
    return JobError(**error if project.reads_rows else {**error, "message": UNTOLD})


def present_job(job: Job, project: Principal, queue_position: int | None) -> JobObject:
    """A job as `project` may see it; `queue_position` is its position among waiting jobs."""
    resolved = job.hyperparameters
    method = {"type": job.method_type, job.method_type: {"hyperparameters": resolved}}
    return JobObject(
        id=job.id,
        created_at=job.created_at,
        error=present_error(job.error, project),
        fine_tuned_model=job.fine_tuned_model,
        finished_at=job.finished_at,
        hyperparameters={name: resolved[name] for name in OPENAI_HYPERPARAMETERS if name in resolved},
        model=job.start_model or job.base_model,
        organization_id=project.project_name,
        result_files=job.result_files,
        seed=job.seed,
        serving=job.serving,
        status=job.status,
        trained_tokens=job.trained_tokens,
        training_file=job.training_file,
        validation_file=job.validation_file,
        # A run that is being stopped still reports an estimate.
        estimated_finish=job.estimated_finish if job.status == "running" else None,
        queue_position=queue_position,
        integrations=_integrations(job),
        metadata=job.labels,
        method=MethodObject.model_validate(method),
        usage=JobUsage(
            run_seconds=job.run_seconds + (now() - job.running_since if job.running_since else 0),
            gpus=job.gpus,
            peak_memory_bytes=job.peak_bytes,
        ),
    )


def _integrations(job: Job) -> list[Any] | None:
    """The recipe's trackers in the form of the request's integrations."""
    found = []
    for tracker in (job.recipe.get("training") or {}).get("report_to", []):
        settings = {name: value for name, value in tracker.items() if name != "type"}
        found.append({"type": tracker["type"]} | ({tracker["type"]: settings} if settings else {}))
    return found or None


def present_event(event: Event) -> EventObject:
    """An event."""
    return EventObject(
        id=event.id,
        created_at=event.created_at,
        level=event.level,
        message=event.message,
        type=event.type,
        data=event.data,
    )


def present_checkpoint(checkpoint: Checkpoint) -> CheckpointObject:
    """A published checkpoint."""
    return CheckpointObject(
        id=checkpoint.id,
        created_at=checkpoint.created_at,
        fine_tuned_model_checkpoint=checkpoint.model_name or "",
        fine_tuning_job_id=checkpoint.job_id,
        metrics=checkpoint.metrics | {"step": checkpoint.step},
        step_number=checkpoint.step,
    )
