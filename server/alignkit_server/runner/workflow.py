"""A job's path from the queue to a serving model, as a durable DBOS workflow.

    launch -> watch -> publish -> canary -> succeeded

Each step may be repeated after a crash: a start finds a run that is already running, each event line is stored
once, publishing replaces whole folders, and every status change is a compare-and-set. The training itself is an
external process that a restarted server finds again. Steps wait for the end of outages of the
database or the disk; see `alignkit_server.outages`.
"""

import time

import structlog
from dbos import DBOS

from alignkit_server.outages import left_to_recovery
from alignkit_server.runner.publishing import finish, prove, publish_models
from alignkit_server.runner.step_services import JobFailedError, folder_of, job_step, use
from alignkit_server.runner.training import answered, train
from alignkit_server.webhooks import delivery

WORKFLOW_VERSION = "3"
"""Raised when a running workflow could not resume under the new code; otherwise an upgrade takes over running jobs.

2 -> 3: records of version 2 name classes of a package that was called `server`.
"""

log = structlog.get_logger()


@DBOS.workflow(name="fine_tune", max_recovery_attempts=None)  # retry however often servers are killed
def fine_tune(job_id: str, attempt: int = 1) -> None:
    """Run one job until it ends or is paused; the ledger records every outcome.

    Each resume of a job is another `attempt` with its own workflow.
    """
    with structlog.contextvars.bound_contextvars(job_id=job_id), left_to_recovery():
        try:
            with left_to_recovery():
                if not train(job_id, attempt):
                    return
                publish_models(job_id)
                prove(job_id)
                finish(job_id)
        except JobFailedError as error:
            fail(job_id, error.code, str(error), error.log)
        except Exception as error:
            log.exception("job crashed")
            message = f"The server failed while working on the job: {type(error).__name__}"
            fail(job_id, "internal_error", message)
        for delivery_id in webhooks(job_id):
            delivery.enqueue(delivery_id)


@job_step("webhooks")
def webhooks(job_id: str) -> list[str]:
    """Ids of the webhook deliveries that announce the job's end."""
    return delivery.pending(job_id)


@job_step("fail")
def fail(job_id: str, code: str, message: str, log: str = "") -> None:
    """Mark a job as failed and stop its run, if it still runs; a cancelled job stays cancelled.

    Its one event has the last lines of the training log in its `data`.
    """
    answered(job_id, lambda: use().executor.stop(folder_of(job_id).path))
    use().ledger.transition(
        job_id,
        "failed",
        only_from=("validating_files", "queued", "running"),
        events=[("error", message)],
        data={"code": code} | ({"log": log.splitlines()} if log else {}),
        error={"code": code, "message": message, "param": None},
        finished_at=int(time.time()),
        estimated_finish=None,
    )
