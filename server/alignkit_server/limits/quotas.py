"""Quotas of a project: refuse what would go beyond them, with 429, the limit and the use.

Each check locks the project's row, so that of two requests that arrive together only as many pass as there is room
for; call it in the transaction that adds what it allows.
"""

from collections.abc import Mapping

from sqlalchemy.orm import Session

from alignkit_server.errors import ApiError
from alignkit_server.limits.repository import UsageRepository
from alignkit_server.settings import Limits


def limits_of(own: Mapping[str, int], defaults: Limits) -> Limits:
    """A project's limits: the service's, but for its own."""
    return defaults.model_copy(update=dict(own)) if own else defaults


def require_job(session: Session, project_id: str, defaults: Limits) -> None:
    """Refuse another job where as many wait as may, or the project's time is used up."""
    repository = UsageRepository(session, project_id)
    limits = limits_of(repository.locked_limits(), defaults)
    queued = repository.jobs_queued()
    if limits.jobs_queued is not None and queued >= limits.jobs_queued:
        raise exceeded(
            f"Too many jobs wait: the project's limit is {limits.jobs_queued:,}, and {queued:,} wait. "
            "Try again when one of them has started, or cancel one."
        )
    used = repository.gpu_seconds()
    if limits.gpu_seconds is not None and used >= limits.gpu_seconds:
        raise exceeded(
            f"The project's time for training is used up: its limit is {limits.gpu_seconds:,} seconds within "
            f"30 days, and its jobs used {used:,}."
        )


def require_bytes(session: Session, project_id: str, defaults: Limits, size: int) -> None:
    """Refuse a file of `size` bytes where the project's files would then hold more than they may."""
    repository = UsageRepository(session, project_id)
    limits = limits_of(repository.locked_limits(), defaults)
    used = repository.file_bytes()
    if limits.file_bytes is not None and used + size > limits.file_bytes:
        raise exceeded(
            f"The file does not fit: the project's files may hold {limits.file_bytes:,} bytes, they hold {used:,}, "
            f"and it has {size:,}. Delete files that are no longer needed."
        )


def exceeded(message: str) -> ApiError:
    """429 for a quota. Asking again at once does not help, so clients are told not to."""
    return ApiError(
        429,
        message,
        type="insufficient_quota",
        code="quota_exceeded",
        headers={"x-should-retry": "false"},
    )
