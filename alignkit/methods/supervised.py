"""Supervised fine-tuning, OpenAI's default method: the answers of the data, learned by their likelihood."""

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

    from alignkit.data.dataset import run_datasets
    from alignkit.trainers.supervised import SupervisedTrainer

    recipe = context.recipe

    config = SFTConfig(
        **training_arguments(recipe, context.checkpoints),
        dataset_kwargs={"skip_prepare_dataset": True},  # tokenised above
        router_aux_loss_coef=0.0,
    )
    train, held_out = run_datasets(recipe.data, recipe.method.type, context.tokenizer)
    return SupervisedTrainer(
        model=context.model,
        args=config,
        processing_class=context.tokenizer,
        train_dataset=train,
        eval_dataset=held_out,
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
