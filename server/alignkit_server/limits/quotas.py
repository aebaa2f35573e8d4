"""Quotas of a project: refuses with 429 what would exceed them, naming the limit and the current use.

Each check locks the project's row, so that simultaneous requests cannot exceed a quota together. Call it in the
transaction that adds what it allows.
"""

from collections.abc import Mapping
from pathlib import Path

from sqlalchemy.orm import Session

from alignkit_server.errors import ApiError
from alignkit_server.limits.incoming import incoming
from alignkit_server.limits.repository import Usage, UsageRepository
from alignkit_server.settings import Limits, Settings


def limits_of(own: Mapping[str, int], defaults: Limits) -> Limits:
    """The limits of a project: its own values where set, else the service's."""
    return defaults.model_copy(update=dict(own)) if own else defaults


def require_job(session: Session, project_id: str, defaults: Limits) -> None:
    """Refuse another job if the project has its maximum of waiting jobs, or has used up its GPU time."""
    repository = UsageRepository(session, project_id)
    limits = limits_of(repository.locked_limits(), defaults)
    queued = repository.jobs_queued()
    if limits.jobs_queued is not None and queued >= limits.jobs_queued:
        raise exceeded(
            f"Too many jobs are waiting: the project's limit is {limits.jobs_queued:,}, and {queued:,} are waiting. "
            "Try again when one of them has started, or cancel one."
        )
    _require_room(limits, repository.usage())


def require_more_time(session: Session, project_id: str, defaults: Limits, gpu_seconds: int) -> None:
    """Refuse to resume a job that has taken `gpu_seconds` where it would be paused again at once."""
    repository = UsageRepository(session, project_id)
    limits = limits_of(repository.locked_limits(), defaults)
    if (why := job_time_used(limits, gpu_seconds)) is not None:
        raise exceeded(f"{why[:1].upper()}{why[1:]}.")
    _require_room(limits, repository.usage())


def job_time_used(limits: Limits, gpu_seconds: int) -> str | None:
    """Why a job that has taken `gpu_seconds` may run no longer, as part of a sentence; None where it may."""
    if limits.job_gpu_seconds is None or gpu_seconds < limits.job_gpu_seconds:
        return None
    return f"one job may take {limits.job_gpu_seconds:,} GPU seconds, and it has taken {gpu_seconds:,}"


def reached(limits: Limits, usage: Usage) -> str | None:
    """Which limit keeps all jobs of a project from running, as part of a sentence; None where none does."""
    if limits.gpu_seconds is not None and usage.gpu_seconds >= limits.gpu_seconds:
        return (
            f"the project's time for training is used up: its limit is {limits.gpu_seconds:,} GPU seconds within "
            f"30 days, and its jobs used {usage.gpu_seconds:,}"
        )
    if limits.disk_bytes is not None and usage.disk_bytes >= limits.disk_bytes:
        return (
            f"the project's space is used up: its files, jobs and models may have {limits.disk_bytes:,} bytes, and "
            f"they have {usage.disk_bytes:,}"
        )
    return None


def _require_room(limits: Limits, usage: Usage) -> None:
    if (why := reached(limits, usage)) is not None:
        raise exceeded(f"{why[:1].upper()}{why[1:]}.")


def require_bytes(
    session: Session, project_id: str, settings: Settings, size: int, *, own: Path | None = None
) -> None:
    """Refuse a file of `size` bytes if the project's files would then exceed the quota.

    What other requests are sending counts; `own` is the temporary file of this one.
    """
    repository = UsageRepository(session, project_id)
    limits = limits_of(repository.locked_limits(), settings.limits)
    arriving = incoming(settings, project_id, own)
    used = repository.file_bytes() + arriving.received
    if limits.file_bytes is not None and used + size > limits.file_bytes:
        raise exceeded(
            f"The file does not fit: the project's files are limited to {limits.file_bytes:,} bytes, use {used:,}, "
            f"and the new file has {size:,}. Delete files that are no longer needed."
        )
    everything = used + arriving.joined + repository.run_bytes()
    if limits.disk_bytes is not None and everything + size > limits.disk_bytes:
        raise exceeded(
            f"The file does not fit: the project's files, jobs and models may have {limits.disk_bytes:,} bytes, they "
            f"have {everything:,}, and it has {size:,}. Delete files and models, or prune finished jobs."
        )


def require_disk(
    session: Session,
    project_id: str,
    settings: Settings,
    size: int,
    *,
    what: str = "archive",
    meanwhile: str = "it is downloaded",
    own: Path | None = None,
) -> None:
    """Refuse what takes `size` bytes of the disk for a while, if the project may not have them; `own` is its file."""
    repository = UsageRepository(session, project_id)
    limits = limits_of(repository.locked_limits(), settings.limits)
    used = repository.usage().disk_bytes + sum(incoming(settings, project_id, own))
    if limits.disk_bytes is not None and used + size > limits.disk_bytes:
        raise exceeded(
            f"The {what} does not fit: the project's files, jobs and models may have {limits.disk_bytes:,} bytes, "
            f"they have {used:,}, and it needs {size:,} while {meanwhile}. Delete files and models, or prune "
            "finished jobs."
        )


def require_eval_run(session: Session, project_id: str, settings: Settings, size: int) -> None:
    """Refuse a run of an eval with `size` bytes of rows if too many are open, or if the rows do not fit."""
    repository = UsageRepository(session, project_id)
    limits, is_open = limits_of(repository.locked_limits(), settings.limits), repository.eval_runs_open()
    if limits.eval_runs_open is not None and is_open >= limits.eval_runs_open:
        raise exceeded(
            f"Too many runs of evals are open: the project's limit is {limits.eval_runs_open:,}, and {is_open:,} "
            "wait or run. Try again when one of them has ended, or cancel one."
        )
    used = repository.usage().disk_bytes + sum(incoming(settings, project_id))
    if (why := space_used(limits, used + size)) is not None:
        raise exceeded(f"The rows do not fit: {why}.")


def space_used(limits: Limits, disk_bytes: int) -> str | None:
    """Why a project with `disk_bytes` may store no more, as part of a sentence; None where it may."""
    if limits.disk_bytes is None or disk_bytes <= limits.disk_bytes:
        return None
    return (
        f"the project's files, jobs, models and evals may have {limits.disk_bytes:,} bytes, and would have "
        f"{disk_bytes:,}"
    )


def exceeded(message: str) -> ApiError:
    """The 429 of a quota. It tells clients not to retry, since that does not help."""
    return ApiError(
        429,
        message,
        type="insufficient_quota",
        code="quota_exceeded",
        headers={"x-should-retry": "false"},
    )
