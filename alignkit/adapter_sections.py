"""Recipe sections about adapters: LoRA, nested ranks, options that a run tunes, and formats it is served in."""

from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from alignkit.options import InJobs
from alignkit.schema import Section

HEAD_MODULES = frozenset({"lm_head", "embed_tokens"})
"""Modules that no adapter may target: the fused heads would ignore the change, and vLLM could not serve it."""


class NestedSection(Section):
    """Nested ranks: each step trains only the first k ranks, with k drawn anew, so that an adapter can be cut."""

    spread: float | None = Field(
        None, gt=0, le=1e4, description="P(k) ~ exp(-(k / spread)^2) for k = 1 … r; default: r / 4"
    )


class LoraSection(Section):
    """LoRA adapters. `lora: null` trains all weights."""

    r: int = Field(16, ge=1, le=1024, description="rank of the adapters")
    alpha: float = Field(32.0, gt=0, description="the adapters are scaled by alpha / r")
    dropout: Annotated[float, InJobs(name="lora_dropout", le=0.5)] = Field(
        0.0, ge=0, lt=1, description="dropout before the adapters"
    )
    target_modules: Annotated[str | list[str], InJobs(name="lora_target_modules")] = Field(
        "all-linear", description="peft's target_modules, without the head"
    )
    use_rslora: Annotated[bool, InJobs(name="lora_rslora")] = Field(
        False, description="scale adapters by alpha / sqrt(r), as rank-stabilised LoRA does"
    )
    nested: Annotated[NestedSection | None, InJobs(name="lora_nested")] = Field(
        None,
        description="train ranks in order of importance, so that the adapter can be cut; null: all ranks alike",
    )

    @model_validator(mode="after")
    def _nested_keeps_the_scale(self) -> Self:
        if self.nested is not None and self.use_rslora:
            raise ValueError("nested: expected without use_rslora, found both")
        return self

    @field_validator("target_modules")
    @classmethod
    def _no_head(cls, value: str | list[str]) -> str | list[str]:
        names = [value] if isinstance(value, str) else value
        if refused := HEAD_MODULES & set(names):
            raise ValueError(f"{', '.join(sorted(refused))} cannot be served as an adapter; leave it out")
        return value


def _named(field: str) -> Callable[[object], object]:
    """A function that turns a list into the section whose `field` it is."""
    return lambda value: {field: value} if isinstance(value, list) else value


def _distinct(what: str) -> AfterValidator:
    """Refuse a list of names in which one is twice."""

    def check(names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError(f"expected each {what} once, found {', '.join(names)}")
        return names

    return AfterValidator(check)


class TuneSection(Section):
    """Options of a pair method that one run tunes by itself, after Self-Tuning Networks. A list names the options."""

    options: Annotated[list[str], _distinct("option")] = Field(
        min_length=1, max_length=4, description="continuous options of the method, such as [beta]"
    )
    rank: int = Field(
        4, ge=1, le=256, description="ranks of the adapters' response; the saved adapter has them in addition"
    )
    warmup_steps: int = Field(
        10,
        ge=0,
        le=1_000_000,
        description="steps before the options begin to move; their response is learned",
    )
    every: int = Field(
        2, ge=1, le=10_000, description="steps of training for one held-out step of the options"
    )
    rows: int = Field(8, ge=1, le=1024, description="held-out rows of such a step")
    learning_rate: float = Field(
        0.03, ge=0, le=1, description="Adam's rate for the options, on their logarithmic or logit scale"
    )
    spread: float = Field(
        0.5, ge=0, le=5, description="standard deviation of the perturbations at the start, on that scale"
    )
    entropy_weight: float = Field(
        1e-5, ge=0, le=10, description="weight of the perturbations' entropy, which keeps them from vanishing"
    )


Tune = Annotated[TuneSection | None, BeforeValidator(_named("options"))]
"""A `TuneSection`, or a list of the options it tunes."""


Format = Literal["nf4", "int8", "fp8"]
"""A format in which a server holds the frozen weights."""


class ElasticSection(Section):
    """Training for a server that quantises the frozen weights. A list names the formats."""

    formats: Annotated[list[Format], _distinct("format")] = Field(
        min_length=1, max_length=3, description="formats that the adapter will be served in"
    )
    strength: float = Field(
        1.0, ge=0, le=4, description="width of the noise in half steps of the format; 0: none, the plain run"
    )


Elastic = Annotated[ElasticSection | None, BeforeValidator(_named("formats"))]
"""An `ElasticSection`, or a list of its formats."""
