"""f-DPO, and OpenAI's `dpo`, which is f-DPO under the reverse KL."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, ValidationInfo, field_validator

from alignkit import divergences
from alignkit.errors import DivergenceError
from alignkit.methods.arguments import lora_config, policy_use, training_arguments
from alignkit.methods.base import Auto, Hyperparameters, Method, RunContext
from alignkit.methods.work import Batch, Pass, Plan, Work
from alignkit.schema import Section

if TYPE_CHECKING:
    from alignkit.recipe import Recipe


class FDPOSection(Section):
    """f-DPO: the divergence between policy and reference, and its strength."""

    type: Literal["f_dpo"] = "f_dpo"
    beta: float = Field(0.1, gt=0, le=100)
    divergence: str = Field(
        "reverse_kl", description="a name of divergences.available(), or package.module:Name"
    )
    alpha: float | None = Field(None, gt=0, le=10, description="alpha_divergence only; the paper's alpha")
    f_alpha_divergence_coef: float | None = Field(
        None, lt=1, ge=-9, description="alpha_divergence only; TRL's coefficient, 1 - alpha"
    )
    match_curvature: bool = Field(
        False, description="divide beta by f''(1), to compare divergences like with like"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of labels taken to be flipped")
    robust: bool = Field(
        False, description="robust DPO's unbiased form of label_smoothing, instead of cDPO's"
    )
    length_normalization: bool = Field(False, description="log-ratios as means over tokens, not sums")
    sft_weight: float = Field(0.0, ge=0, le=100, description="weight of the chosen answer's mean token NLL")

    @field_validator("divergence")
    @classmethod
    def _divergence_exists(cls, name: str) -> str:
        try:
            divergences.get(name)
        except DivergenceError as error:
            raise ValueError(str(error)) from error
        return name

    @field_validator("alpha", "f_alpha_divergence_coef")
    @classmethod
    def _takes_parameter(cls, value: float | None, info: ValidationInfo) -> float | None:
        params = {str(info.field_name): value} if value is not None else {}
        if info.field_name == "f_alpha_divergence_coef" and info.data.get("alpha") is not None:
            params["alpha"] = info.data["alpha"]
        try:
            if value is not None and "divergence" in info.data:
                divergences.get(info.data["divergence"], **params)
        except DivergenceError as error:
            raise ValueError(str(error)) from error
        return value

    def divergence_params(self) -> dict[str, float]:
        """Parameters for `divergences.get`, those given only."""
        given = {"alpha": self.alpha, "f_alpha_divergence_coef": self.f_alpha_divergence_coef}
        return {name: value for name, value in given.items() if value is not None}


def _with_names(described: dict[str, Any]) -> None:
    """Add the divergences that a job may name; read when asked for, since more can be registered."""
    described["enum"] = list(divergences.available())


class DPOHyperparameters(Hyperparameters):
    """OpenAI's `dpo`: f-DPO under the reverse KL."""

    beta: Auto | Annotated[float, Field(gt=0, le=2)] = "auto"


class FDPOHyperparameters(DPOHyperparameters):
    """f-DPO's own: the divergence, and what goes with it."""

    divergence: str = Field("reverse_kl", json_schema_extra=_with_names)
    alpha: Annotated[float, Field(gt=0, le=10)] | None = None
    f_alpha_divergence_coef: Annotated[float, Field(lt=1, ge=-9)] | None = None
    match_curvature: bool = False
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    robust: bool = False
    length_normalization: bool = False
    sft_weight: Annotated[float, Field(ge=0, le=100)] = 0.0

    @field_validator("divergence")
    @classmethod
    def _no_import_path(cls, name: str) -> str:
        if ":" in name:  # a job must not run code by naming it
            raise ValueError(f"expected one of {', '.join(divergences.available())}")
        return name


def build(context: RunContext) -> Any:
    """An FDPOTrainer for the recipe."""
    from alignkit.data.dataset import run_datasets
    from alignkit.trainers import FDPOConfig, FDPOTrainer

    recipe = context.recipe
    method = cast(FDPOSection, recipe.method)
    config = FDPOConfig(
        **training_arguments(recipe, context.checkpoints),
        max_length=recipe.data.max_length,
        beta=method.beta,
        divergence=method.divergence,
        divergence_params=method.divergence_params() or None,
        match_curvature=method.match_curvature,
        label_smoothing=method.label_smoothing,
        robust=method.robust,
        length_normalization=method.length_normalization,
        sft_weight=method.sft_weight,
    )

    train, held_out = run_datasets(recipe.data, method.type, context.tokenizer)
    return FDPOTrainer(
        model=context.model,
        args=config,
        processing_class=context.tokenizer,
        train_dataset=train,
        eval_dataset=held_out,
        peft_config=lora_config(recipe),
        callbacks=context.callbacks,
    )


def plan(recipe: "Recipe") -> Plan:
    """Both answers in one forward, then the reference: the adapter switched off, or a second model."""
    policy = policy_use(recipe)
    models = {"policy": policy}
    if policy.lora is None:
        models["reference"] = replace(policy, trains=False)

    def work(batch: Batch) -> Work:
        from alignkit.estimate import heads

        reference = "reference" if "reference" in models else "policy"
        sequences = 2 * batch.rows
        tokens, size = batch.tokens(sequences), batch.heads["policy"]
        frozen = replace(size, has_gradient=False)
        train = Pass(
            "policy", sequences, batch.length, trains=True, head=heads.log_probs(tokens, size, gpu=batch.gpu)
        )
        score = Pass(
            reference,
            sequences,
            batch.length,
            head=heads.log_probs(tokens, frozen, gpu=batch.gpu),
            purpose="reference",
        )
        return Work((train, score))

    return Plan(models, work)


F_DPO = Method("f_dpo", FDPOSection, FDPOHyperparameters, build, plan, learning_rate=1e-4, auto={"beta": 0.1})
DPO = Method("dpo", FDPOSection, DPOHyperparameters, build, plan, learning_rate=1e-4, auto={"beta": 0.1})
