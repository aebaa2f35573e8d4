"""The command that starts a run: `accelerate launch -m alignkit.train`, the same for people and for the service."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil
import yaml

from alignkit import extras
from alignkit.errors import AlignkitError


class Machine(NamedTuple):
    """One of several machines of a run: its rank of `total`, and where rank 0 listens."""

    rank: int
    total: int
    address: str
    port: int


def require_configuration(file: Path) -> None:
    """Check the file of --config-file before anything starts.

    Raises AlignkitError where it is no configuration of accelerate's, or asks for DeepSpeed without it installed.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise AlignkitError(f"--config-file: cannot read {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AlignkitError(f"--config-file: {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise AlignkitError(
            f"--config-file: expected accelerate's configuration, such as recipes/accelerate/zero3.yaml, "
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
    """The argument list. `config_file` is accelerate's (recipes/accelerate/…); without one, a plain run.

    `num_processes` are of this machine; default: the configuration's, or one. With `machine`, this is one of
    several, each of which starts as many.
    With `resume` the run in the recipe's folder goes on from its last checkpoint.
    """
    machines = machine.total if machine else 1
    total = (num_processes or 1) * machines
    count = [f"--num_processes={total}"] if num_processes or not config_file else []
    plain = [
        "--mixed_precision=no",
        "--dynamo_backend=no",
        *(["--multi_gpu"] if total > 1 else []),
    ]
    options = [f"--config_file={config_file}"] if config_file else plain
    return [
        python,
        "-m",
        "alignkit.launch",
        *options,
        *_place(machine, has_config=config_file is not None),
        *count,
        "-m",
        "alignkit.train",
        str(recipe),
        *(["--resume"] if resume else []),
        *overrides,
    ]


def _place(machine: Machine | None, *, has_config: bool) -> list[str]:
    """Which of the run's machines this is, where the configuration does not say."""
    if machine is None:
        return [] if has_config else ["--num_machines=1"]
    return [
        f"--num_machines={machine.total}",
        f"--machine_rank={machine.rank}",
        f"--main_process_ip={machine.address}",
        f"--main_process_port={machine.port}",
    ]


def run(command: Sequence[str]) -> int:
    """Run a launch command to its end; returns its exit status. A SIGTERM is passed on to the trainers."""
    launcher = subprocess.Popen(command)

    def pass_on(_signal: int, _frame: FrameType | None) -> None:
        interrupt(launcher.pid)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        return launcher.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupt(launcher: int) -> None:
    """Send SIGTERM to the children of that process, which may end in their own time; to it alone where it has none.

    To the trainers alone: accelerate's launcher would end at once and leave one behind, or give several 30 seconds.
    What has ended is passed over.
    """
    with suppress(psutil.Error, ValueError):
        process = psutil.Process(launcher)
        for trainer in process.children() or [process]:
            with suppress(psutil.Error):
                trainer.terminate()


def _main() -> None:
    """Run accelerate's launcher, without its own report of a trainer that failed: the trainer has said why."""
    from accelerate.commands.launch import (
        main,  # saves accelerate and torch wherever a command is only put together
    )
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except ChildFailedError as error:
        sys.exit(next(iter(error.failures.values())).exitcode)


if __name__ == "__main__":
    _main()
