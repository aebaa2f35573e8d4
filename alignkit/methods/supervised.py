"""Supervised fine-tuning, OpenAI's default method: the answers of the data, learned by their likelihood."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignkit.methods.arguments import lora_config, policy_use, training_arguments
from alignkit.methods.base import Hyperparameters, Method, RunContext
from alignkit.methods.work import Batch, Pass, Plan, Work
from alignkit.schema import Section

if TYPE_CHECKING:
    from alignkit.recipe import Recipe


class SupervisedSection(Section):
    """Supervised fine-tuning has no options of its own."""

    type: Literal["supervised"] = "supervised"


def build(context: RunContext) -> Any:
    """A SupervisedTrainer for the recipe."""
    from trl import SFTConfig

    from alignkit.data.completions import tokenise
    from alignkit.data.dataset import load_rows
    from alignkit.trainers.supervised import SupervisedTrainer

    recipe = context.recipe

    def dataset(file: str) -> Any:
        rows = load_rows(Path(file), recipe.method.type)
        return tokenise(rows, context.tokenizer, recipe.data.max_length)

    config = SFTConfig(
        **training_arguments(recipe, context.checkpoints),
        dataset_kwargs={"skip_prepare_dataset": True},  # tokenised above
        router_aux_loss_coef=0.0,
    )
    held_out = recipe.data.validation
    return SupervisedTrainer(
        model=context.model,
        args=config,
        processing_class=context.tokenizer,
        train_dataset=dataset(recipe.data.train),
        eval_dataset=dataset(held_out) if held_out else None,
        peft_config=lora_config(recipe),
        callbacks=context.callbacks,
    )


def plan(recipe: "Recipe") -> Plan:
    """One forward and backward of every row."""

    def work(batch: Batch) -> Work:
        from alignkit.estimate import heads

        head = heads.log_probs(batch.tokens(batch.rows), batch.heads["policy"], gpu=batch.gpu)
        return Work((Pass("policy", batch.rows, batch.length, trains=True, head=head),))

    return Plan({"policy": policy_use(recipe)}, work)


SUPERVISED = Method("supervised", SupervisedSection, Hyperparameters, build, plan, learning_rate=2e-4)
