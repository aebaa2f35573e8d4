"""Training as jobs of a Ray cluster, which queues them for its GPUs.

A run is a Ray job whose id is in its folder before Ray hears of it, so that any server finds it again. Ray says
whether it lives; everything else (its log, events, checkpoints, result) is in its folder, which all nodes share.
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
"""How long an answer of the cluster about its nodes is good for."""

log = structlog.get_logger()


class RayExecutor:
    """Implements alignkit_server.executors.protocol.Executor with one Ray job a run."""

    anywhere = True

    def __init__(self, settings: RaySettings, *, grace_seconds: float) -> None:
        self._settings = settings
        self._grace = grace_seconds
        token = settings.token.get_secret_value() if settings.token else None
        self._jobs = RayJobs(settings.address, token=token, timeout=settings.timeout_seconds)
        self._capacity = _Capacity(self._jobs, settings)

    @classmethod
    def connect(cls, settings: Settings) -> "RayExecutor":
        """An executor whose cluster answers.

        Raises AlignkitError where it does not within seconds, or where no node could ever hold a job.
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
                f"executor=ray: {lacking}, and none may be waited for (ALIGNKIT_RAY__WAITING=0)"
            )
        if lacking:
            log.warning("jobs wait for larger nodes", reason=lacking)
        log.info("training runs on Ray", address=settings.ray.address, ray=version)
        return executor

    def capacity(self) -> int | None:
        """What fits the living nodes, and the few that may wait in Ray's queue for more of them."""
        return self._capacity.now()

    def start(self, folder: Path, *, resume: bool) -> None:
        """Submit the run, or find that it was submitted."""
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
        """Whether Ray runs it or has it in its queue; why it no longer does is in the run's log."""
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
        """Let the trainer save and end, or take the run out of Ray's queue."""
        submission = _under_way(folder)
        if submission is not None:
            submission.ask_to_pause()
            self._withdraw_if_pending(submission)

    def stop(self, folder: Path) -> None:
        """End the job; in Ray's queue, a job must be withdrawn to end before its turn."""
        submission = _under_way(folder)
        if submission is None:
            return
        submission.ask_to_pause()  # for a run that is about to begin
        self._jobs.stop(submission.id)
        self._withdraw_if_pending(submission)
        if self._ends(submission.id, self._grace + WITHDRAW_SECONDS):
            submission.end()

    def _submit(self, submission: Submission) -> None:
        order = submission.order
        # Several nodes are asked for by Ray Train, from a job that needs nothing itself.
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
        """Take a job out of Ray's queue.

        The Jobs API cannot: a stop is a message to the actor that runs the job, which reads none before it is placed.
        So another job, which needs nothing and therefore never waits, removes that actor.
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
        """Whether Ray's job ends within so many seconds."""
        deadline = time.monotonic() + seconds
        while (job := self._jobs.find(id)) is not None and job.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True


class _Capacity:
    """How many runs the cluster takes, asked now and then."""

    def __init__(self, jobs: RayJobs, settings: RaySettings) -> None:
        self._jobs = jobs
        self._settings = settings
        gpus, cpus = settings.gpus, settings.cpus
        self._kind, self._each = ("GPU", gpus) if gpus else ("CPU", cpus)
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._known = 0

    def now(self) -> int:
        """The last answer; a cluster that does not answer takes nothing new."""
        with self._lock:
            if time.monotonic() - self._asked > CAPACITY_SECONDS:
                try:
                    self._known = self._ask()
                except ExecutorUnavailableError as error:
                    self._known = 0
                    log.warning("no jobs are started", reason=str(error))
                self._asked = time.monotonic()
            return self._known

    def lacking(self) -> str | None:
        """What a job asks for that no living node has; None where one has it."""
        largest = max((int(node.get(self._kind, 0)) for node in self._jobs.nodes()), default=0)
        if largest >= self._each:
            return None
        return f"a job asks for {self._each} {self._kind}s of a node, and the largest node has {largest}"

    def _ask(self) -> int:
        places = sum(int(node.get(self._kind, 0) // self._each) for node in self._jobs.nodes())
        return places // self._settings.nodes + self._settings.waiting


def _under_way(folder: Path) -> Submission | None:
    submission = read(folder)
    return None if submission is None or submission.ended else submission


def _note(folder: RunFolder, id: str, job: Job | None) -> None:  # noqa: A002
    """Add to the log of a run that left no result what only Ray knows of its end."""
    if folder.read_result() is not None or (job is not None and job.status != "FAILED"):
        return
    message = job.message.strip() if job else "the cluster does not know the job; was its head started again?"
    with folder.log.open("a", encoding="utf-8") as file:
        file.write(f"Ray job {id}: {message[-NOTE_CHARACTERS:]}\n")
