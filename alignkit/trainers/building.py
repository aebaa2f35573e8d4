"""Building a recipe's trainer: one builder per kind of method, found by the method's base class."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from trl import DPOConfig, KTOConfig, SFTConfig

from alignkit.data.dataset import run_datasets
from alignkit.data.flipping import flip
from alignkit.errors import ModelError
from alignkit.home import references_dir
from alignkit.methods import (
    D2O,
    PSKD,
    CompletionMethod,
    DistillMethod,
    LabelledMethod,
    Method,
    PairMethod,
)
from alignkit.models.adapters import peft_config
from alignkit.models.loading import load_causal_lm
from alignkit.models.trainable import vocabulary_in
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.run.reference_store import ReferenceStore
from alignkit.sections import TeacherSection
from alignkit.trainers.arguments import lora_config, training_arguments
from alignkit.trainers.configs import DispreferredConfig, DistillationConfig
from alignkit.trainers.d2o import D2OTrainer
from alignkit.trainers.d2o_rows import tokenise
from alignkit.trainers.data_facts import keep_data
from alignkit.trainers.distillation import DistillationTrainer
from alignkit.trainers.group_order import balanced
from alignkit.trainers.labelled import LabelledTrainer
from alignkit.trainers.preference import PreferenceTrainer
from alignkit.trainers.ps_kd import PSKDTrainer
from alignkit.trainers.supervised import SupervisedTrainer


@dataclass(frozen=True, slots=True)
class RunContext:
    """The recipe of a run and the objects that its trainer is built from."""

    recipe: Recipe
    model: Any
    tokenizer: Any
    checkpoints: Path
    callbacks: list[Any]
    data: tuple[Any, Any]
    """The training dataset, and the held-out dataset or None."""


def datasets(recipe: Recipe, tokenizer: Any, folder: RunFolder) -> tuple[Any, Any]:
    """Read and render every row of the recipe's files: (training dataset, held-out dataset or None).

    It needs no model, so that a bad row ends a run before weights are loaded. Raises DataError.
    """
    method = recipe.method
    read = partial(
        run_datasets,
        recipe.data,
        type(method),
        tokenizer,
        seen=partial(keep_data, recipe, folder),
        vocabulary=vocabulary_in(Path(recipe.model.path)),
        report=partial(tell, folder),
    )
    if not isinstance(method, D2O):
        train, held_out = read()
        probe = recipe.data.flip
        return train if probe is None else flip(train, probe.share, probe.seed), held_out

    def dataset(name: str, rows: list[Any]) -> Any:
        return tokenise(
            rows,
            tokenizer,
            instructions=method.instruction_pool,
            max_length=recipe.data.max_length,
            report=lambda message: tell(folder, f"{name}: {message}"),
        )

    return read(dataset)


def tell(folder: RunFolder, message: str) -> None:
    """Print a message and add it to the run's events, on the main process."""
    if os.environ.get("RANK", "0") == "0":
        print(message, flush=True)
        folder.emit(message)


def build(context: RunContext) -> Any:
    """Build the trainer of the recipe's method."""
    method = context.recipe.method
    builder = next(BUILDERS[base] for base in type(method).__mro__ if base in BUILDERS)
    trainer = builder(context, method)
    trainer.group_by_length = context.recipe.training.group_by_length
    trainer.balance_groups = context.recipe.data.balance_groups
    if trainer.balance_groups:
        balanced(trainer.train_dataset, seed=context.recipe.seed)  # refused before anything is trained
    return trainer


def preference_trainer(context: RunContext, method: PairMethod) -> PreferenceTrainer:
    """Build a PreferenceTrainer with the recipe's method."""
    recipe = context.recipe
    trainer = PreferenceTrainer(
        args=DPOConfig(**training_arguments(recipe, context.checkpoints), max_length=recipe.data.max_length),
        method=method,
        terms=recipe.terms,
        tune=recipe.tune,
        references=reference_store(context),
        packing=recipe.training.packing,
        **_common(context),
    )
    reason = trainer.use_packing(wanted=recipe.training.packing)
    if reason is not None and recipe.training.packing is not False:
        tell(RunFolder(context.checkpoints.parent), f"Batches are padded, not packed: {reason}")
    return trainer


