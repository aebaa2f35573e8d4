"""Runs evals durably: each run is a DBOS workflow that grades its rows in batches and stores every batch.

A run that a crash or a stop interrupts continues with the rows that are not graded yet.
"""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import structlog
from dbos import DBOS, SetEnqueueOptions, SetWorkflowID
from sqlalchemy import select
from sqlalchemy.orm import Session

from alignkit_server.database import Database
from alignkit_server.eval_status import COMPLETED, COUNTED_AS, FAILED, IN_PROGRESS, OPEN, QUEUED
from alignkit_server.evals.checking import graders_of
from alignkit_server.evals.grading import Asks, Outcome, Plan, Row, RowGrader, RunFailedError
from alignkit_server.evals.presenting import NO_USAGE
from alignkit_server.evals.repository import EvalItemRepository
from alignkit_server.evals.schemas import Completions
from alignkit_server.limits.quotas import limits_of, space_used
from alignkit_server.limits.repository import UsageRepository
from alignkit_server.outages import Detached, is_outage, left_to_recovery, outlast
from alignkit_server.queues import take_turns
from alignkit_server.settings import Settings
from alignkit_server.tables import Eval, EvalItem, EvalRun, Project

QUEUE = "evals_by_project"
RUNS_AT_ONCE = 8
"""Runs of a server at once, one of each project at most."""
ROWS_AT_ONCE = 8
"""Rows of a run at once; each waits for its turn at the engine as a client's request does."""
BATCH = 32
"""Rows stored together; so many at most are graded again after a crash."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EvalServices:
    """The dependencies of running evals."""

    database: Database
    settings: Settings
    models: Asks
    version: str
    """The application's version, part of every workflow id: workflows of older versions are cancelled at start."""
    stopping: threading.Event


_services: EvalServices | None = None


def start(services: EvalServices) -> None:
    """Resume the runs that the previous server left. Call it after DBOS has started."""
    global _services  # noqa: PLW0603 - DBOS workflows are module functions
    _services = services
    take_turns(QUEUE, at_once=RUNS_AT_ONCE, of_a_project=1)
    with services.database.reading() as session:
        left = session.scalars(select(EvalRun.id).where(EvalRun.status.in_(OPEN)).order_by(EvalRun.seq)).all()
    for run_id in left:
        enqueue(run_id)


def enqueue(run_id: str) -> None:
    """Enqueue a run in its project's partition. Idempotent."""
    with _use().database.reading() as session:
        project_id = session.scalar(select(EvalRun.project_id).where(EvalRun.id == run_id))
    if project_id is None:  # deleted
        return
    with SetWorkflowID(f"{run_id}-v{_use().version}"), SetEnqueueOptions(queue_partition_key=project_id):
        DBOS.enqueue_workflow(QUEUE, evaluate, run_id)


def queued(before: int) -> Sequence[str]:
    """Ids of the runs stored before a time that no server has begun."""
    query = select(EvalRun.id).where(EvalRun.status == QUEUED, EvalRun.created_at < before)
    with _use().database.reading() as session:
        return session.scalars(query.order_by(EvalRun.seq)).all()


def _use() -> EvalServices:
    if _services is None:
        raise RuntimeError("the runner is not started")
    return _services


@DBOS.workflow(name="evaluate", max_recovery_attempts=None)
def evaluate(run_id: str) -> None:
    """Grade a run's rows until it ends; its row records the outcome."""
    with structlog.contextvars.bound_contextvars(run_id=run_id), left_to_recovery():
        grade_all(run_id)


@DBOS.step(name="grade_eval_run")
def grade_all(run_id: str) -> None:
    """Grade a run's rows, and continue after an outage of the database."""
    outlast(lambda: grade_run(run_id, _use()), _use().stopping)


def grade_run(run_id: str, services: EvalServices) -> None:
    """Grade the rows of a run that are not graded yet, and end it. Does nothing if it was cancelled or deleted."""
    try:
        _grade_rows(run_id, services)
    except RunFailedError as error:
        _end(run_id, services.database, FAILED, {"code": error.code, "message": str(error)})
    except Exception as error:
        if is_outage(error):
            raise
        if services.stopping.is_set():
            raise Detached from error
        log.exception("a run of an eval crashed")
        message = f"The server failed while working on the run: {type(error).__name__}."
        _end(run_id, services.database, FAILED, {"code": "internal_error", "message": message})


