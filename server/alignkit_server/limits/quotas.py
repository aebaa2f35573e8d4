"""Quotas of a project: refuses with 429 what would exceed them, naming the limit and the current use.

Each check locks the project's row, so that simultaneous requests cannot exceed a quota together. Call it in the
transaction that adds what it allows.
"""

from collections.abc import Mapping

from sqlalchemy.orm import Session

from alignkit_server.errors import ApiError
from alignkit_server.limits.repository import UsageRepository
from alignkit_server.settings import Limits


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
    used = repository.gpu_seconds()
    if limits.gpu_seconds is not None and used >= limits.gpu_seconds:
        raise exceeded(
            f"The project's training time is used up: its limit is {limits.gpu_seconds:,} seconds within "
            f"30 days, and its jobs used {used:,}."
        )


def require_bytes(session: Session, project_id: str, defaults: Limits, size: int) -> None:
    """Refuse a file of `size` bytes if the project's files would then exceed the quota."""
    repository = UsageRepository(session, project_id)
    limits = limits_of(repository.locked_limits(), defaults)
    used = repository.file_bytes()
    if limits.file_bytes is not None and used + size > limits.file_bytes:
        raise exceeded(
            f"The file does not fit: the project's files are limited to {limits.file_bytes:,} bytes, use {used:,}, "
            f"and the new file has {size:,}. Delete files that are no longer needed."
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
