"""Queries for Prometheus: few rows, over the jobs of all projects."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.job_status import ACTIVE, FINISHED, PAUSED, WAITING
from alignkit_server.tables import Event, Job

REPORTS = 20
"""Number of a running job's latest reports over which its speed is measured."""

Report = tuple[int, dict[str, Any]]
"""A job's metrics report: (time, metrics)."""


class Pace(NamedTuple):
    """The speed of a running job."""

    job_id: str
    step_seconds: float
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class JobFacts:
    """Figures about all jobs of the service."""

    states: dict[str, int]
    started: int
    waited_seconds: float
    oldest_wait_seconds: float
    paces: list[Pace]


def facts(database: Database) -> JobFacts:
    """The current figures about all jobs."""
    with database.reading() as session:
        counts = session.execute(select(Job.status, func.count(Job.seq)).group_by(Job.status))
        known: dict[str, int] = {status: count for status, count in counts}  # noqa: C416 - Row is no pair
        waited = func.coalesce(func.sum(Job.started_at - Job.created_at), 0)
        query = select(func.count(Job.seq), waited).where(Job.started_at.is_not(None))
        started, seconds = session.execute(query).one()
        oldest = session.scalar(select(func.min(Job.created_at)).where(Job.status.in_(WAITING)))
        running = session.scalars(select(Job.id).where(Job.status == "running").order_by(Job.seq)).all()
        paces = [pace for job_id in running if (pace := _pace(session, job_id))]
    return JobFacts(
        states={status: known.get(status, 0) for status in (*ACTIVE, PAUSED, *FINISHED)},
        started=started,
        waited_seconds=float(seconds or 0),
        oldest_wait_seconds=0.0 if oldest is None else float(max(0, now() - oldest)),
        paces=paces,
    )


def _pace(session: Session, job_id: str) -> Pace | None:
    """The speed between the first and last of a job's latest reports; None if no time passed between them."""
    query = select(Event.created_at, Event.data).join(Job, Event.job_id == Job.id)
    query = query.where(Job.id == job_id, Event.type == "metrics", Event.created_at >= Job.running_since)
    found = session.execute(query.order_by(Event.seq.desc()).limit(REPORTS)).all()
    reports = _since_restart((at, data) for at, data in found if isinstance((data or {}).get("step"), int))
    if not reports:
        return None
    (end, last), (begin, first) = reports[0], reports[-1]
    seconds, steps = end - begin, last["step"] - first["step"]
    if seconds <= 0 or steps <= 0:
        return None
    tokens = _difference(last, first, "num_tokens")
    return Pace(job_id, seconds / steps, None if tokens is None else tokens / seconds)


def _since_restart(reports: Iterable[Report]) -> list[Report]:
    """The leading `reports` (newest first) since the run last resumed from a checkpoint."""
    kept: list[Report] = []
    for report in reports:
        if kept and report[1]["step"] > kept[-1][1]["step"]:
            break
        kept.append(report)
    return kept


def _difference(last: dict[str, Any], first: dict[str, Any], name: str) -> float | None:
    if last.get(name) is None or first.get(name) is None:
        return None
    return float(last[name] - first[name])
