"""Tiny students and teachers, their rows, and the losses from whole float64 logits, for tests."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.trainers.pair import TeacherStudentPair
from tests.quiet import QUIET


def tokenised(tokenizer: Any, count: int = 8) -> Dataset:
    """Rows of unequal length; the prompt carries no loss."""
    rows = []
    for index in range(count):
        prompt = tokenizer(f"What is {index}?").input_ids
        answer = tokenizer("yes it is " * (index % 4 + 1)).input_ids
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return Dataset.from_list(rows)


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    """TrainingArguments of a short run on a CPU."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "logging_steps": 1,
        **QUIET,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        **options,
    }


def made(
    kind: Any, config: Any, student_dir: Path, teacher_dir: Path, dataset: Dataset | None = None, **given: Any
) -> Any:
    """A trainer of class `kind` with the models in these folders."""
    tokenizer = AutoTokenizer.from_pretrained(student_dir)
    rows = tokenised(tokenizer) if dataset is None else dataset
    return kind(
        **{
            "model": AutoModelForCausalLM.from_pretrained(student_dir),
            "teacher_model": AutoModelForCausalLM.from_pretrained(teacher_dir),
            "args": config,
            "processing_class": tokenizer,
            "train_dataset": rows,
            "eval_dataset": rows.select(range(5)),
            **given,
        }
    )


def batch_of(trainer: Any, count: int = 4) -> dict[str, Tensor]:
    """The first rows, collated."""
    rows = [trainer.train_dataset[index] for index in range(count)]
    batch: dict[str, Tensor] = trainer.data_collator(rows)
    return batch


def whole_logits(pair: TeacherStudentPair, batch: dict[str, Tensor]) -> tuple[Any, Tensor, Tensor, Tensor]:
    """A float64 copy of the pair, both models' logits [N, V] at the loss tokens, and the labels [N]."""
    exact = copy.deepcopy(pair).double()
    valid = batch["labels"][:, 1:] != -100
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def logits(model: Any) -> Tensor:
        # Not by its forward: that was patched, and is still the original's.
        model = model.get_base_model() if is_peft_model(model) else model
        whole: Tensor = model.lm_head(model.model(**inputs).last_hidden_state)
        return whole[:, :-1][valid]

    student, teacher = logits(exact.student), logits(exact.teacher)
    return exact, student, teacher, batch["labels"][:, 1:][valid]


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """The gradients by name, of every weight that has one."""
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_the_trainers(trainer: Any, batch: dict[str, Tensor], expected: Tensor) -> None:
    """The trainer's loss is `expected`, in float32 to its rounding, and in float64, where its gradients are left."""
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    trainer.model.double()
    exact = trainer.compute_loss(trainer.model, dict(batch))
    exact.backward()
    assert exact.item() == pytest.approx(expected.item(), rel=1e-7)


def assert_gradients_agree(found: torch.nn.Module, exact: torch.nn.Module) -> None:
    """Within 1e-6 of the largest entry of each weight's gradient; both float64."""
    ours, theirs = gradients(found), gradients(exact)
    assert ours.keys() == theirs.keys()
    assert ours
    for name, gradient in ours.items():
        error = (gradient - theirs[name]).abs().max()
        assert error <= 1e-6 * max(float(theirs[name].abs().max()), 1e-3), name
