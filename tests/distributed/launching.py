"""Recipes of every method on tiny models, and `accelerate launch` over them on two processes."""

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from alignkit import methods
from alignkit.launch import CONFIGURATIONS
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from tests.completion import write_completions
from tests.labelled import write_labelled
from tests.preference import write_pairs
from tests.tiny import build_tiny_adapter, build_tiny_model

CONFIGS = CONFIGURATIONS


def _path_through_the_trainers(name: str) -> object:
    """Methods with the same key are trained by the same code, but for a loss of single pairs."""
    method = methods.METHODS[name]
    return method.uses_reference if issubclass(method, methods.PairMethod) else name


def first_of_each(key: Callable[[str], object], names: Iterable[str]) -> tuple[str, ...]:
    """The first of the names with each key, in order."""
    kept: dict[object, str] = {}
    for name in names:
        kept.setdefault(key(name), name)
    return tuple(kept.values())


METHODS = first_of_each(_path_through_the_trainers, methods.METHODS)
"""Every registered method; of those on pairs the first with a reference and the first without."""
STEPS = 3
_OF_WHOLE_WEIGHTS = {"ps_kd"}
"""Methods that are refused where no process holds a weight whole."""


def runs_under(method: str, config: str) -> bool:
    """Whether the method runs under this accelerate configuration."""
    return not (method in _OF_WHOLE_WEIGHTS and config.startswith(("zero3", "fsdp2")))


