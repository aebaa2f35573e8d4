"""Runs training as jobs of a Ray cluster, which queues them for its GPUs.

A run is a Ray job whose id is written to the run's folder before submission, so that any server finds it again.
Ray tells whether it lives; everything else (log, events, checkpoints, result) is in its folder, which all nodes
share.
"""

import secrets
import shlex
import threading
import time
from pathlib import Path

import structlog

from alignkit.errors import AlignkitError
from alignkit.run.checkpoint_store import inside
from alignkit.run.folder import RunFolder
from alignkit_server.executors.environment import ALWAYS
from alignkit_server.executors.protocol import ExecutorUnavailableError
from alignkit_server.executors.ray.jobs import WAITED_TOO_LONG, Job, RayJobs
from alignkit_server.executors.ray.submission import Order, Submission, begin, read
from alignkit_server.settings import RaySettings, Settings

POLL_SECONDS = 0.3
CONNECT_SECONDS = 15.0
WITHDRAW_SECONDS = 60.0
NOTE_CHARACTERS = 1500
CAPACITY_SECONDS = 3.0
"""Seconds that an answer of the cluster about its nodes is cached."""

log = structlog.get_logger()


class RayExecutor:
    """Implements alignkit_server.executors.protocol.Executor with one Ray job per run."""

    anywhere = True

    def __init__(self, settings: RaySettings, *, grace_seconds: float) -> None:
        self._settings = settings
        self._grace = grace_seconds
        token = settings.token.get_secret_value() if settings.token else None
        self._jobs = RayJobs(settings.address, token=token, timeout=settings.timeout_seconds)
        self._capacity = _Capacity(self._jobs, settings)

    @classmethod
    def connect(cls, settings: Settings) -> "RayExecutor":
        """An executor for a cluster that answers.

        Raises AlignkitError if the cluster does not answer within seconds, or if no node could ever run a job.
        """
        executor = cls(settings.ray, grace_seconds=settings.stop_grace_seconds)
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                version, lacking = executor._jobs.version(), executor._capacity.lacking()
                break
            except ExecutorUnavailableError as error:
                if time.monotonic() > deadline:
                    raise AlignkitError(
                        f"executor=ray: {error}. Expected the address of a Ray dashboard (ALIGNKIT_RAY__ADDRESS)"
                    ) from error
                time.sleep(POLL_SECONDS)
        if lacking and not settings.ray.waiting:
            raise AlignkitError(
                f"executor=ray: {lacking}, and waiting for larger nodes is off (ALIGNKIT_RAY__WAITING=0)"
            )
        if lacking:
            log.warning("jobs wait for larger nodes", reason=lacking)
        log.info("training runs on Ray", address=settings.ray.address, ray=version)
        return executor

    def devices(self) -> int | None:
        """Ray gives out the GPUs of its nodes itself."""
        return None

    def capacity(self) -> int | None:
        """Runs that fit on the living nodes, plus those that may wait in Ray's queue until more nodes start."""
        return self._capacity.now()

    def start(self, folder: Path, *, resume: bool) -> None:
        """Submit the run unless it was already submitted."""
        order = Order(
            nodes=self._settings.nodes,
            gpus=self._settings.gpus,
            cpus=self._settings.cpus,
            accelerate_config=self._settings.accelerate_config,
            storage=inside(self._settings.storage, folder.name) if self._settings.storage else None,
            grace=self._grace,
            resume=resume,
        )
        self._submit(begin(folder, order))

    def running(self, folder: Path) -> bool:
        """Whether Ray runs the job or has it queued; if not, the run's log says why."""
        submission = _under_way(folder)
        if submission is None:
            return False
        job = self._jobs.find(submission.id)
        if job is not None and job.alive:
            return True
        if job is not None and job.error_type == WAITED_TOO_LONG:
            submission.end()
            if submission.pausing():
                return False
            self._submit(begin(folder, submission.order))
            return True
        _note(RunFolder(folder), submission.id, job)
        submission.end()
        return False

    def interrupt(self, folder: Path) -> None:
        """Ask the trainer to save and exit, or withdraw the run from Ray's queue."""
        submission = _under_way(folder)
        if submission is not None:
            submission.ask_to_pause()
            self._withdraw_if_pending(submission)

    def stop(self, folder: Path) -> None:
        """Stop the job; a job in Ray's queue must be withdrawn to end before it starts."""
        submission = _under_way(folder)
        if submission is None:
            return
        submission.ask_to_pause()  # in case the run is about to start
        self._jobs.stop(submission.id)
        self._withdraw_if_pending(submission)
        if self._ends(submission.id, self._grace + WITHDRAW_SECONDS):
            submission.end()

    def _submit(self, submission: Submission) -> None:
        order = submission.order
        # For several nodes, Ray Train requests the resources; the job itself needs none.
        gpus, cpus = (order.gpus, order.cpus) if order.nodes == 1 else (0, 0)
        line = [self._settings.python, "-m", "alignkit_server.executors.ray.entry"]
        environment = ALWAYS | {"RAY_JOB_STOP_WAIT_TIME_S": str(int(order.grace) + 10)}
        self._jobs.submit(
            submission.id,
            shlex.join([*line, str(submission.folder), str(submission.number)]),
            gpus=gpus,
            cpus=cpus,
            environment=environment,
        )

    def _withdraw_if_pending(self, submission: Submission) -> None:
        """Take a pending job out of Ray's queue.

        The Jobs API cannot: its stop is a message to the actor that runs the job, and that actor reads none before
        it is placed. So another job, which needs no resources and never waits, removes that actor.
        """
        job = self._jobs.find(submission.id)
        if job is None or job.status != "PENDING":
            return
        line = shlex.join(
            [self._settings.python, "-m", "alignkit_server.executors.ray.withdraw", submission.id]
        )
        withdrawal = f"{submission.id}-withdraw-{secrets.token_hex(3)}"
        self._jobs.submit(withdrawal, line, environment={})
        self._ends(withdrawal, WITHDRAW_SECONDS)

    def _ends(self, id: str, seconds: float) -> bool:  # noqa: A002
        """Wait for the end of Ray's job; returns whether it ended within `seconds`."""
        deadline = time.monotonic() + seconds
        while (job := self._jobs.find(id)) is not None and job.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True


