"""Training as a process of this machine, in a session of its own, found again after a restart."""

import sys
from pathlib import Path

from alignkit.launch import launch_command
from alignkit.run.folder import RunFolder
from alignkit_server.engines.process import ManagedProcess
from alignkit_server.executors.environment import training_environment


class LocalExecutor:
    """Implements alignkit_server.executors.protocol.Executor with one process group a run."""

    anywhere = False

    def __init__(self, *, grace_seconds: float, python: str = sys.executable) -> None:
        self._grace = grace_seconds
        self._python = python
        self._processes: dict[Path, ManagedProcess] = {}

    def capacity(self) -> int | None:
        """As many as there are slots for."""
        return None

    def start(self, folder: Path, *, resume: bool) -> None:
        """Start training in `folder`, or go on, unless its process was started before."""
        known = self._find(folder)
        if known is not None and known.pid:
            return
        if known is not None:  # a server died between recording the process and starting it
            known.terminate(self._grace)
        self._processes[folder] = ManagedProcess.start(
            launch_command(RunFolder(folder).recipe, python=self._python, resume=resume),
            log_path=RunFolder(folder).log,
            identity_path=_identity(folder),
            environment=training_environment(folder),
            cwd=folder,
        )

    def running(self, folder: Path) -> bool:
        """Whether the process lives; once it does not, what it may have left behind is ended."""
        process = self._find(folder)
        if process is None:
            return False
        if process.alive():
            return True
        self.stop(folder)
        return False

    def interrupt(self, folder: Path) -> None:
        """Let the trainer save and end."""
        process = self._find(folder)
        if process is not None:
            process.interrupt()

    def stop(self, folder: Path) -> None:
        """End the process and all of its children."""
        process = self._find(folder)
        if process is not None:
            process.terminate(self._grace)
            self._processes.pop(folder, None)

    def _find(self, folder: Path) -> ManagedProcess | None:
        if folder in self._processes:
            return self._processes[folder]
        return ManagedProcess.attach(_identity(folder), log_path=RunFolder(folder).log)


def _identity(folder: Path) -> Path:
    return folder / "process.json"
