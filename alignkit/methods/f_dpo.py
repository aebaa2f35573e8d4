"""f-DPO, and OpenAI's `dpo`, which is f-DPO with the reverse KL."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from alignkit import divergences
from alignkit.errors import DivergenceError
from alignkit.losses import PairLogps, PreferenceLoss, f_dpo_loss
from alignkit.methods.preference import PairMethod
from alignkit.options import RECIPES_ONLY, InJobs

Beta = Annotated[float, InJobs(le=2, auto=True)]


def _registered(name: str) -> str:
    """Check a divergence that a job names. An import path is refused, since importing it would run its code."""
    if ":" in name:
        raise ValueError(f"expected one of {', '.join(divergences.available())}")
    return name


def _with_names(described: dict[str, Any]) -> None:
    """Add the names of the divergences to a JSON Schema, at each call, since more can be registered at any time."""
    described["enum"] = list(divergences.available())


def _parameters(options: Mapping[str, Any]) -> dict[str, float]:
    """The divergence's parameters that f-DPO's options give."""
    named = {name: options.get(name) for name in ("alpha", "f_alpha_divergence_coef")}
    return {name: value for name, value in named.items() if value is not None} | (
        options.get("divergence_params") or {}
    )


class FDPO(PairMethod):
    """Preference pairs, with any f-divergence between policy and reference: a built-in one or your own."""

    type: Literal["f_dpo"] = "f_dpo"
    paper: ClassVar[str] = "2309.16240"
    beta: Beta = Field(0.1, gt=0, le=100, description="strength of the divergence from the reference")
    divergence: Annotated[str, InJobs(check=_registered, schema=_with_names)] = Field(
        "reverse_kl",
        description="a name from alignkit.divergences.available(), or in a recipe package.module:Name",
    )
    alpha: float | None = Field(None, gt=0, le=10, description="alpha_divergence only; the paper's alpha")
    f_alpha_divergence_coef: float | None = Field(
        None, lt=1, ge=-9, description="alpha_divergence only; TRL's coefficient, 1 - alpha"
    )
    match_curvature: bool = Field(
        False, description="divide beta by f''(1), so that all divergences have the same local strength"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="share of the labels that are assumed to be flipped"
    )
    robust: bool = Field(
        False, description="use robust DPO's unbiased form of label_smoothing instead of cDPO's"
    )
    length_normalization: bool = Field(
        False, description="average log-ratios over the answer's tokens instead of summing them"
    )
    divergence_params: Annotated[dict[str, float] | None, RECIPES_ONLY] = Field(
        None, description="parameters of the divergence by name, for one of your own"
    )
    sft_weight: float = Field(
        0.0, ge=0, le=100, description="weight of the chosen answer's NLL, averaged over its tokens"
    )

    @field_validator("divergence")
    @classmethod
    def _divergence_exists(cls, name: str) -> str:
        try:
            divergences.get(name)
        except DivergenceError as error:
            raise ValueError(str(error)) from error
        return name

    @field_validator("alpha", "f_alpha_divergence_coef", "divergence_params")
    @classmethod
    def _takes_parameter(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None or "divergence" not in info.data:
            return value
        try:
            divergences.get(
                info.data["divergence"], **_parameters({**info.data, str(info.field_name): value})
            )
        except DivergenceError as error:
            raise ValueError(str(error)) from error
        return value

    @cached_property
    def family(self) -> divergences.FDivergence:
        """The divergence object, with its parameters."""
        return divergences.get(self.divergence, **_parameters(vars(self)))

    @property
    def effective_beta(self) -> float:
        """`beta`, or with `match_curvature` `beta` / f''(1)."""
        return self.beta / (self.family.curvature if self.match_curvature else 1.0)

    def loss(self, pairs: PairLogps) -> PreferenceLoss:
        """Return `losses.f_dpo_loss` of the log-ratios plus `sft_weight` times the chosen answer's NLL per token."""
        chosen, rejected, ref_chosen, ref_rejected, *_ = (
            pairs.averaged() if self.length_normalization else pairs
        )
        found = f_dpo_loss(
            chosen,
            rejected,
            ref_chosen,
            ref_rejected,
            beta=self.effective_beta,
            divergence=self.family,
            label_smoothing=self.label_smoothing,
            robust=self.robust,
        )
        weight: float | Tensor = self.sft_weight  # [B] while it is tuned
        return (
            found.plus(-weight * pairs.averaged().chosen) if isinstance(weight, Tensor) or weight else found
        )


class DPO(PairMethod):
    """Preference pairs as in OpenAI's API: f-DPO with the reverse KL; beta is the only option."""

    type: Literal["dpo"] = "dpo"
    paper: ClassVar[str] = "2305.18290"
    beta: Beta = Field(0.1, gt=0, le=100, description="strength of the KL divergence from the reference")

    def loss(self, pairs: PairLogps) -> PreferenceLoss:
        """Return the DPO loss (arXiv 2305.18290): `losses.f_dpo_loss` with the reverse KL."""
        return f_dpo_loss(*pairs[:4], beta=self.beta, divergence="reverse_kl")