def _grade_rows(run_id: str, services: EvalServices) -> None:
    plan = _begin(run_id, services.database)
    if plan is None:
        return
    grader = RowGrader(
        plan,
        services.models,
        services.stopping,
        patience=services.settings.engine.start_timeout_seconds,
        is_open=lambda: _is_open(run_id, services.database),
    )
    with ThreadPoolExecutor(ROWS_AT_ONCE, thread_name_prefix="eval") as pool:
        while rows := _waiting(plan, services.database):
            outcomes = list(pool.map(grader.grade, rows))
            if not _store(plan, outcomes, services):
                return
    _end(run_id, services.database, COMPLETED)


def _locked(session: Session, run_id: str) -> EvalRun | None:
    """The run, locked, if it is still there and open."""
    query = select(EvalRun).where(EvalRun.id == run_id, EvalRun.status.in_(OPEN))
    return session.scalar(query.with_for_update())


def _is_open(run_id: str, database: Database) -> bool:
    with database.reading() as session:
        return session.scalar(select(EvalRun.status).where(EvalRun.id == run_id)) in OPEN


def _begin(run_id: str, database: Database) -> Plan | None:
    with database.writing() as session:
        run = _locked(session, run_id)
        if run is None:
            return None
        if run.status == QUEUED:
            run.status = IN_PROGRESS
        criteria = session.scalars(select(Eval.testing_criteria).where(Eval.id == run.eval_id)).one()
        graders, source = graders_of(criteria), run.data_source
        if not run.tally["criteria"]:
            run.tally = run.tally | {"criteria": {grader.name: [0, 0] for grader in graders}}
    sampling = Completions.model_validate(source) if source["type"] == "completions" else None
    return Plan(run.project_id, run_id, graders, sampling)


def _waiting(plan: Plan, database: Database) -> Sequence[Row]:
    with database.reading() as session:
        found = EvalItemRepository(session, plan.project_id).waiting(plan.run_id, BATCH)
        return [Row(item.id, item.item, item.given) for item in found]


def _store(plan: Plan, outcomes: Sequence[Outcome], services: EvalServices) -> bool:
    """Store a batch and count it; returns whether the run is still open. Raises RunFailedError on a used-up quota."""
    with services.database.writing() as session:
        run = _locked(session, plan.run_id)
        if run is None:
            return False
        items = {one.id: one for one in session.scalars(_items([one.row.id for one in outcomes]))}
        tally = json.loads(json.dumps(run.tally))  # a copy, so that the change is seen
        for outcome in outcomes:
            item = items[outcome.row.id]
            item.status, item.sample, item.results = outcome.status, outcome.sample, outcome.results
            count(tally, outcome)
            run.disk_bytes += len(json.dumps([outcome.sample, outcome.results], ensure_ascii=False))
        run.tally = tally
        session.flush()
        project = session.get_one(Project, plan.project_id)
        used = UsageRepository(session, plan.project_id).usage().disk_bytes
        full = space_used(limits_of(project.limits or {}, services.settings.limits), used)
    if full is not None:
        raise RunFailedError("quota_exceeded", f"The answers do not fit: {full}.")
    return True


def _items(ids: Sequence[str]) -> Any:
    return select(EvalItem).where(EvalItem.id.in_(ids))


def count(tally: dict[str, Any], outcome: Outcome) -> None:
    """Add a graded row to the counts of its run."""
    tally[COUNTED_AS[outcome.status]] += 1
    for result in outcome.results:
        if not (result.get("sample") or {}).get("error"):
            tally["criteria"][result["name"]][0 if result["passed"] else 1] += 1
    for model, used in outcome.usage():
        total = tally["models"].setdefault(model, {"invocation_count": 0, **NO_USAGE})
        total["invocation_count"] += 1
        for name in NO_USAGE:
            total[name] += used[name]


def _end(run_id: str, database: Database, status: str, error: dict[str, str] | None = None) -> None:
    with database.writing() as session:
        run = _locked(session, run_id)
        if run is not None:
            run.status, run.error = status, error
