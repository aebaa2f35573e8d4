"""f-KD: distillation under any f-divergence between teacher and student, or under one with a bounded gradient."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from alignkit import token_divergences
from alignkit.errors import DivergenceError
from alignkit.kernels.linear_divergence import Divergences, linear_divergence
from alignkit.losses.distillation import PairOutput, Rows, Tokens, operands, token_metrics
from alignkit.methods.distillation import DistillMethod, Temperature, Weight
from alignkit.options import InJobs


def _registered(name: str) -> str:
    """Check a divergence that a job names. An import path is refused, since importing it would run its code."""
    if ":" in name:
        raise ValueError(f"expected one of {', '.join(token_divergences.available())}")
    return name


def _with_names(described: dict[str, Any]) -> None:
    """Add the names of the divergences to a JSON Schema, at each call, since more can be registered at any time."""
    described["enum"] = list(token_divergences.available())


def _found(options: Mapping[str, Any]) -> token_divergences.TokenDivergence:
    """The divergence of these options. Raises ValueError if there is none."""
    alpha = options.get("alpha")
    try:
        return token_divergences.get(options["divergence"], **({} if alpha is None else {"alpha": alpha}))
    except DivergenceError as error:
        raise ValueError(str(error)) from error


class FKD(DistillMethod):
    """Distillation under any f-divergence between teacher and student, or the bounded Cauchy-Schwarz divergence."""

    paper: ClassVar[str] = "2502.15681"

    type: Literal["f_kd"] = "f_kd"
    divergence: Annotated[str, InJobs(check=_registered, schema=_with_names)] = Field(
        "js_divergence",
        description="a name from alignkit.token_divergences.available(), or in a recipe package.module:Name",
    )
    alpha: float | None = Field(None, gt=0, lt=1, description="alpha_divergence only; default: 0.5")
    temperature: Temperature = Field(
        1.0, description="softmax temperature of the divergence, which is multiplied by its square"
    )
    ce_weight: Weight = Field(1.0, description="weight of the cross-entropy with the labels")
    kd_weight: Weight = Field(1.0, description="weight of the divergence")

    @field_validator("divergence")
    @classmethod
    def _divergence_exists(cls, name: str) -> str:
        _found({"divergence": name})
        return name

    @field_validator("alpha")
    @classmethod
    def _takes_alpha(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and "divergence" in info.data:
            _found({**info.data, "alpha": value})
        return value

    @cached_property
    def family(self) -> token_divergences.TokenDivergence:
        """The divergence object, with its options."""
        return _found(vars(self))

    def objective(self, student: Rows, teacher: Rows, tokens: Tokens) -> PairOutput:
        """Return the sum over tokens of ce_weight CE(y, q) + kd_weight temperature^2 D(q, p), CE at temperature 1."""

        def of_tokens(found: Divergences) -> Tensor:
            weight = self.kd_weight * self.temperature**2
            return self.ce_weight * cast(Tensor, found.student_ce) + weight * cast(Tensor, found.divergence)

        found = linear_divergence(
            labels=tokens.labels,
            temperature=self.temperature,
            top1=True,
            divergence=self.family,
            objective=of_tokens,
            **operands(student, teacher),
        )
        metrics = {**token_metrics(found), "divergence": cast(Tensor, found.divergence)}
        return PairOutput.of(tokens, cast(Tensor, found.loss), metrics)
