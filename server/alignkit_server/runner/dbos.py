"""The durable queue of jobs, on DBOS."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from dbos import DBOS, DBOSConfig, SetWorkflowID

from alignkit_server.peers.heartbeat import Heartbeat
from alignkit_server.runner.scheduler import Dispatcher, FairQueue
from alignkit_server.runner.step_services import StepServices, install
from alignkit_server.runner.workflow import WORKFLOW_VERSION, fine_tune
from alignkit_server.upstream import recover_workflows
from alignkit_server.vault import open_vault
from alignkit_server.webhooks import delivery

QUEUE = "fine_tuning"


class DBOSRunner:
    """The durable queue of jobs: `training_slots` run at once, the rest wait for their project's turn.

    DBOS hears of a job when its turn comes.
    """

    def __init__(self, services: StepServices) -> None:
        self._services = services
        self._heartbeat = Heartbeat(
            services.ledger.database, self._recover, anywhere=services.executor.anywhere
        )
        turns = FairQueue(services.ledger.database, services.settings, services.executor.capacity)
        self._dispatcher = Dispatcher(turns, self._begin)

    def start(self) -> None:
        """Launch DBOS, adopt the jobs of the last server, and queue those it never queued."""
        _off_the_loop(self._start)

    def stop(self) -> None:
        """Leave the running jobs to the next server."""
        self._services.stopping.set()
        _off_the_loop(self._stop)

    def _start(self) -> None:
        install(self._services)
        settings = self._services.settings
        config: DBOSConfig = {
            "name": "alignkit",
            "system_database_url": settings.database_url or f"sqlite:///{settings.root / 'dbos.sqlite'}",
            "application_version": WORKFLOW_VERSION,
            "executor_id": self._heartbeat.id,
            "log_level": "WARNING",
        }
        self._heartbeat.register()
        DBOS(config=config)
        DBOS.launch()
        DBOS.register_queue(
            QUEUE,
            global_concurrency=settings.training_slots,
            polling_interval_sec=0.2,
            on_conflict="always_update",
        )
        _drop_older_versions()
        vault = open_vault(settings.root)
        delivery.start(delivery.Outbox(self._services.ledger.database, settings, vault, WORKFLOW_VERSION))
        self._heartbeat.start()
        self._dispatcher.start()

    def _stop(self) -> None:
        self._dispatcher.stop()
        self._heartbeat.stop()
        DBOS.destroy()
        self._heartbeat.sign_off()

    def _recover(self, servers: list[str]) -> None:
        """Take up the workflows of dead servers, and end the engines that they left."""
        recover_workflows(servers)
        self._services.engines.cleanup_leftovers()

    def _begin(self, job_id: str) -> None:
        """Give a job to DBOS; once an attempt, however often it is called."""
        attempt = self._services.ledger.get(job_id).attempt
        with SetWorkflowID(f"{job_id}-{attempt}-v{WORKFLOW_VERSION}"):
            DBOS.enqueue_workflow(QUEUE, fine_tune, job_id, attempt)

    def enqueue(self, job_id: str) -> None:  # noqa: ARG002 - its row is in the queue already
        """Look whether the job's turn has come."""
        self._dispatcher.wake()

    def cancel(self, job_id: str) -> None:
        """Nothing to do: the job's status is cancelled already, and every step looks at it."""

    def announce(self, job_id: str) -> None:
        """Queue the job's webhooks."""
        for delivery_id in delivery.pending(job_id):
            delivery.enqueue(delivery_id)


def _drop_older_versions() -> None:
    """Cancel the unfinished workflows of older versions: this version cannot resume them, and they would hold the
    queues' slots for ever. The dispatcher begins their jobs again and finds their runs; events are queued again."""
    left = DBOS.list_workflows(
        queue_name=[QUEUE, delivery.QUEUE],
        status=["PENDING", "ENQUEUED", "DELAYED"],
        load_input=False,
        load_output=False,
    )
    for workflow in left:
        if workflow.app_version != WORKFLOW_VERSION:
            DBOS.cancel_workflow(workflow.workflow_id)


def _off_the_loop(work: Callable[[], None]) -> None:
    """Run `work` in a thread and wait: DBOS refuses these calls where an event loop runs."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