def labelled_trainer(context: RunContext, method: LabelledMethod) -> LabelledTrainer:
    """Build a LabelledTrainer with the recipe's method."""
    recipe = context.recipe
    config = KTOConfig(
        **training_arguments(recipe, context.checkpoints),
        max_length=recipe.data.max_length,
        train_sampling_strategy="random",  # only TRL's own baseline needs the rows in order
    )
    store = reference_store(context)
    return LabelledTrainer(
        args=config, method=method, terms=recipe.terms, references=store, **_common(context)
    )


def supervised_trainer(context: RunContext, method: CompletionMethod) -> SupervisedTrainer:
    """Build a SupervisedTrainer with the recipe's method."""
    config = SFTConfig(**_tokenised(context), router_aux_loss_coef=0.0)
    return SupervisedTrainer(args=config, method=method, terms=context.recipe.terms, **_common(context))


def ps_kd_trainer(context: RunContext, method: PSKD) -> PSKDTrainer:
    """Build a PSKDTrainer with the recipe's method."""
    config = SFTConfig(**_tokenised(context), router_aux_loss_coef=0.0)
    return PSKDTrainer(args=config, method=method, terms=context.recipe.terms, **_common(context))


def d2o_trainer(context: RunContext, method: D2O) -> D2OTrainer:
    """Build a D2OTrainer with the recipe's method. Building it draws the samples that the data lacks."""
    recipe, folder = context.recipe, RunFolder(context.checkpoints.parent)
    config = DispreferredConfig(
        **training_arguments(recipe, context.checkpoints),
        max_length=recipe.data.max_length,
        samples_dir=str(folder.samples),
    )

    return D2OTrainer(
        args=config,
        method=method,
        terms=recipe.terms,
        report=partial(tell, folder),
        references=reference_store(context),
        packing=recipe.training.packing,
        **_common(context),
    )


def reference_store(context: RunContext) -> ReferenceStore | None:
    """The run's store of the reference's log-probs; None unless its recipe's `reference_store` is on."""
    training = context.recipe.training
    if training.reference_store != "on":
        return None
    folder = Path(training.reference_folder) if training.reference_folder else references_dir()
    store = ReferenceStore(folder, partial(tell, RunFolder(context.checkpoints.parent)))
    store.remove_unused()
    return store


def distillation_trainer(context: RunContext, method: DistillMethod) -> DistillationTrainer:
    """Build a DistillationTrainer with the recipe's method and teacher."""
    training = method.teacher_training
    teacher, tokenizer = load_teacher(context.recipe, method.teacher)
    return DistillationTrainer(
        args=DistillationConfig(**_tokenised(context)),
        method=method,
        teacher_model=teacher,
        teacher_processing_class=tokenizer,
        teacher_peft_config=None if training is None else peft_config(training.lora),
        **_common(context),
    )


BUILDERS: Mapping[type[Method], Callable[[RunContext, Any], Any]] = {
    PairMethod: preference_trainer,
    LabelledMethod: labelled_trainer,
    CompletionMethod: supervised_trainer,
    PSKD: ps_kd_trainer,
    D2O: d2o_trainer,
    DistillMethod: distillation_trainer,
}
"""Base class -> builder. A method uses the builder of its nearest base class."""


def _common(context: RunContext) -> dict[str, Any]:
    """Arguments of every trainer."""
    train, held_out = context.data
    return {
        "model": context.model,
        "processing_class": context.tokenizer,
        "train_dataset": train,
        "eval_dataset": held_out,
        "peft_config": lora_config(context.recipe, context.model),
        "callbacks": context.callbacks,
    }


def _tokenised(context: RunContext) -> dict[str, Any]:
    """TrainingArguments of a trainer whose rows are already tokenised."""
    arguments = training_arguments(context.recipe, context.checkpoints)
    return {**arguments, "dataset_kwargs": {"skip_prepare_dataset": True}}


def load_teacher(recipe: Recipe, teacher: TeacherSection) -> tuple[Any, Any]:
    """Load (model, tokenizer) of the teacher, with its adapter merged. Never runs code from the checkpoint."""
    attention = recipe.model.attn_implementation
    model, tokenizer = load_causal_lm(
        teacher.path, teacher.dtype or recipe.model.dtype, attention, field="method.teacher.path"
    )
    if teacher.adapter is None:
        return model, tokenizer

    try:
        adapted = PeftModel.from_pretrained(model, teacher.adapter)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"method.teacher.adapter: cannot load {teacher.adapter} onto {teacher.path}: {error}"
        ) from error
    return adapted.merge_and_unload(), tokenizer
