"""D2O: alignment from dispreferred answers alone."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

from pydantic import Field, model_validator

from alignkit.methods.arguments import lora_config, policy_use, training_arguments
from alignkit.methods.base import Auto, Hyperparameters, Method, RunContext
from alignkit.methods.work import Batch, Generation, Pass, Plan, Work
from alignkit.schema import Section

if TYPE_CHECKING:
    from alignkit.recipe import Recipe

Steps = Annotated[int, Field(ge=1, le=1_000_000)]
Instruction = Annotated[str, Field(min_length=1, max_length=2000)]


class D2OSection(Section):
    """D2O: the anchor's and the push's strength, the samples, and the references."""

    type: Literal["d2o"] = "d2o"
    beta: float = Field(0.1, ge=0, le=100, description="strength of the anchor; 0 is negatives only")
    alpha: float = Field(0.1, gt=0, le=100, description="strength of the push off the dispreferred answer")
    logps: Literal["sum", "mean"] = Field("sum", description="log-probs of an answer, over its tokens")
    rejected_floor: float | None = Field(
        None, lt=0, ge=-1e6, description="log-ratio below which the dispreferred answer is pushed no further"
    )
    samples_per_prompt: int = Field(11, ge=1, le=256, description="K, where the data brings no samples")
    temperature: float = Field(1.0, gt=0, le=10, description="of the draws")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of the draws")
    max_tokens: int = Field(256, ge=1, le=131_072, description="longest answer drawn")
    redraws: int = Field(2, ge=0, le=20, description="further draws for filtered samples")
    instruction_pool: list[Instruction] = Field(
        default_factory=list,
        max_length=100,
        description="put in front of the prompt in turn for drawing; not for scoring or training",
    )
    sampler_url: str | None = Field(
        None, pattern=r"^https?://\S+$", description="server of the reference (vLLM), to draw from"
    )
    sampler_model: str | None = Field(None, description="its model; default: the only one it serves")
    sampling_batch_size: int = Field(
        32, ge=1, le=4096, description="answers drawn at a time, without a server"
    )
    sample_reference: str | None = Field(
        None,
        min_length=1,
        description="r-, scores (and gives) the samples; default: the model before training",
    )
    rejected_reference: str | None = Field(
        None,
        min_length=1,
        description="r+, scores the dispreferred answer; default: the model before training",
    )
    resample_every: int | None = Field(
        None, ge=1, description="steps between draws from the current policy; default: never"
    )
    ref_refresh_every: int | None = Field(
        None, ge=1, description="steps between refreshes of the references from the policy; default: never"
    )
    resample_warmup_steps: int = Field(0, ge=0, description="steps before the first of either")
    sequence_batch_size: int = Field(
        8, ge=1, le=4096, description="answers a forward; memory grows with this, not with samples_per_prompt"
    )

    @model_validator(mode="after")
    def _one_source_of_references(self) -> Self:
        if self.ref_refresh_every is not None and (self.sample_reference or self.rejected_reference):
            raise ValueError("ref_refresh_every does not go with sample_reference and rejected_reference")
        return self


class D2OHyperparameters(Hyperparameters):
    """D2O's in a job. No paths and no addresses: a job must not read files or reach servers by naming them."""

    beta: Auto | Annotated[float, Field(ge=0, le=2)] = "auto"
    alpha: Auto | Annotated[float, Field(gt=0, le=2)] = "auto"
    logps: Literal["sum", "mean"] = "sum"
    rejected_floor: Annotated[float, Field(lt=0, ge=-1e6)] | None = None
    samples_per_prompt: Auto | Annotated[int, Field(ge=1, le=64)] = "auto"
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 256
    redraws: Annotated[int, Field(ge=0, le=20)] = 2
    instruction_pool: Annotated[list[Instruction], Field(max_length=100)] = Field(default_factory=list)
    resample_every: Steps | None = None
    ref_refresh_every: Steps | None = None
    resample_warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    sequence_batch_size: Annotated[int, Field(ge=1, le=256)] = 8


def build(context: RunContext) -> Any:
    """A D2OTrainer for the recipe; draws what samples the data does not bring."""
    from alignkit.data.dataset import run_datasets
    from alignkit.run_folder import RunFolder
    from alignkit.trainers import D2OConfig, D2OTrainer
    from alignkit.trainers.d2o_rows import tokenise

    recipe = context.recipe
    method = cast(D2OSection, recipe.method)
    folder = RunFolder(context.checkpoints.parent)
    config = D2OConfig(
        **training_arguments(recipe, context.checkpoints),
        **method.model_dump(exclude={"type"}),
        max_length=recipe.data.max_length,
        samples_dir=str(folder.samples),
    )

    def report(message: str) -> None:
        if config.process_index == 0:
            print(message, flush=True)
            folder.emit(message)

    def dataset(name: str, rows: list[Any]) -> Any:
        return tokenise(
            rows,
            context.tokenizer,
            instructions=method.instruction_pool,
            max_length=recipe.data.max_length,
            report=lambda message: report(f"{name}: {message}"),
        )

    train, held_out = run_datasets(recipe.data, method.type, context.tokenizer, dataset)
    return D2OTrainer(
        model=context.model,
        args=config,
        processing_class=context.tokenizer,
        train_dataset=train,
        eval_dataset=held_out,
        peft_config=lora_config(recipe),
        callbacks=context.callbacks,
        report=report,
    )


def plan(recipe: "Recipe") -> Plan:
    """K samples and the dispreferred answer, a few at a time: scored, then trained; no reference stays loaded."""
    method = cast(D2OSection, recipe.method)

    def work(batch: Batch) -> Work:
        from alignkit.estimate import heads

        drawn = 0 if batch.sequences > 1 else method.samples_per_prompt
        each = batch.sequences + drawn
        together = max(1, min(method.sequence_batch_size, round(batch.rows * each)))
        size = batch.heads["policy"]
        tokens = batch.tokens(together)
        score = Pass(
            "policy",
            together,
            batch.length,
            times=batch.rows * each / together,
            head=heads.log_probs(tokens, replace(size, has_gradient=False), gpu=batch.gpu),
            purpose="scoring",
        )
        train = replace(
            score, trains=True, purpose="policy", head=heads.log_probs(tokens, size, gpu=batch.gpu)
        )
        answer = min(method.max_tokens, max(1.0, recipe.data.max_length - batch.prompt))
        here = drawn and method.sampler_url is None
        drawing = (
            Generation("policy", method.sampling_batch_size, batch.prompt, answer, drawn) if here else None
        )
        return Work((score, train), drawing=drawing, scoring=(replace(score, times=each / together),))

    return Plan({"policy": policy_use(recipe)}, work)


D2O = Method(
    "d2o",
    D2OSection,
    D2OHyperparameters,
    build,
    plan,
    learning_rate=1e-4,
    auto={"beta": 0.1, "alpha": 0.1, "samples_per_prompt": 11},
)
