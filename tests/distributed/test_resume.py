"""A run that is killed and goes on ends as one that was left alone."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit.run_folder import RunFolder
from tests.distributed.launching import METHODS, Run, build_inputs, launch, write_recipe

STEPS = 6
SAVE_STEPS = 2
# sums since the last log, an evaluation between saves, epochs that end in the middle of it all
SCHEDULE = {"max_steps": STEPS, "save_steps": SAVE_STEPS, "logging_steps": 3, "eval_steps": 3}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("resume"))


def killed_and_left_alone(
    inputs: Path, name: str, method: str, config: str, step: int, *, damaged: bool = False, **options: Any
) -> tuple[Run, Run]:
    """A run killed in the step after `step` that then went on, and the same run left alone."""
    processes = 1 if config == "single" else 2
    outputs = inputs / f"{name}-killed", inputs / f"{name}-alone"
    killed, alone = (write_recipe(inputs, output, method, **SCHEDULE, **options) for output in outputs)
    first = launch(config, [alone, f"{killed}:kill={step}"], processes=processes)
    assert first.returncode == 0, first.stdout[-3000:]
    if damaged:
        damage(RunFolder(outputs[0]))
    second = launch(config, [f"{killed}:resume"], processes=processes)
    assert second.returncode == 0, second.stdout[-3000:]
    return Run(outputs[0]), Run(outputs[1])


def damage(folder: RunFolder) -> None:
    """One bit of the newest checkpoint's largest file."""
    newest = folder.last_checkpoint()
    assert newest is not None
    file = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def assert_the_same(one: Run, other: Run, rel: float = 0.0) -> None:
    """Weights, optimizer state and logs; bit for bit unless `rel` > 0."""
    for found, expected in ((one.weights(), other.weights()), (one.optimizer(), other.optimizer())):
        assert found.keys() == expected.keys()
        assert found
        for name, value in found.items():
            torch.testing.assert_close(
                value, expected[name], rtol=rel, atol=rel, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert len(one.history()) == len(other.history())
    for entry, expected_entry in zip(one.history(), other.history(), strict=True):
        assert entry == (pytest.approx(expected_entry, rel=rel) if rel else expected_entry)


def test_a_killed_run_goes_on_exactly(inputs: Path) -> None:
    """Dropout, so that random states count; the newest checkpoint is damaged, so that the one before it is used."""
    step = random.randrange(2 * SAVE_STEPS, STEPS)
    killed, alone = killed_and_left_alone(
        inputs, f"ordinary-{step}", "f_dpo", "single", step, damaged=True, lora=True, dropout=0.1
    )
    assert_the_same(killed, alone)
    messages = (killed.folder / "events.jsonl").read_text(encoding="utf-8")
    assert f"checkpoint-{step // SAVE_STEPS * SAVE_STEPS} is damaged" in messages
    assert f"Training resumed after step {(step // SAVE_STEPS - 1) * SAVE_STEPS}" in messages


SAMPLED = {"d2o": {"resample_every": 3, "ref_refresh_every": 4, "samples_per_prompt": 2, "max_tokens": 4}}


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_exactly(inputs: Path, method: str, lora: bool) -> None:
    step = random.randrange(SAVE_STEPS, STEPS)
    name = f"{method}-{'lora' if lora else 'full'}-{step}"
    options = {"lora": lora, "dropout": 0.1 if lora else 0.0, "options": SAMPLED.get(method)}
    assert_the_same(*killed_and_left_alone(inputs, name, method, "single", step, **options))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3"])
@pytest.mark.parametrize("method", ["f_dpo", "bd_kd"])
def test_two_processes_go_on(inputs: Path, method: str, config: str, lora: bool) -> None:
    step = random.randrange(SAVE_STEPS, STEPS)
    name = f"{config}-{method}-{'lora' if lora else 'full'}-{step}"
    assert_the_same(*killed_and_left_alone(inputs, name, method, config, step, lora=lora), rel=1e-6)
