"""Restarts the work that an outage interrupted, so that every job with a slot has a running workflow.

A workflow is durable, but its thread is not. A thread that could not write its outcome, or that a lost connection
kept from starting, leaves a pending workflow without a thread, and with it an unused slot. DBOS recovers such
workflows only of dead servers; this module recovers those of the running server.
"""

from collections.abc import Callable, Iterable, Sequence

import structlog
from dbos import DBOS

from alignkit_server.repeating import Repeating
from alignkit_server.runner.workflow import fail
from alignkit_server.upstream import recover_workflow, running_workflows

LOOK_SECONDS = 2.0
JOIN_SECONDS = 10.0
MOST_REPEATS = 5
"""Maximum number of repeats of a workflow that ended although its job did not."""
REPEAT = "-repeat"
"""Start of the id suffix of a workflow that repeats one that ended."""
UNFINISHED = ["PENDING", "ENQUEUED", "DELAYED"]

log = structlog.get_logger()


class Reconciler:
    """A thread that checks every `LOOK_SECONDS`, and repairs what two checks in a row found wrong."""

    def __init__(
        self,
        server: str,
        begun: Callable[[], Sequence[str]],
        workflow_id: Callable[[str], str],
        begin: Callable[[str, str], None],
    ) -> None:
        """`begun` returns the unfinished jobs that hold a slot.

        `begin` hands a job to DBOS under its `workflow_id` plus a suffix; it must be idempotent.
        """
        self._server = server
        self._begun = begun
        self._workflow_id = workflow_id
        self._begin = begin
        self._suspects: frozenset[str] = frozenset()
        self._looking = Repeating("reconciler", self.look, LOOK_SECONDS, join_seconds=JOIN_SECONDS)

    def start(self) -> None:
        """Start checking."""
        self._looking.start()

    def stop(self) -> None:
        """Stop checking."""
        self._looking.stop()

    def look(self) -> None:
        """Recover workflows without a thread, and start new workflows for jobs that hold a slot without one."""
        jobs = self._begun()
        deserted, idle = self._deserted(), self._idle(jobs)
        suspects, before = frozenset({*deserted, *idle}), self._suspects
        self._suspects = suspects
        for workflow_id in deserted & before:
            log.warning("recovering a workflow without a thread", workflow_id=workflow_id)
            recover_workflow(workflow_id, self._server)
        for job_id in idle & before:
            self._begin_again(job_id)

    def _deserted(self) -> set[str]:
        """Ids of this server's pending workflows that none of its threads works on."""
        working = running_workflows()  # read first: one that ends in between is no longer pending
        pending = DBOS.list_workflows(
            status="PENDING", executor_id=self._server, load_input=False, load_output=False
        )
        return {workflow.workflow_id for workflow in pending} - working - running_workflows()

    def _idle(self, jobs: Iterable[str]) -> set[str]:
        """The jobs among `jobs` that have no unfinished workflow."""
        first = {self._workflow_id(job_id): job_id for job_id in jobs}
        if not first:
            return set()
        found = DBOS.list_workflows(
            workflow_id_prefix=list(first), status=UNFINISHED, load_input=False, load_output=False
        )
        worked_on = {workflow.workflow_id.partition(REPEAT)[0] for workflow in found}
        return {job_id for workflow_id, job_id in first.items() if workflow_id not in worked_on}

    def _begin_again(self, job_id: str) -> None:
        """Start another workflow for the job, or its first one."""
        prefix = self._workflow_id(job_id)
        ended = len(DBOS.list_workflows(workflow_id_prefix=prefix, load_input=False, load_output=False))
        if ended > MOST_REPEATS:
            fail(job_id, "internal_error", "The server failed again and again while working on the job")
            return
        log.warning("starting a workflow for a job that holds a slot without one", job_id=job_id)
        self._begin(job_id, f"{REPEAT}{ended}" if ended else "")
