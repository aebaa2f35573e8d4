"""What a job's workflow asks of whatever runs its training."""

from pathlib import Path
from typing import Protocol


class ExecutorUnavailableError(Exception):
    """What runs the training does not answer: nothing is known of a run, and the call may be repeated later."""


class Executor(Protocol):
    """Runs `accelerate launch -m alignkit.train recipe.yaml` somewhere that outlives this server.

    Every call is idempotent, so that a workflow may repeat any of them after a restart. Every call about a run may
    raise ExecutorUnavailableError.
    """

    anywhere: bool
    """Whether a server on another machine finds the runs as well."""

    def capacity(self) -> int | None:
        """How many runs it takes at once as things are; None where only `training_slots` bounds them."""

    def start(self, folder: Path, *, resume: bool) -> None:
        """Start the run of `folder`, from its last checkpoint where it resumes, unless it was started before."""

    def running(self, folder: Path) -> bool:
        """Whether the run of `folder` is still going, or still waits for its resources."""

    def interrupt(self, folder: Path) -> None:
        """Ask the run of `folder` to save its state and end, by SIGTERM; does not wait for it."""

    def stop(self, folder: Path) -> None:
        """End the run of `folder` and wait until it is gone."""
