"""Runs of many cases under several configurations, each launched once, and what two processes must have in common
with one."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.launching import Run, build_inputs, launch, write_recipe

SHARDS_WEIGHTS = {"zero3", "zero3_offload", "zero3_multinode", "fsdp2"}
WHOLE_STATES = {"ddp"}
SIGNS = re.compile(r"train_rewards_(accuracies|ece)|train_groups_\w+_accuracy")
"""Metrics that count the signs of margins."""


@dataclass(frozen=True)
class Case:
    """What is trained."""

    method: str
    kind: str
    """`lora`, `full`, or `adapter`, which trains on from one."""
    tied: bool = False
    """Whether of both models the head is the embedding."""
    name: str = ""
    """For a case with parts of its own."""
    parts: Mapping[str, Any] | None = None
    """See `write_recipe`."""

    def __str__(self) -> str:
        return self.name or f"{self.method}-{self.kind}{'-tied' if self.tied else ''}"


class Lab:
    """Runs by configuration and case; what is missing is launched together."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.inputs = {tied: build_inputs(folder / f"tied-{tied}", tied=tied) for tied in (False, True)}
        self._output = ""

    def run(self, config: str, wanted: Sequence[Case], case: Case) -> Run:
        """One run; the first that asks makes those of `wanted` too."""
        (self._folder / config).mkdir(exist_ok=True)
        missing = [one for one in wanted if not self._path(config, one).exists()]
        if missing:
            recipes = [
                write_recipe(
                    self.inputs[one.tied],
                    self._path(config, one),
                    one.method,
                    kind=one.kind,
                    parts=one.parts,
                )
                for one in missing
            ]
            self._output = launch(
                config, recipes, processes=1 if config == "single" else 2, timeout=1500
            ).stdout
        found = Run(self._path(config, case))
        assert (found.folder / "result.json").exists(), self._output[-4000:]
        return found

    def _path(self, config: str, case: Case) -> Path:
        return self._folder / config / str(case)


def check_training(one: Run, two: Run, config: str, steps: int, *, each: bool = True) -> dict[str, float]:
    """Losses and saved weights of two processes are one's, and each holds its share. Returns the deviations.

    `each`: by matrix, else all as one vector. In a large model some weight's gradient is next to nothing, and Adam,
    which divides by its size, makes a whole step of how a sum was rounded: one such in a matrix that began at zero is
    more than 1e-4 of that matrix.
    """
    assert len(two.losses()) == steps
    assert two.losses() == pytest.approx(one.losses(), rel=1e-5)
    weights, found = one.weights(), two.weights()
    assert found.keys() == weights.keys()
    if not each:
        weights, found = (
            {"all": torch.cat([w.flatten() for w in kept.values()])} for kept in (weights, found)
        )
    deviations = {
        name: float(torch.dist(found[name], weight) / weight.norm()) for name, weight in weights.items()
    }
    assert max(deviations.values()) <= 1e-4, max(deviations, key=deviations.__getitem__)
    (alone,) = one.ranks()
    assert [rank["world_size"] for rank in two.ranks()] == [2, 2]
    for rank in two.ranks():
        optimizer, parameters = (rank[name] / alone[name] for name in ("optimizer_bytes", "parameter_bytes"))
        assert optimizer == pytest.approx(1 if config in WHOLE_STATES else 0.5, rel=0.01)
        assert parameters == pytest.approx(0.5 if config in SHARDS_WEIGHTS else 1, rel=0.01)
    pairs = zip(one.losses(), two.losses(), strict=True)
    return {"loss": max(abs(b / a - 1) for a, b in pairs), "weight": max(deviations.values())}


def check_evaluation(one: Run, two: Run, config: str, steps: int, times: int = 2) -> dict[str, float]:
    """What two processes log of each of `times` evaluations is what one logs."""
    assert len(two.held_out()) == len(one.held_out()) == times
    for found, expected in zip(two.logs(), one.logs(), strict=True):
        decided = without_coin_tosses(expected)
        assert {name: found[name] for name in decided} == pytest.approx(decided, rel=1e-3, abs=1e-4)
    losses = [(a["valid_loss"], b["valid_loss"]) for a, b in zip(one.held_out(), two.held_out(), strict=True)]
    return {"held-out loss": max(abs(b / a - 1) for a, b in losses)}


def without_coin_tosses(log: dict[str, float]) -> dict[str, float]:
    """A log less what counts signs of margins, while these are rounding: a policy is its reference at first."""
    tied = abs(log.get("train_rewards_margins", 1.0)) < 1e-5
    return {name: value for name, value in log.items() if not (tied and SIGNS.fullmatch(name))}


CHECKS: dict[str, Callable[[Run, Run, str, int], dict[str, float]]] = {
    "train": check_training,
    "evaluate": check_evaluation,
}