@dataclass(frozen=True)
class Run:
    """A finished run's folder, and what its processes measured."""

    folder: Path

    def logs(self) -> list[dict[str, Any]]:
        """Every metrics event's data, in order, without what is not the same twice."""
        lines = (self.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        return [
            {name: value for name, value in event["data"].items() if name != "seconds_remaining"}
            for event in events
            if event["type"] == "metrics"
        ]

    def losses(self) -> list[float]:
        """Of every training step."""
        return [data["train_loss"] for data in self.logs() if "train_loss" in data]

    def held_out(self) -> list[dict[str, float]]:
        """Every evaluation's metrics."""
        return [data for data in self.logs() if "valid_loss" in data]

    def weights(self) -> dict[str, Tensor]:
        """The result's."""
        (file,) = [*self.folder.glob("adapter/*.safetensors"), *self.folder.glob("model/*.safetensors")]
        return load_file(file)

    def history(self) -> list[dict[str, Any]]:
        """The Trainer's log as the last checkpoint has it, without what depends on the clock."""
        state = json.loads((self.last_checkpoint() / "trainer_state.json").read_text(encoding="utf-8"))
        clocked = ("runtime", "per_second")
        return [
            {name: value for name, value in entry.items() if not name.endswith(clocked)}
            for entry in state["log_history"]
        ]

    def last_checkpoint(self) -> Path:
        """The newest whole one."""
        found = RunFolder(self.folder).last_checkpoint()
        assert found is not None
        return found

    def optimizer(self) -> dict[str, Tensor]:
        """Every tensor of the optimizer's state in the last checkpoint, by where it is."""
        files = [
            *self.last_checkpoint().rglob("optimizer.pt"),
            *self.last_checkpoint().rglob("optimizer.bin"),
            *self.last_checkpoint().rglob("*_optim_states.pt"),
        ]
        return {
            f"{file.name}{place}": value
            for file in files
            for place, value in _tensors(torch.load(file, weights_only=False))
        }

    def ranks(self) -> list[dict[str, Any]]:
        """What each process measured."""
        files = sorted(self.folder.parent.glob(f"{self.folder.name}.rank-*.json"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _tensors(value: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(inner, f"{place}/{key}")


def build_inputs(folder: Path, *, tied: bool = False, rows: int = 16) -> Path:
    """A student, its adapter, a teacher and rows. `tied`: of both models the head is the embedding."""
    build_tiny_model(folder / "model", tied=tied)
    build_tiny_adapter(folder / "model", folder / "adapter")
    build_tiny_model(folder / "teacher", seed=1, tied=tied)
    for name, count, start in (("train", rows, 0), ("validation", 5, 100)):
        write_pairs(folder / f"pairs-{name}.jsonl", count, start)
        write_completions(folder / f"completions-{name}.jsonl", count, start)
        write_labelled(folder / f"labelled-{name}.jsonl", count, start)
        dispreferred = (
            {
                "prompt": f"What is {index}?",
                "rejected": f"Not {index}, never.",
                "samples": [f"It is {index}, {i}." for i in range(1 + index % 3)],
            }
            for index in range(start, start + count)
        )
        (folder / f"dispreferred-{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in dispreferred)
        )
    return folder


_FILES = {
    "preference": "pairs",
    "labelled": "labelled",
    "dispreferred": "dispreferred",
    "completion": "completions",
}
"""By kind of row, the files of `build_inputs`."""
_OPTIONS: dict[str, dict[str, Any]] = {
    "f_dpo": {"divergence": "js_divergence", "beta": 0.5, "sft_weight": 0.1},
    "d2o": {"sequence_batch_size": 2},
    "sinkd": {"max_rows": 12, "sinkhorn_weight": 0.05},
    "kto": {"beta": 0.5, "desirable_weight": 1.5},
}
"""Options of methods whose defaults do not suit runs of a few short rows."""


def method_section(inputs: Path, method: str) -> dict[str, Any]:
    """The recipe's section."""
    distils = issubclass(methods.METHODS[method], methods.DistillMethod)
    teacher = {"teacher": {"path": str(inputs / "teacher")}} if distils else {}
    return {"type": method, **_OPTIONS.get(method, {}), **teacher}


def rows_of(method: str) -> str:
    """The files of the method's rows."""
    kind = methods.METHODS[method].rows
    if kind not in _FILES:
        raise AssertionError(
            f"{method} trains on rows of the kind {kind}: write a file of them in build_inputs"
        )
    return _FILES[kind]


def write_recipe(
    inputs: Path,
    output: Path,
    method: str,
    *,
    kind: str = "lora",
    dropout: float = 0.0,
    options: dict[str, Any] | None = None,
    parts: Mapping[str, Any] | None = None,
    **training: Any,
) -> Path:
    """A recipe of a few steps, each of two micro-batches on each of two processes.

    `options` are the method's. `parts` go into the recipe's sections, or are whole sections that are no mappings.

    `kind`: `lora`, `full`, or `adapter`, which trains on from one.
    """
    rows = rows_of(method)
    values: dict[str, Any] = {
        "model": {"path": str(inputs / "model")}
        | ({"adapter": str(inputs / "adapter")} if kind == "adapter" else {}),
        "data": {
            "train": str(inputs / f"{rows}-train.jsonl"),
            "validation": str(inputs / f"{rows}-validation.jsonl"),
            "max_length": 128,
        },
        "method": method_section(inputs, method) | (options or {}),
        "training": {
            "max_steps": STEPS,
            "batch_size": 8,
            "micro_batch_size": 2,
            "learning_rate": 1e-3,
            "eval_steps": 2,
            "eval_batch_size": 2,
            "save_steps": 2,
            **training,
        },
        "collapse_guard": {"prompts": 2, "max_new_tokens": 8},
        "seed": 5,
        "output_dir": str(output),
    }
    if kind != "adapter":
        values["lora"] = {"r": 4, "dropout": dropout} if kind == "lora" else None
    for section, own in (parts or {}).items():
        values[section] = {**(values.get(section) or {}), **own} if isinstance(own, dict) else own
    path = output.with_suffix(".yaml")
    path.write_text(Recipe.parse(values).to_yaml(), encoding="utf-8")
    return path


def launch(
    config: str, recipes: Sequence[Path | str], *, processes: int = 2, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch --config_file recipes/accelerate/CONFIG.yaml` over the recipes, one after the other.

    `single` needs no launcher and gets none, which saves the time to import one. A recipe may have an option of
    `tests.distributed.worker` behind its path. `zero3_multinode` is launched as on two nodes, each with a process.
    The result has what all launchers wrote, and the worst of their exit statuses.
    """
    nodes = 2 if config == "zero3_multinode" else 1
    launcher = [
        *("-m", "accelerate.commands.launch"),
        f"--config_file={CONFIGS / config}.yaml",
        f"--num_processes={processes}",
        f"--main_process_port={_free_ports(len(recipes) + 1)}",
    ]
    commands = [[] if config == "single" else [*launcher, f"--machine_rank={rank}"] for rank in range(nodes)]
    work = ["-m", "tests.distributed.worker", *map(str, recipes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with ThreadPoolExecutor(nodes) as pool:
        done = list(
            pool.map(
                lambda command: subprocess.run(
                    [sys.executable, *command, *work],
                    check=False,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=timeout,
                    env=environment,
                ),
                commands,
            )
        )
    status = max(done, key=lambda one: abs(one.returncode)).returncode
    return subprocess.CompletedProcess(launcher, status, "".join(one.stdout for one in done))


def _free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on, below those that connections are given."""
    while True:
        first = random.randrange(10_000, 32_000)
        if all(_free(port) for port in range(first, first + count)):
            return first


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
