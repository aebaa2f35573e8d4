"""What a job's workflow asks of whatever runs its training."""

from pathlib import Path
from typing import Protocol


class Executor(Protocol):
    """Runs `accelerate launch -m alignkit.train recipe.yaml` somewhere that outlives this server.

    Every call is idempotent, so that a workflow may repeat any of them after a restart.
    """

    anywhere: bool
    """Whether a server on another machine finds the runs as well."""

    def start(self, folder: Path, *, resume: bool) -> None:
        """Start the run of `folder`, from its last checkpoint where it resumes, unless it was started before."""

    def running(self, folder: Path) -> bool:
        """Whether the run of `folder` is still going."""

    def interrupt(self, folder: Path) -> None:
        """Ask the run of `folder` to save its state and end, by SIGTERM; does not wait for it."""

    def stop(self, folder: Path) -> None:
        """End the run of `folder` and wait until it is gone."""
