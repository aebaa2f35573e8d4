"""Runs training as a process of this machine, in its own session, which a restarted server finds again."""

import sys
from pathlib import Path

import yaml

import alignkit
from alignkit.errors import AlignkitError
from alignkit.launch import launch_command
from alignkit.recipe import paths_of
from alignkit.run.folder import RunFolder
from alignkit_server.engines.process import ManagedProcess
from alignkit_server.executors.confine import confined, possible
from alignkit_server.executors.environment import training_environment


class LocalExecutor:
    """Implements alignkit_server.executors.protocol.Executor with one process group per run."""

    anywhere = False

    def __init__(
        self, *, grace_seconds: float, python: str = sys.executable, confined_to: Path | None = None
    ) -> None:
        """With `confined_to`, a run sees of that home only its own folder and what its recipe reads.

        Raises AlignkitError where this system does not allow it.
        """
        if confined_to is not None and not possible():
            raise AlignkitError(
                "confine_training: this system gives no user and mount namespaces to a process; allow them, or set "
                "ALIGNKIT_CONFINE_TRAINING=false"
            )
        self._home = confined_to
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
        recipe = RunFolder(folder).recipe
        command = launch_command(recipe, python=self._python, resume=resume)
        if self._home is not None:
            command = confined(command, home=self._home, writes=folder, reads=reads_of(recipe))
        self._processes[folder] = ManagedProcess.start(
            command,
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


def reads_of(recipe: Path) -> list[Path]:
    """What a run reads: the files and folders that its recipe names, and the installation itself."""
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    named = [Path(value) for _, value in paths_of(values)]
    return [path for path in (*named, Path(sys.prefix), Path(alignkit.__file__).parent) if path.exists()]


def _identity(folder: Path) -> Path:
    return folder / "process.json"
