"""Ways to run one recipe that must not change its result: killed and resumed, split, unpacked, over two processes.

Each arm is compared with the whole run of the same seed: held-out loss, the adapter's B, and single weights.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from alignkit.launch import launch_command
from evidence.harness import ROOT, Evidence, Found, Settings, Values, main
from evidence.questions import ask, pairs, write
from evidence.small_runs import recipe, run, succeeded, written

STEPS = 24
ARMS: dict[str, dict[str, Any]] = {
    "resumed": {"pause_at": STEPS // 2},
    "micro-batches of 2": {"micro_batch_size": 2},
    "not packed": {"packing": False},
    "two processes": {},
}


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


def _launched(settings: Settings, name: str, given: dict[str, Any], **how: Any) -> Path:
    """Run a recipe as `alignkit train` does unless the run is finished, and return the run's folder."""
    folder = settings.work / (name + "-smoke" * settings.smoke)
    if succeeded(folder):
        return folder
    path = written(folder, given)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(launch_command(path, **how), check=True, env=env)
    return folder


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Run the recipe whole and in the arm's way, and compare both."""
    given = _recipe(settings, seed)
    whole, _ = run(settings, f"same_run/whole-{seed}", given)
    name = f"same_run/{list(ARMS).index(arm)}-{seed}"
    options = dict(ARMS[arm])
    if arm == "resumed":
        options = {"pause_at": settings.steps(STEPS) // 2}
    given["training"] = given["training"] | options
    if arm == "resumed":
        _launched(settings, name, given)
        given["training"].pop("pause_at")
        other = _launched(settings, name, given, resume=True)
    elif arm == "two processes":
        other = _launched(settings, name, given, num_processes=2)
        _require_processes(other, 2)
    else:
        other, _ = run(settings, name, given)
    return _compared(whole, other)


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
    tuple(ARMS),
    measure,
    draw,
    needs_model=True,
    outcome="As claimed. A resumed run is equal to the last bit. With micro-batches, without packing and in two "
    "processes the held-out loss differs by at most three millionths of itself and B by at most 5e-5 of "
    "its norm; two processes equal two micro-batches exactly. A single weight may differ by up to one "
    "step of Adam, which takes its first step in full however small the gradient.",
)

if __name__ == "__main__":
    main(EVIDENCE)
