"""The order of rows within a step: what a step holds, and how little of its forwards is padding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.methods import SinKD
from alignkit.trainers import FDPOConfig, FDPOTrainer
from alignkit.trainers.length_order import LengthOrderedSampler, lengths_of
from tests.quiet import QUIET
from tests.tiny import build_tiny_model

ROWS, STEP = 37, 8
LENGTHS = np.random.default_rng(0).lognormal(5, 0.8, ROWS).astype(int).tolist()


def sampler(lengths: list[int] = LENGTHS, step_rows: int = STEP) -> LengthOrderedSampler:
    data: Any = Dataset.from_dict({"row": list(range(len(lengths)))})
    return LengthOrderedSampler(data, lengths, step_rows=step_rows, seed=3)


def steps(order: list[int], size: int = STEP) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


@pytest.mark.parametrize("epoch", [0, 1, 4])
def test_each_step_has_the_rows_of_the_plain_shuffle(epoch: int) -> None:
    plain, ordered = SeedableRandomSampler(range(ROWS), data_seed=3), sampler()
    plain.set_epoch(epoch)
    ordered.set_epoch(epoch)
    found = list(ordered)
    assert sorted(found) == list(range(ROWS))
    assert list(map(sorted, steps(found))) == list(map(sorted, steps(list(plain))))


def test_the_longest_row_of_a_step_comes_first() -> None:
    found = [[LENGTHS[index] for index in step] for step in steps(list(sampler()))]
    assert found == [sorted(step, reverse=True) for step in found]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first, again = sampler(), sampler()
    torch.manual_seed(99)
    assert [list(first), list(first)] == [list(again), list(again)]
    again.set_epoch(0)
    assert list(sampler()) == list(again)


def test_micro_batches_of_sorted_steps_hold_little_padding() -> None:
    """Log-normal lengths, steps of 32 rows in micro-batches of 4."""
    lengths = np.random.default_rng(1).lognormal(6.2, 0.6, 3200).astype(int).tolist()

    def padded(order: list[int]) -> float:
        return sum(4 * max(lengths[index] for index in part) for part in steps(order, 4)) / sum(lengths)

    plain = list(SeedableRandomSampler(range(3200), data_seed=3))
    assert padded(plain) > 1.5
    assert padded(list(sampler(lengths, 32))) < 1.17


def test_the_length_of_a_pair_is_that_of_its_longer_sequence() -> None:
    pair = {"prompt_ids": [[1, 2], [1]], "chosen_ids": [[3], [4]], "rejected_ids": [[5, 6, 7], []]}
    assert lengths_of(Dataset.from_dict(pair)) == [5, 2]
    assert lengths_of(Dataset.from_dict({"input_ids": [[1], [2, 3]]}).select([1, 0])) == [2, 1]
    answers = {"prompt_ids": [[1]], "completion_ids": [[2, 3]], "label": [True]}
    assert lengths_of(Dataset.from_dict(answers)) == [3]
    assert lengths_of(Dataset.from_dict({"length": [9], "input_ids": [[1]]})) == [9]
    assert lengths_of(Dataset.from_dict({"text": ["a"]})) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def trainer(folder: Path, output: Path, *, group: bool = True, **options: Any) -> Any:
    rows = [
        {"prompt": f"Question {index}?", "chosen": " yes" * (index % 7 + 1), "rejected": " no"}
        for index in range(12)
    ]
    settings: dict[str, Any] = {
        "output_dir": str(output),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "logging_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.05,
        **QUIET,
    }
    made = FDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder),
        args=FDPOConfig(**settings | options),
        processing_class=AutoTokenizer.from_pretrained(folder),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    made.group_by_length = group
    return made


def losses(made: Any) -> list[float]:
    made.train()
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def test_a_run_logs_the_losses_that_it_logs_without_the_order(folder: Path, tmp_path: Path) -> None:
    found = losses(trainer(folder, tmp_path / "a"))
    assert len(found) == 9
    assert found == pytest.approx(losses(trainer(folder, tmp_path / "b", group=False)), rel=1e-5)


def test_the_order_is_that_of_a_whole_step_however_it_is_split(folder: Path, tmp_path: Path) -> None:
    split = trainer(folder, tmp_path)._get_train_sampler()
    whole = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    assert list(trainer(folder, tmp_path, **whole)._get_train_sampler()) == list(split)


def test_a_step_whose_split_matters_is_not_sorted(folder: Path, tmp_path: Path) -> None:
    made = trainer(folder, tmp_path)
    assert isinstance(made._get_train_sampler(), LengthOrderedSampler)
    made.micro_batch_matters = True
    assert not isinstance(made._get_train_sampler(), LengthOrderedSampler)
    made.micro_batch_matters, made.method = False, SinKD.model_construct()
    assert not isinstance(made._get_train_sampler(), LengthOrderedSampler)
