"""The interface between a job's workflow and the executor that runs its training."""

from pathlib import Path
from typing import Protocol


class ExecutorUnavailableError(Exception):
    """The executor does not answer: the state of a run is unknown, and the call may be repeated later."""


class Executor(Protocol):
    """Runs the training program, alone or several processes of it, in a place that outlives this server.

    Every call is idempotent, so that a workflow may repeat it after a restart. Every call about a run may raise
    ExecutorUnavailableError.
    """

    anywhere: bool
    """Whether a server on another machine can find the runs as well."""

    def capacity(self) -> int | None:
        """Number of runs that can be executed at once now; None if only `training_slots` limits them."""

    def devices(self) -> int | None:
        """Number of GPUs that all runs may lease; None if GPUs do not limit how many runs there are at a time."""

    def start(self, folder: Path, *, resume: bool) -> None:
        """Start the run of `folder`, from its last checkpoint with `resume`, unless it was already started."""

    def running(self, folder: Path) -> bool:
        """Whether the run of `folder` is running or waiting for its resources."""

    def interrupt(self, folder: Path) -> None:
        """Ask the run of `folder` to save its state and exit (SIGTERM); does not wait for it."""

    def stop(self, folder: Path) -> None:
        """Stop the run of `folder` and wait until it is gone."""
