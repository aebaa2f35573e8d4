"""Ways to run one recipe that must not change its result: paused or killed, split, unpacked, shared by two processes.

The recipe is f-DPO with LoRA in float32. Other methods and ways to share are in tests/distributed.

Each arm is compared with the whole run of the same seed: held-out loss, the adapter's B, and single weights.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from alignkit.launch import launch_command
from evidence.harness import ROOT, Evidence, Found, Settings, Values, main
from evidence.questions import ask, pairs, write
from evidence.small_runs import named, recipe, run, succeeded, written

STEPS = 24
IN_ONE: dict[str, dict[str, Any]] = {
    "micro-batches of 2": {"micro_batch_size": 2},
    "not packed": {"packing": False},
}
"""Options of `training` that a run in one process has."""
IN_TWO: dict[str, Path | None] = {"two processes": None, "ZeRO-2": Path("zero2"), "ZeRO-3": Path("zero3")}
"""Accelerate configurations of runs in two processes."""
ARMS = ("resumed", *IN_ONE, *IN_TWO, "killed")
POLL_SECONDS = 0.05


def _recipe(settings: Settings, seed: int) -> dict[str, Any]:
    folder = settings.work / "same_run"
    return recipe(
        settings,
        train=write(pairs(ask(200, seed), "plain", "long"), folder / f"train-{seed}.jsonl"),
        validation=write(pairs(ask(24, 0, held_out=True), "plain", "long"), folder / "held-out.jsonl"),
        method={"type": "f_dpo", "beta": 0.1},
        steps=STEPS,
        seed=seed,
        batch=4,
    )


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Run the recipe whole and in the arm's way, and compare both."""
    given = _recipe(settings, seed)
    whole, _ = run(settings, f"same_run/whole-{seed}", given)
    given["training"] = given["training"] | IN_ONE.get(arm, {})
    name = f"same_run/{named(arm)}-{seed}"
    folder = settings.work / (name + "-smoke" * settings.smoke)
    if arm in IN_ONE:
        run(settings, name, given)
    elif not succeeded(folder):
        shutil.rmtree(folder, ignore_errors=True)
        if arm in IN_TWO:
            _launch(folder, given, config_file=IN_TWO[arm], num_processes=2)
            _require_processes(folder, 2)
        else:
            _interrupted(folder, given, settings.steps(STEPS) // 2, kill=arm == "killed")
    return _compared(whole, folder)


def _launch(folder: Path, given: Mapping[str, Any], **how: Any) -> None:
    """Run a recipe as `alignkit train` does."""
    subprocess.run(_command(folder, given, **how), check=True, env=_environment())


def _command(folder: Path, given: Mapping[str, Any], **how: Any) -> list[str]:
    return launch_command(written(folder, given), **how)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def _interrupted(folder: Path, given: Mapping[str, Any], step: int, *, kill: bool) -> None:
    """Run a recipe that pauses after a step, or is killed once its checkpoint is there, and resume it."""
    training = given["training"]
    if kill:
        given = {**given, "training": training | {"save_steps": step}}
        _kill_at(folder / "checkpoints" / f"checkpoint-{step}", _command(folder, given))
    else:
        _launch(folder, {**given, "training": training | {"pause_at": step}})
    _launch(folder, given, resume=True)


def _kill_at(checkpoint: Path, command: Sequence[str]) -> None:
    """Start a run and kill its processes when a checkpoint is there. Raises RuntimeError if it ends before."""
    process = subprocess.Popen(command, env=_environment(), start_new_session=True)
    while not checkpoint.is_dir():
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with {process.returncode} before {checkpoint}")
        time.sleep(POLL_SECONDS)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _require_processes(folder: Path, expected: int) -> None:
    """Raise RuntimeError unless the run had that many processes, since a launcher may start fewer without a word."""
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    found = int(facts["environment"]["processes"])
    if found != expected:
        raise RuntimeError(f"{folder} ran in {found} processes, expected {expected}")


def _compared(whole: Path, other: Path) -> dict[str, float]:
    one, two = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (whole, other))
    losses = [
        json.loads((path / "result.json").read_text(encoding="utf-8"))["metrics"]["valid_loss"]
        for path in (whole, other)
    ]
    away = max(float((one[name] - two[name]).abs().max()) for name in one)
    return {
        "held-out loss, relative difference": abs(losses[0] - losses[1]) / losses[0],
        "B, difference as a share of its norm": _norm(one, two) / _norm(one),
        "one weight, largest difference": away,
    }


def _norm(one: dict[str, Tensor], less: dict[str, Tensor] | None = None) -> float:
    """The norm of all B, which begin at zero, or of how they differ from those of another adapter."""
    parts = [value - less[name] if less else value for name, value in one.items() if "lora_B" in name]
    return float(torch.cat([part.double().flatten() for part in parts]).norm())


def draw(found: Found, axis: Any) -> None:
    """Each difference, relative, on a logarithmic scale."""
    names = ("held-out loss, relative difference", "B, difference as a share of its norm")
    for name, mark in zip(names, "ox", strict=True):
        points = [
            (at, max(value, 1e-9)) for at, arm in enumerate(found.runs) for value in found.values(arm, name)
        ]
        axis.plot(*zip(*points, strict=True), mark, color="black", mfc="none", label=name)
    axis.set(yscale="log", ylabel="relative difference (10⁻⁹: none)", xticks=range(len(found.runs)))
    axis.legend()
    axis.set_xticklabels(list(found.runs), rotation=20, ha="right")


EVIDENCE = Evidence(
    "same_run",
    "Resuming, splitting, packing and sharing a run among processes do not change its result beyond rounding.",
    ARMS,
    measure,
    draw,
    needs_model=True,
    outcome="As claimed, of f-DPO with LoRA in float32 on a CPU. A run that is paused, or killed "
    "once a checkpoint is there, and resumed has the adapter of the whole run to the last bit. With "
    "micro-batches, without packing, in two processes, under ZeRO-2 and under ZeRO-3 the held-out "
    "loss differs by at most 4.6 millionths of itself and B by at most 1e-4 of its norm. Two "
    "processes give the numbers of two micro-batches in every seed. A single weight differs by up to "
    "4.9e-4, about one step of Adam at this rate, which takes its first step in full however small "
    "the gradient.",
)

if __name__ == "__main__":
    main(EVIDENCE)
