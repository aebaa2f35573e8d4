"""Brings what should run and what does run together again, whatever an outage has torn apart.

A workflow is durable, its thread is not: a thread that could not write its outcome, or that a lost connection kept
from being started, leaves a pending workflow that nobody works on and, with it, a slot that nobody uses. DBOS takes
such workflows up when their server has died; this takes up those of a server that lives.
"""

import threading
from collections.abc import Callable, Iterable, Sequence

import structlog
from dbos import DBOS

from alignkit_server.outages import described, is_outage
from alignkit_server.runner.workflow import fail
from alignkit_server.upstream import recover_workflow, running_workflows

LOOK_SECONDS = 2.0
JOIN_SECONDS = 10.0
MOST_REPEATS = 5
"""Of a workflow that ended though its job did not."""
REPEAT = "-repeat"
"""Begins the suffix of a workflow's id that repeats one that ended."""
UNFINISHED = ["PENDING", "ENQUEUED", "DELAYED"]

log = structlog.get_logger()


class Reconciler:
    """A thread that looks every `LOOK_SECONDS`. What it finds wrong twice in a row it mends."""

    def __init__(
        self,
        server: str,
        begun: Callable[[], Sequence[str]],
        workflow_id: Callable[[str], str],
        begin: Callable[[str, str], None],
    ) -> None:
        """`begun` returns the unfinished jobs that hold a slot; `begin` gives a job to DBOS, under its `workflow_id`
        and a suffix, and does nothing where that was done before."""
        self._server = server
        self._begun = begun
        self._workflow_id = workflow_id
        self._begin = begin
        self._suspects: frozenset[str] = frozenset()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_SECONDS)

    def look(self) -> None:
        """Take up workflows without a thread, and begin those of jobs that hold a slot for nothing."""
        jobs = self._begun()
        deserted, idle = self._deserted(), self._idle(jobs)
        suspects, before = frozenset({*deserted, *idle}), self._suspects
        self._suspects = suspects
        for workflow_id in deserted & before:
            log.warning("taking up a workflow that no thread works on", workflow_id=workflow_id)
            recover_workflow(workflow_id, self._server)
        for job_id in idle & before:
            self._begin_again(job_id)

    def _deserted(self) -> set[str]:
        """This server's pending workflows that none of its threads works on."""
        working = running_workflows()  # first: one that ends in between is pending no more
        pending = DBOS.list_workflows(
            status="PENDING", executor_id=self._server, load_input=False, load_output=False
        )
        return {workflow.workflow_id for workflow in pending} - working - running_workflows()

    def _idle(self, jobs: Iterable[str]) -> set[str]:
        """Those of `jobs` that have no unfinished workflow."""
        first = {self._workflow_id(job_id): job_id for job_id in jobs}
        if not first:
            return set()
        found = DBOS.list_workflows(
            workflow_id_prefix=list(first), status=UNFINISHED, load_input=False, load_output=False
        )
        worked_on = {workflow.workflow_id.partition(REPEAT)[0] for workflow in found}
        return {job_id for workflow_id, job_id in first.items() if workflow_id not in worked_on}

    def _begin_again(self, job_id: str) -> None:
        """Give the job another workflow; where it never had one, its first."""
        prefix = self._workflow_id(job_id)
        ended = len(DBOS.list_workflows(workflow_id_prefix=prefix, load_input=False, load_output=False))
        if ended > MOST_REPEATS:
            fail(job_id, "internal_error", "The server failed again and again while working on the job")
            return
        log.warning("beginning the workflow of a job that holds a slot for nothing", job_id=job_id)
        self._begin(job_id, f"{REPEAT}{ended}" if ended else "")

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception as error:
                if is_outage(error):
                    log.warning("nothing can be reconciled now", what=described(error))
                else:
                    log.exception("nothing was reconciled; trying again")
