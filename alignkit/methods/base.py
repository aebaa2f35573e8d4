"""Method: the base of every method, which is its section of a recipe and the loss it trains with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from alignkit.errors import FieldIssue
from alignkit.methods.work import Plan
from alignkit.schema import Section
from alignkit.sections import RunSections


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where the weights of a model of the service are."""

    path: str
    adapter: str | None = None
    """Folder of the peft adapter over it, for a fine-tuned model."""
    fully_trained: bool = False
    """Whether it is a fine-tuned model of which all weights were trained."""

    @property
    def trained_weights(self) -> Literal["lora", "all"] | None:
        """The hyperparameter `trained_weights` that it was made with; None for a base model."""
        if self.adapter is not None:
            return "lora"
        return "all" if self.fully_trained else None


ResolveModel = Callable[[str], ModelSource]
"""From a model's name in a job to its source; raises ModelError where the project has no such model."""


class Method(Section):
    """A training method: its options are its fields, its class attributes say what it needs.

    Recipe, job, `GET /v1/fine_tuning/methods`, command line, estimate and trainer follow from the declaration.
    A field's marks (`alignkit.options`) say how a job may give it. The class's docstring says what the method is for.
    """

    type: str = ""
    """The method's name in recipes and jobs; of a class that is named by import path, that path."""

    rows: ClassVar[str] = ""
    """Kind of row that it trains on, a name of `alignkit.data.rows.ROW_KINDS`."""
    learning_rate: ClassVar[float] = 1e-4
    """The learning rate that a job's `learning_rate_multiplier` of 1 stands for, with LoRA."""
    micro_batch_matters: ClassVar[bool] = False
    """Whether the micro-batch is part of the method, so that another one would be another training."""

    @model_validator(mode="after")
    def _name_own_class(self) -> Self:
        if not self.type:
            self.type = import_path(type(self))
        return self

    def plan(self, recipe: RunSections) -> Plan:
        """The models, passes and heads that a step takes, for `alignkit.estimate`."""
        raise NotImplementedError

    def refusals(self, _recipe: RunSections, _sharded: str | None) -> Iterator[FieldIssue]:
        """The options that cannot be had in this run, sharded as `alignkit.sharding.sharding` says."""
        return iter(())

    def try_out(self) -> None:
        """Raise ValueError unless the method's code works on a small example; run for a user's own class."""

    @classmethod
    def summary(cls) -> str:
        """What the method is for: the first paragraph of its docstring."""
        return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())

    @classmethod
    def own_options(cls) -> dict[str, Any]:
        """The method's options by name, `type` left out."""
        return {name: field for name, field in cls.model_fields.items() if name != "type"}


def import_path(method: type[Method]) -> str:
    """`package.module:Class`, the name under which a recipe finds a class that is not registered."""
    return f"{method.__module__}:{method.__qualname__}"
