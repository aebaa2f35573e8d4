"""A step's gradient does not depend on how its rows are split: not over forwards, not over processes.

By plain gradient descent without clipping, so that what the weights change by is the gradient. Of 13 rows, 8 a step,
the second step has 5: one process takes them two at a time, and of two the second gets none in the last round, so not
one valid token.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignkit.methods import METHODS as REGISTERED
from tests.distributed.lab import without_coin_tosses
from tests.distributed.launching import (
    METHODS,
    Run,
    build_inputs,
    launch,
    runs_under,
    write_recipe,
)

DESCENT: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "max_grad_norm": 1e9,
    "lr_scheduler": "constant",
    "eval_steps": None,
    "save_steps": 100,
    "max_steps": None,
    "epochs": 1,
}
OPTIONS = {"sinkd": {"mode": "per_sequence"}}  # else the set that is matched is a forward's


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("gradients"), rows=13)


def descended(inputs: Path, name: str, config: str, methods: tuple[str, ...], micro: int) -> list[Run]:
    """A run of each method."""
    outputs = [inputs / f"{name}-{method}" for method in methods]
    recipes = [
        write_recipe(
            inputs,
            output,
            method,
            kind="full",
            options=OPTIONS.get(method),
            **{**DESCENT, "micro_batch_size": micro},
        )
        for method, output in zip(methods, outputs, strict=True)
    ]
    done = launch(config, recipes, processes=1 if config == "single" else 2)
    assert done.returncode == 0, done.stdout[-3000:]
    return [Run(output) for output in outputs]


def change(inputs: Path, run: Run) -> Tensor:
    """By what training changed the weights, all in one."""
    before = load_file(inputs / "model" / "model.safetensors")
    return torch.cat([(run.weights()[name] - before[name]).flatten() for name in sorted(before)])


def assert_the_same(inputs: Path, found: Run, expected: Run) -> None:
    assert len(expected.losses()) == 2
    assert found.losses() == pytest.approx(expected.losses(), rel=1e-5)
    wanted = change(inputs, expected)
    assert wanted.norm() > 0.01
    assert torch.dist(change(inputs, found), wanted) <= 1e-4 * wanted.norm()
    assert [log["train_num_tokens"] for log in found.logs() if "train_num_tokens" in log] == [
        log["train_num_tokens"] for log in expected.logs() if "train_num_tokens" in log
    ]
    for log, other in zip(found.logs(), expected.logs(), strict=True):
        decided = without_coin_tosses(other)
        assert {name: log[name] for name in decided} == pytest.approx(decided, rel=1e-3, abs=1e-4)


@pytest.fixture(scope="module")
def expected(inputs: Path) -> dict[str, Run]:
    """Of each method one process that takes a whole step in one forward."""
    return dict(zip(METHODS, descended(inputs, "whole", "single", METHODS, 8), strict=True))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("config", ["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"])
def test_however_the_rows_are_split(inputs: Path, expected: dict[str, Run], config: str) -> None:
    able = tuple(method for method in METHODS if runs_under(method, config))
    for method, run in zip(able, descended(inputs, config, config, able, 2), strict=True):
        assert_the_same(inputs, run, expected[method])
        if REGISTERED[method].rows == "labelled":
            assert max(log.get("train_kl", 0) for log in run.logs()) > 1  # KTO's baseline plays a part
