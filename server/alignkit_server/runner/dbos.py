"""The durable queue of jobs, on DBOS."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog
from dbos import DBOS, DBOSConfig, SetWorkflowID

from alignkit_server.clock import now
from alignkit_server.database import require_writable
from alignkit_server.evals import running as evals
from alignkit_server.evals.grading import Asks
from alignkit_server.executors.registry import slots_of
from alignkit_server.outages import LONGEST_PAUSE_SECONDS, is_outage
from alignkit_server.peers.heartbeat import Heartbeat
from alignkit_server.repeating import Repeating
from alignkit_server.runner.reconciler import Reconciler
from alignkit_server.runner.scheduler import Dispatcher, FairQueue
from alignkit_server.runner.step_services import StepServices, install
from alignkit_server.runner.workflow import WORKFLOW_VERSION, fine_tune
from alignkit_server.upstream import bound_retries, recover_workflows
from alignkit_server.vault import open_vault
from alignkit_server.webhooks import delivery

QUEUE = "fine_tuning"
LATE_SECONDS = 30.0
"""Age at which what is stored and not begun is enqueued again, in case an outage kept it from the queue."""

log = structlog.get_logger()


class DBOSRunner:
    """The durable queue of jobs: `training_slots` run at once, the rest wait for their project's turn.

    A job is handed to DBOS when its turn comes.
    """

    def __init__(self, services: StepServices, models: Asks | None = None) -> None:
        """`models` answers the requests of evals; without it, runs of evals wait."""
        self._services = services
        self._models = models
        self._heartbeat = Heartbeat(
            services.ledger.database, self._recover, anywhere=services.executor.anywhere
        )
        turns = FairQueue(
            services.ledger.database,
            services.settings,
            services.executor.capacity,
            services.executor.devices,
        )
        self._dispatcher = Dispatcher(turns, self._begin)
        self._late = Repeating("late", self._enqueue_late, LATE_SECONDS)
        self._reconciler = Reconciler(self._heartbeat.id, turns.begun, self._workflow_id, self._begin)

    def start(self) -> None:
        """Launch DBOS, take over the jobs of the previous server, and enqueue jobs that it never enqueued."""
        _off_the_loop(self._start)

    def stop(self) -> None:
        """Stop; the next server takes over the running jobs."""
        self._services.stopping.set()
        _off_the_loop(self._stop)

    def _start(self) -> None:
        install(self._services)
        settings = self._services.settings
        config: DBOSConfig = {
            "name": "alignkit",
            "system_database_url": settings.database_url or f"sqlite:///{settings.queue_file}",
            "application_version": WORKFLOW_VERSION,
            "executor_id": self._heartbeat.id,
            "log_level": "WARNING",
        }
        self._heartbeat.register()
        bound_retries(LONGEST_PAUSE_SECONDS)
        DBOS(config=config)
        DBOS.launch()
        DBOS.register_queue(
            QUEUE,
            global_concurrency=slots_of(settings),
            polling_interval_sec=0.2,
            on_conflict="always_update",
        )
        _drop_older_versions()
        outbox = delivery.Outbox(
            self._services.ledger.database,
            settings,
            open_vault(settings.root),
            WORKFLOW_VERSION,
            self._services.stopping,
        )
        delivery.start(outbox)
        if self._models is not None:
            evals.start(
                evals.EvalServices(
                    self._services.ledger.database,
                    settings,
                    self._models,
                    WORKFLOW_VERSION,
                    self._services.stopping,
                )
            )
        self._heartbeat.start()
        self._dispatcher.start()
        self._reconciler.start()
        self._late.start()

    def _stop(self) -> None:
        self._late.stop()
        self._reconciler.stop()
        self._dispatcher.stop()
        self._heartbeat.stop()
        DBOS.destroy()
        try:
            self._heartbeat.sign_off()
        except Exception as error:
            if not is_outage(error):
                raise
            log.warning("could not sign off; the other servers will notice that this process is gone")

    def _recover(self, servers: list[str]) -> None:
        """Take over the workflows of dead servers, and stop the engines that they left running."""
        recover_workflows(servers)
        self._services.engines.cleanup_leftovers()

    def _workflow_id(self, job_id: str) -> str:
        """The workflow id of the job's current attempt; a repeated workflow has an additional suffix."""
        return f"{job_id}-{self._services.ledger.get(job_id).attempt}-v{WORKFLOW_VERSION}"

    def _begin(self, job_id: str, repeat: str = "") -> None:
        """Hand a job to DBOS; idempotent per attempt and `repeat`."""
        attempt = self._services.ledger.get(job_id).attempt
        with SetWorkflowID(self._workflow_id(job_id) + repeat):
            DBOS.enqueue_workflow(QUEUE, fine_tune, job_id, attempt)

    def enqueue(self, job_id: str) -> None:  # noqa: ARG002 - its row is already in the queue
        """Wake the dispatcher, which checks whether the job's turn has come."""
        self._dispatcher.wake()

    def probe(self) -> None:
        """Raise sqlite3.Error if dbos.sqlite is locked or gone. On Postgres, both databases are one."""
        if self._services.settings.database_url is None:
            require_writable(self._services.settings.queue_file)

    def cancel(self, job_id: str) -> None:
        """Do nothing: the job's status is already cancelled, and every step checks it."""

    def announce(self, job_id: str) -> None:
        """Enqueue the job's webhook deliveries."""
        for delivery_id in delivery.pending(job_id):
            delivery.enqueue(delivery_id)

    def _enqueue_late(self) -> None:
        """Enqueue events and runs of evals that nothing has begun. Idempotent."""
        before = now() - int(LATE_SECONDS)
        for delivery_id in delivery.untried(before):
            delivery.enqueue(delivery_id)
        if self._models is not None:
            for run_id in evals.queued(before):
                evals.enqueue(run_id)

    def evaluate(self, run_id: str) -> None:
        """Enqueue a run of an eval."""
        if self._models is not None:
            evals.enqueue(run_id)


def _drop_older_versions() -> None:
    """Cancel the unfinished workflows of older versions, which would hold the queues' slots for ever.

    This version cannot resume them. The dispatcher starts their jobs again and finds their runs; webhook deliveries
    and runs of evals are enqueued again.
    """
    left = DBOS.list_workflows(
        queue_name=[QUEUE, delivery.QUEUE, evals.QUEUE],
        status=["PENDING", "ENQUEUED", "DELAYED"],
        load_input=False,
        load_output=False,
    )
    for workflow in left:
        if workflow.app_version != WORKFLOW_VERSION:
            DBOS.cancel_workflow(workflow.workflow_id)


def _off_the_loop(work: Callable[[], None]) -> None:
    """Run `work` in a thread and wait: DBOS refuses these calls in a thread with a running event loop."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
