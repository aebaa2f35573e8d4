"""The command that starts a run: `accelerate launch -m alignkit.train`, the same for people and for the service."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil


def launch_command(
    recipe: Path,
    overrides: Sequence[str] = (),
    *,
    config_file: Path | None = None,
    num_processes: int | None = None,
    python: str = sys.executable,
    resume: bool = False,
) -> list[str]:
    """The argument list. `config_file` is accelerate's (recipes/accelerate/…); without one, a plain run.

    `num_processes` are of this machine; default: the configuration's, or one.
    With `resume` the run in the recipe's folder goes on from its last checkpoint.
    """
    count = [f"--num_processes={num_processes or 1}"] if num_processes or not config_file else []
    plain = [
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        *(["--multi_gpu"] if (num_processes or 1) > 1 else []),
    ]
    options = [f"--config_file={config_file}"] if config_file else plain
    return [
        python,
        "-m",
        "accelerate.commands.launch",
        *options,
        *count,
        "-m",
        "alignkit.train",
        str(recipe),
        *(["--resume"] if resume else []),
        *overrides,
    ]


def run(command: Sequence[str]) -> int:
    """Run a launch command to its end; returns its exit status. A SIGTERM is passed on to the trainers.

    To them alone: accelerate's launcher would end at once and leave one behind, or give several 30 seconds.
    """
    launcher = subprocess.Popen(command)

    def pass_on(_signal: int, _frame: FrameType | None) -> None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(launcher.pid)
            for trainer in process.children() or [process]:
                trainer.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        return launcher.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
