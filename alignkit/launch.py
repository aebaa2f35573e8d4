"""The command that starts a run, the same for people and for the service.

One process is `python -m alignkit.train`. Several, or an accelerate configuration, are `accelerate launch` of it.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

import psutil
import yaml

from alignkit import extras, startup
from alignkit.errors import AlignkitError

RESUME = "--resume"
LAUNCHER = "alignkit.launch"
"""This module, as its processes name it."""
THREADS_GIVEN = "ALIGNKIT_THREADS_GIVEN"
"""Environment variable that marks OMP_NUM_THREADS as the user's, not accelerate's default."""
RETRY_EXIT = 75
"""Exit status of a trainer that ran out of memory and can resume with a smaller micro-batch (EX_TEMPFAIL)."""


class Machine(NamedTuple):
    """One of the machines of a run: its rank of `total`, and the address and port of rank 0."""

    rank: int
    total: int
    address: str
    port: int


CONFIGURATIONS = Path(__file__).with_name("accelerate_configs")
"""Accelerate configurations that come with alignkit: `zero3`, `fsdp2` and others, explained in docs/scale.md."""


def configuration(file: Path) -> Path:
    """Return the path of an accelerate configuration: `file`, or the one that comes with alignkit under that name."""
    named = CONFIGURATIONS / f"{file}.yaml"
    return named if not file.exists() and file == Path(file.name) and named.exists() else file


def require_configuration(file: Path) -> None:
    """Check --config-file, a path or the name of a configuration that comes with alignkit, before anything starts.

    Raises AlignkitError if it is not an accelerate configuration, or if it asks for DeepSpeed without it installed.
    """
    file = configuration(file)
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(sorted(path.stem for path in CONFIGURATIONS.glob("*.yaml")))
        raise AlignkitError(
            f"--config-file: cannot read {file}: {error.strerror}. Expected a file, or one of {names}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AlignkitError(f"--config-file: {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise AlignkitError(
            f"--config-file: expected an accelerate configuration, such as zero3, "
            f"found {type(values).__name__} in {file}"
        )
    if values.get("distributed_type") == "DEEPSPEED":
        extras.require("deepspeed", extra="deepspeed", purpose=f"--config-file: {file}")


def launch_command(
    recipe: Path,
    overrides: Sequence[str] = (),
    *,
    config_file: Path | None = None,
    num_processes: int | None = None,
    machine: Machine | None = None,
    python: str = sys.executable,
    resume: bool = False,
) -> list[str]:
    """The argument list of the launch command; a plain run in one process needs no launcher and gets none.

    `config_file` is an accelerate configuration, or the name of one that comes with alignkit; without one, a plain
    run. `num_processes` counts the processes on this machine; by default, the configuration's number, or one. With
    `machine`, this machine is one of several, each of which starts as many. With `resume`, the run in the recipe's
    folder resumes from its last checkpoint.
    """
    machines = machine.total if machine else 1
    total = (num_processes or 1) * machines
    training = ["-m", "alignkit.train", *training_arguments(recipe, overrides, resume=resume)]
    if total == 1 and config_file is None:
        return [python, *training]
    count = [f"--num_processes={total}"] if num_processes or not config_file else []
    plain = [
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--multi_gpu",
    ]
    options = [f"--config_file={configuration(config_file)}"] if config_file else plain
    return [
        python,
        "-m",
        LAUNCHER,
        *options,
        *(["--main_process_port=0"] if total > 1 and machine is None else []),  # several runs on one machine
        *_place(machine, has_config=config_file is not None),
        *count,
        *training,
    ]


class Request(NamedTuple):
    """The run that a standby becomes: arguments of `alignkit.train`, whole environment, working folder, log."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    log: str

    def to_line(self) -> bytes:
        """One line of JSON, as a standby reads it."""
        return json.dumps(self._asdict()).encode() + b"\n"


def standby_command(
    model: str, dtype: str, attention: str | None, *, seconds: float, python: str = sys.executable
) -> list[str]:
    """The argument list of a trainer that loads `model` and waits `seconds` for a run; see `alignkit.standby`."""
    return [python, "-m", "alignkit.standby", model, dtype, str(seconds), *([attention] if attention else [])]


def training_arguments(recipe: Path, overrides: Sequence[str] = (), *, resume: bool = False) -> list[str]:
    """The arguments of `alignkit.train`."""
    return [str(recipe), *([RESUME] if resume else []), *overrides]


def _place(machine: Machine | None, *, has_config: bool) -> list[str]:
    """Options that identify this machine, unless the configuration does."""
    if machine is None:
        return [] if has_config else ["--num_machines=1"]
    return [
        f"--num_machines={machine.total}",
        f"--machine_rank={machine.rank}",
        f"--main_process_ip={machine.address}",
        f"--main_process_port={machine.port}",
    ]


def run(command: Sequence[str]) -> int:
    """Run a launch command until it ends; returns its exit status. Passes SIGTERM on to the trainers."""
    launcher = subprocess.Popen(command)

    def pass_on(_signal: int, _frame: FrameType | None) -> None:
        interrupt(launcher.pid)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        return launcher.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupt(launcher: int) -> None:
    """Send SIGTERM to the trainers: the children of a launcher, or the process `launcher` if it trains itself.

    Accelerate's launcher does not get the signal: it would end at once and give its trainers only 30 seconds.
    Processes that have already ended are ignored.
    """
    with suppress(psutil.Error, ValueError):
        process = psutil.Process(launcher)
        trainers = process.children() if LAUNCHER in process.cmdline() else []
        for trainer in trainers or [process]:
            with suppress(psutil.Error):
                trainer.terminate()


def start_again(module: str) -> NoReturn:
    """Replace this process, which runs `module`, by one that resumes its run with the same arguments."""
    arguments = [*sys.argv[1:], *([] if RESUME in sys.argv else [RESUME])]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606


def _launch() -> int:
    """Run accelerate's launcher without its report of a failed trainer, which has already reported the reason."""
    from accelerate.commands.launch import (
        main,  # saves accelerate and torch where a command is only composed
    )
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        main()
    except subprocess.CalledProcessError as error:
        return error.returncode
    except ChildFailedError as error:
        statuses: list[int] = [failure.exitcode for failure in error.failures.values()]
        return RETRY_EXIT if RETRY_EXIT in statuses else statuses[0]
    return 0


def _main() -> None:
    """Launch the trainer; launch it once more if it ran out of memory and can resume with a smaller micro-batch."""
    startup.begin()  # a launcher imports much and makes nothing
    if "OMP_NUM_THREADS" in os.environ:
        os.environ[THREADS_GIVEN] = "1"
    status = _launch()
    if status == RETRY_EXIT:
        start_again(LAUNCHER)
    sys.exit(status)


if __name__ == "__main__":
    _main()
