"""TrainingArguments and LoRA configuration of a recipe, for every trainer."""

import os
from pathlib import Path
from typing import Any

import torch

from alignkit.errors import FieldIssue, RecipeError
from alignkit.models.adapters import peft_config
from alignkit.recipe import Recipe
from alignkit.sections import TrainingSection
from alignkit.sharding import sharding


def lora_config(recipe: Recipe, model: Any = None) -> Any:
    """Return peft's configuration of new adapters; None if all weights train or the model already has an adapter."""
    return None if recipe.model.adapter else peft_config(recipe.lora, model)


def training_arguments(recipe: Recipe, checkpoints: Path) -> dict[str, Any]:
    """Return the recipe's training section as arguments of transformers' TrainingArguments."""
    training = recipe.training
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    has_gpu = torch.cuda.is_available()
    micro, accumulation = split_batch(training, world_size)
    evaluates = recipe.data.validation is not None
    return {
        "output_dir": str(checkpoints),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "per_device_eval_batch_size": 8 if training.eval_batch_size == "auto" else training.eval_batch_size,
        "num_train_epochs": training.epochs,
        "max_steps": training.max_steps or -1,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler,
        "warmup_steps": training.warmup_steps or training.warmup_ratio,  # below 1 it is a share
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": training.optimizer,
        "gradient_checkpointing": training.gradient_checkpointing is True,
        "bf16": training.mixed_precision == "bf16",
        "fp16": training.mixed_precision == "fp16",
        "logging_steps": training.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if evaluates and training.eval_steps else "no",
        "eval_steps": training.eval_steps,
        "eval_on_start": evaluates and training.eval_on_start,
        "prediction_loss_only": True,
        "save_strategy": "steps" if training.save_steps else "epoch",
        "save_steps": training.save_steps or 500,
        "save_total_limit": training.save_total_limit,
        "seed": recipe.seed,
        "report_to": "none",  # alignkit.tracking reports to the recipe's trackers
        "disable_tqdm": True,
        "use_cpu": not has_gpu and sharding() is None,  # use_cpu would make accelerate skip sharding
        "dataloader_pin_memory": has_gpu,
        "ddp_backend": "gloo" if world_size > 1 and not has_gpu else None,
    }


def split_batch(training: TrainingSection, world_size: int) -> tuple[int, int]:
    """Return (rows per forward and process, forwards per step) that give `batch_size` over `world_size` processes.

    Raises RecipeError if `batch_size` is not a multiple of processes x micro-batch.
    """
    per_process, rest = divmod(training.batch_size, world_size)
    micro = training.micro_batch_size if isinstance(training.micro_batch_size, int) else per_process
    if rest or not per_process or per_process % micro:
        raise RecipeError(
            [
                FieldIssue(
                    "training.batch_size",
                    f"expected a multiple of {world_size} processes x micro_batch_size {max(micro, 1)}, "
                    f"found {training.batch_size}",
                )
            ]
        )
    return micro, per_process // micro
