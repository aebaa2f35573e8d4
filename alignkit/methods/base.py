"""What a method is: its part of a recipe, its hyperparameters in a job, and the trainer it builds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from alignkit.schema import Section

if TYPE_CHECKING:
    from alignkit.methods.work import Plan
    from alignkit.recipe import Recipe

Auto = Literal["auto"]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where the weights of a model of the service are."""

    path: str
    adapter: str | None = None
    """Folder of the peft adapter over it, for a fine-tuned model."""
    fully_trained: bool = False
    """Whether it is a fine-tuned model of which all weights were trained."""

    @property
    def trained_weights(self) -> str | None:
        """How it was trained, as the hyperparameter says it; None for a base model."""
        if self.adapter is not None:
            return "lora"
        return "all" if self.fully_trained else None


ResolveModel = Callable[[str], ModelSource]
"""From a model's name in a job; raises ModelError where the project has no such model."""


class Hyperparameters(Section):
    """What every method takes in a job: OpenAI's three, and the run's own. JSON's types are taken as they are."""

    model_config = ConfigDict(strict=True)

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1000)] = "auto"
    max_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    micro_batch_size: Annotated[int, Field(ge=1, le=256)] | None = None
    max_length: Auto | Annotated[int, Field(ge=16, le=131_072)] = "auto"
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    eval_interval: Auto | Annotated[int, Field(ge=1, le=1_000_000)] = "auto"
    checkpoint_interval: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    on_collapse: Literal["warn", "stop", "rollback"] = "warn"
    trained_weights: Literal["lora", "all"] = "lora"
    lora_rank: Annotated[int, Field(ge=1, le=1024)] = 16
    lora_alpha: Annotated[float, Field(gt=0, le=4096)] | None = None

    @model_validator(mode="after")
    def _no_rank_without_lora(self) -> Self:
        given = {"lora_rank", "lora_alpha"} & self.model_fields_set
        if self.trained_weights == "all" and given:
            names = ", ".join(sorted(given))
            raise ValueError(
                f"{names}: expected only with trained_weights 'lora', found trained_weights 'all'"
            )
        return self


@dataclass(frozen=True, slots=True)
class RunContext:
    """What building a trainer needs beside the recipe."""

    recipe: "Recipe"
    model: Any
    tokenizer: Any
    checkpoints: Path
    callbacks: list[Any]


@dataclass(frozen=True, slots=True)
class Method:
    """A method by its name in a job (`method.type`)."""

    name: str
    section: type[Section]
    """Its part of a recipe; has `type`, the recipe's name of the method."""
    hyperparameters: type[Hyperparameters]
    build: Callable[[RunContext], Any]
    """The trainer for a recipe with this section. Imports torch and TRL itself: a registry must not."""
    plan: Callable[["Recipe"], "Plan"]
    """What training with this section asks of a machine, for `alignkit.estimate`."""
    learning_rate: float
    """What a job's learning_rate_multiplier of 1 means, with LoRA; without, a hundredth of it."""
    auto: Mapping[str, Any] = field(default_factory=dict)
    """What "auto" becomes, for the method's own hyperparameters."""
    section_values: Callable[[Mapping[str, Any], ResolveModel], dict[str, Any]] = lambda *_: {}
    """From a job's resolved hyperparameters, what the section names or means otherwise; the rest goes over by name.
    Raises RecipeError with the hyperparameter's path."""
