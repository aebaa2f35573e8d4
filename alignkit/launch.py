"""The command that starts a run: `accelerate launch -m alignkit.train`, the same for people and for the service."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Machine(NamedTuple):
    """One of several machines of a run: its rank of `count`, and where rank 0 listens."""

    rank: int
    count: int
    address: str
    port: int


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
    machines = machine.count if machine else 1
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
        "accelerate.commands.launch",
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
        f"--num_machines={machine.count}",
        f"--machine_rank={machine.rank}",
        f"--main_process_ip={machine.address}",
        f"--main_process_port={machine.port}",
    ]
