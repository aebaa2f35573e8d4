"""What the recipes and jobs of both distillation methods share: the teacher, and the data as tokens."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from alignkit.errors import FieldIssue, ModelError, RecipeError
from alignkit.methods.arguments import lora_config, policy_use, training_arguments
from alignkit.methods.base import Hyperparameters, ResolveModel, RunContext
from alignkit.methods.work import NO_HEAD, Batch, HeadCost, ModelUse, Pass, Plan, Work
from alignkit.sections import LoraSection, TeacherSection

if TYPE_CHECKING:
    from alignkit.recipe import Recipe


class DistillationHyperparameters(Hyperparameters):
    """What both methods take in a job."""

    teacher: str = Field(min_length=1, max_length=255)
    """Name of a base model or of a fine-tuned model of the project."""


def section_values(resolved: Mapping[str, Any], resolve_model: ResolveModel) -> dict[str, Any]:
    """Of a job's hyperparameters, the recipe's `teacher`; raises RecipeError for a name that is no model."""
    try:
        source = resolve_model(resolved["teacher"])
    except ModelError as error:
        raise RecipeError([FieldIssue("teacher", str(error))]) from error
    return {"teacher": {"path": source.path, "adapter": source.adapter}}


def trainer_arguments(context: RunContext, teacher: TeacherSection) -> dict[str, Any]:
    """What both trainers are made of beside their config: models, tokenizers, rows, callbacks."""
    from alignkit.data.dataset import run_datasets

    recipe = context.recipe

    teacher_model, teacher_tokenizer = load_teacher(recipe, teacher)
    train, held_out = run_datasets(recipe.data, recipe.method.type, context.tokenizer)
    return {
        "model": context.model,
        "teacher_model": teacher_model,
        "processing_class": context.tokenizer,
        "teacher_processing_class": teacher_tokenizer,
        "train_dataset": train,
        "eval_dataset": held_out,
        "peft_config": lora_config(recipe),
        "callbacks": context.callbacks,
    }


def config_arguments(context: RunContext) -> dict[str, Any]:
    """What both configs take from a recipe beside the method's own fields."""
    return {
        **training_arguments(context.recipe, context.checkpoints),
        "dataset_kwargs": {"skip_prepare_dataset": True},  # the rows come tokenised
    }


def distillation_plan(
    recipe: "Recipe",
    teacher: TeacherSection,
    *,
    teacher_trains: bool = False,
    teacher_lora: LoraSection | None = None,
    further_heads: Callable[[Batch], HeadCost] = lambda _: NO_HEAD,
    micro_batch_matters: bool = False,
) -> Plan:
    """Student and teacher, each a forward, then the heads over both; the teacher's backward where it trains."""
    models = {
        "policy": policy_use(recipe),
        "teacher": ModelUse(
            teacher.path,
            teacher.dtype or recipe.model.dtype,
            "method.teacher.path",
            trains=teacher_trains,
            lora=teacher_lora,
        ),
    }

    def work(batch: Batch) -> Work:
        from alignkit.estimate import heads

        student, teachers = batch.heads["policy"], batch.heads["teacher"]
        both = heads.divergence(batch.tokens(batch.rows), student, teachers, gpu=batch.gpu)
        passes = (
            Pass("policy", batch.rows, batch.length, trains=True),
            Pass("teacher", batch.rows, batch.length, trains=teacher_trains, purpose="teacher"),
        )
        return Work(passes, heads=both + further_heads(batch))

    return Plan(models, work, micro_batch_matters)


def load_teacher(recipe: "Recipe", teacher: TeacherSection) -> tuple[Any, Any]:
    """The teacher, its adapter merged, and its tokenizer; code from the checkpoint is never run."""
    from alignkit.models import load_causal_lm

    attention = recipe.model.attn_implementation
    model, tokenizer = load_causal_lm(
        teacher.path, teacher.dtype or recipe.model.dtype, attention, field="method.teacher.path"
    )
    if teacher.adapter is None:
        return model, tokenizer
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, teacher.adapter)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"method.teacher.adapter: cannot load {teacher.adapter} onto {teacher.path}: {error}"
        ) from error
    return adapted.merge_and_unload(), tokenizer
