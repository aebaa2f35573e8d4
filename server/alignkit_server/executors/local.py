"""Runs training as a process of this machine, in its own session, which a restarted server finds again."""

import sys
from pathlib import Path

from alignkit.launch import launch_command
from alignkit.run.folder import RunFolder
from alignkit_server.engines.process import ManagedProcess
from alignkit_server.executors.environment import training_environment


class LocalExecutor:
    """Implements alignkit_server.executors.protocol.Executor with one process group per run."""

    anywhere = False

    def __init__(self, *, grace_seconds: float, python: str = sys.executable) -> None:
        self._grace = grace_seconds
        self._python = python
        self._processes: dict[Path, ManagedProcess] = {}

    def capacity(self) -> int | None:
        """No limit besides the training slots."""
        return None

    def start(self, folder: Path, *, resume: bool) -> None:
        """Start training in `folder`, or resume it, unless its process was already started."""
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
        """Whether the process lives; after its end, also stops any descendants it left behind."""
        process = self._find(folder)
        if process is None:
            return False
        if process.alive():
            return True
        self.stop(folder)
        return False

    def interrupt(self, folder: Path) -> None:
        """Ask the trainer to save and exit."""
        process = self._find(folder)
        if process is not None:
            process.interrupt()

    def stop(self, folder: Path) -> None:
        """Stop the process and all its children."""
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