class _Capacity:
    """The number of runs that the cluster can take, cached for CAPACITY_SECONDS."""

    def __init__(self, jobs: RayJobs, settings: RaySettings) -> None:
        self._jobs = jobs
        self._settings = settings
        gpus, cpus = settings.gpus, settings.cpus
        self._kind, self._each = ("GPU", gpus) if gpus else ("CPU", cpus)
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._known = 0

    def now(self) -> int:
        """The current capacity; 0 while the cluster does not answer."""
        with self._lock:
            if time.monotonic() - self._asked > CAPACITY_SECONDS:
                try:
                    self._known = self._ask()
                except ExecutorUnavailableError as error:
                    self._known = 0
                    log.warning("no jobs can be started", reason=str(error))
                self._asked = time.monotonic()
            return self._known

    def lacking(self) -> str | None:
        """The resources of a job that no living node has, as a sentence; None if some node has them."""
        largest = max((int(node.get(self._kind, 0)) for node in self._jobs.nodes()), default=0)
        if largest >= self._each:
            return None
        return f"a job needs {self._each} {self._kind}s per node, and the largest node has {largest}"

    def _ask(self) -> int:
        places = sum(int(node.get(self._kind, 0) // self._each) for node in self._jobs.nodes())
        return places // self._settings.nodes + self._settings.waiting


def _under_way(folder: Path) -> Submission | None:
    submission = read(folder)
    return None if submission is None or submission.ended else submission


def _note(folder: RunFolder, id: str, job: Job | None) -> None:  # noqa: A002
    """Append to the log of a run without a result what Ray reports about its end."""
    if folder.read_result() is not None or (job is not None and job.status != "FAILED"):
        return
    message = (
        job.message.strip() if job else "the cluster does not know the job; was its head node restarted?"
    )
    with folder.log.open("a", encoding="utf-8") as file:
        file.write(f"Ray job {id}: {message[-NOTE_CHARACTERS:]}\n")
