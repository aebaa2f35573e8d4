"""Runs training as a process on this machine, in its own session; a restarted server finds it again."""

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

import alignkit
from alignkit.errors import AlignkitError
from alignkit.launch import Request, launch_command, training_arguments
from alignkit.recipe import paths_of
from alignkit.run.folder import RunFolder
from alignkit_server.confine import confined, possible, refusal
from alignkit_server.engines.process import ManagedProcess
from alignkit_server.executors.environment import NICE, training_environment
from alignkit_server.executors.leases import DeviceLeases
from alignkit_server.executors.oom import ENDED, KILLED, was_killed
from alignkit_server.executors.standbys import Standbys

logger = logging.getLogger(__name__)


class LocalExecutor:
    """Implements alignkit_server.executors.protocol.Executor with one process group per run."""

    anywhere = False

    def __init__(
        self,
        *,
        grace_seconds: float,
        python: str = sys.executable,
        confined_to: Path | None = None,
        leases: Callable[[Callable[[Path], bool]], DeviceLeases] | None = None,
        standbys: Standbys | None = None,
    ) -> None:
        """With `confined_to`, a run sees of that home only its own folder, its project's stores and its inputs.

        `leases` creates the leases of this machine's GPUs, given a function that returns whether a run lives; None
        without GPUs. `standbys` start the next run on a model sooner; a confined run cannot use them, because what
        it may see is set before it starts. Raises AlignkitError if this system does not allow confinement.
        """
        if confined_to is not None and not possible():
            raise AlignkitError(refusal("ALIGNKIT_CONFINE_TRAINING"))
        self._home = confined_to
        self._grace = grace_seconds
        self._python = python
        self._standbys = None if confined_to else standbys
        self._leased: dict[Path, dict[str, str]] = {}  # the GPUs of each run that this server started
        self._processes: dict[Path, ManagedProcess] = {}
        self._leases = None if leases is None else leases(self._alive)

    def capacity(self) -> int | None:
        """No limit besides the training slots."""
        return None

    def devices(self) -> int | None:
        """Number of GPUs that runs may lease; None without GPUs."""
        return None if self._leases is None else len(self._leases.devices())

    def start(self, folder: Path, *, resume: bool) -> None:
        """Start training in `folder`, or resume it, unless its process was already started.

        Raises ExecutorUnavailableError while too few GPUs are free.
        """
        known = self._find(folder)
        if known is not None and known.pid:
            return
        if known is not None:  # a server died between recording the process and starting it
            known.terminate(self._grace)
        recipe = RunFolder(folder).recipe
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        training = values.get("training") or {}
        count, sharding = training.get("devices", 1), training.get("sharding")
        command = launch_command(
            recipe,
            python=self._python,
            resume=resume,
            num_processes=count if count > 1 else None,
            config_file=Path(sharding) if count > 1 and sharding in {"zero2", "zero3"} else None,
        )
        if self._home is not None:
            writes = [folder, *_stores_of(values)]
            command = confined(command, home=self._home, writes=writes, reads=reads_of(recipe))
        leased = {} if self._leases is None else self._leases.take(folder, count)
        self._leased[folder] = leased
        environment = training_environment(folder) | leased
        try:
            self._processes[folder] = self._from_standby(
                folder, values, environment, resume=resume
            ) or ManagedProcess.start(
                command,
                log_path=RunFolder(folder).log,
                identity_path=_identity(folder),
                environment=environment,
                cwd=folder,
                nice=NICE,
            )
        except BaseException:
            self._release(folder)
            raise
        if self._leases is not None:
            self._leases.started(folder)

    def running(self, folder: Path) -> bool:
        """Whether the process lives; after its end, also stops any descendants it left behind."""
        process = self._find(folder)
        if process is None:
            self._release(folder)
            return False
        if process.alive():
            return True
        if process.returncode and RunFolder(folder).read_result() is None:  # it had no chance to write so
            line = KILLED if was_killed(process.returncode) else f"{ENDED} {process.returncode}"
            with RunFolder(folder).log.open("a", encoding="utf-8") as log:
                log.write(f"{line}\n")
        leased = self._leased.get(folder)
        self.stop(folder)
        if self._standbys is not None and leased is not None:
            self._prepare_next(folder, self._standbys, leased)
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
        self._release(folder)

    def _from_standby(
        self,
        folder: Path,
        recipe: Mapping[str, Any],
        environment: Mapping[str, str],
        *,
        resume: bool,
    ) -> ManagedProcess | None:
        """The run's process, if a standby could become it."""
        if self._standbys is None or (standby := self._standbys.take(recipe, self._leased[folder])) is None:
            return None
        log = RunFolder(folder).log

        def run(marks: Mapping[str, str]) -> bytes:
            arguments = training_arguments(RunFolder(folder).recipe, resume=resume)
            return Request(arguments, {**environment, **marks}, str(folder), str(log)).to_line()

        try:
            return standby.hand_over(run, log_path=log, identity_path=_identity(folder))
        except OSError:  # it has ended meanwhile
            return None

    @staticmethod
    def _prepare_next(folder: Path, standbys: Standbys, leased: Mapping[str, str]) -> None:
        """Let a trainer wait for the next run on the model of one that succeeded."""
        if (RunFolder(folder).read_result() or {}).get("status") != "succeeded":
            return
        try:
            standbys.prepare(yaml.safe_load(RunFolder(folder).recipe.read_text("utf-8")), leased)
        except OSError as error:  # the next run starts as this one did
            logger.warning("no trainer waits for the next job: %s", error)

    def _release(self, folder: Path) -> None:
        self._leased.pop(folder, None)
        if self._leases is not None:
            self._leases.release(folder)

    def _alive(self, folder: Path) -> bool:
        process = self._find(folder)
        return process is not None and process.alive()

    def _find(self, folder: Path) -> ManagedProcess | None:
        if folder in self._processes:
            return self._processes[folder]
        return ManagedProcess.attach(_identity(folder), log_path=RunFolder(folder).log)


def reads_of(recipe: Path) -> list[Path]:
    """Everything that a run reads: the files and folders that its recipe names, and the installation."""
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    named = [Path(value) for _, value in paths_of(values)]
    return [path for path in (*named, Path(sys.prefix), Path(alignkit.__file__).parent) if path.exists()]


def _stores_of(recipe: Mapping[str, Any]) -> list[Path]:
    """The folders of the project's token ids and log-probs, as far as the run has them; they exist afterwards."""
    data, training = recipe.get("data") or {}, recipe.get("training") or {}
    folders = [Path(path) for path in (data.get("token_folder"), training.get("reference_folder")) if path]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return folders


def _identity(folder: Path) -> Path:
    return folder / "process.json"
