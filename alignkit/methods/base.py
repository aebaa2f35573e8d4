"""`Method`, the base class of every training method. A method is both a recipe section and a loss."""

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
    """The location of the weights of one of the service's models."""

    path: str
    adapter: str | None = None
    """Folder of the peft adapter to load over `path`; None for a base model and for full weights."""
    fully_trained: bool = False
    """Whether the model was fine-tuned with all of its weights trained."""
    chat_template: str | None = None
    """File of the template that it was trained with, where that is not the one of the model at `path`."""

    @property
    def trained_weights(self) -> Literal["lora", "all"] | None:
        """The value of the hyperparameter `trained_weights` that made the model; None for a base model."""
        if self.adapter is not None:
            return "lora"
        return "all" if self.fully_trained else None


ResolveModel = Callable[[str], ModelSource]
"""A function from a model's name to its `ModelSource`. Raises ModelError if the project has no such model."""


class Method(Section):
    """A training method. Its fields are its options; its class attributes declare what it needs.

    The recipe schema, the job schema, `GET /v1/fine_tuning/methods`, the command line, the estimate and the trainer
    are derived from the declaration. Marks on a field (`alignkit.options`) say how a job may set it. The first
    paragraph of the class's docstring is the method's description for users.
    """

    type: str = ""
    """The method's name in recipes and jobs. For a class named by import path, the import path."""

    rows: ClassVar[str] = ""
    """The kind of row the method trains on, a key of `alignkit.data.rows.ROW_KINDS`."""
    learning_rate: ClassVar[float] = 1e-4
    """The LoRA learning rate of a job whose `learning_rate_multiplier` is 1."""
    micro_batch_matters: ClassVar[bool] = False
    """Whether the loss depends on the micro-batch size, so that changing the size changes the result."""
    packs: ClassVar[bool] = False
    """Whether `training.packing` applies: several answers of a row share its prompt."""
    held_out_metrics: ClassVar[frozenset[str]] = frozenset()
    """Names in `alignkit.held_out_metrics` that an evaluation logs beside the loss."""
    term_effects: ClassVar[frozenset[str]] = frozenset()
    """The effects of the terms that the trainer adds: "weights" and "extras" of rows, "parameters"."""
    paper: ClassVar[str] = ""
    """arXiv number of the paper that the method is from, for the model card."""

    @model_validator(mode="after")
    def _name_own_class(self) -> Self:
        if not self.type:
            self.type = import_path(type(self))
        return self

    def plan(self, recipe: RunSections) -> Plan:
        """Return the models, passes and fused heads of one step, for `alignkit.estimate`."""
        raise NotImplementedError

    def refusals(self, _recipe: RunSections, _sharded: str | None) -> Iterator[FieldIssue]:
        """Yield an issue for each option that this run cannot have. `_sharded` is `alignkit.sharding.sharding()`."""
        return iter(())

    def try_out(self) -> None:
        """Raise ValueError unless the method works on a small example. Called for a class named by import path."""

    @classmethod
    def summary(cls) -> str:
        """Return the description for users: the first paragraph of the class's docstring."""
        return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())

    @classmethod
    def own_options(cls) -> dict[str, Any]:
        """Return the method's options by name, without `type`."""
        return {name: field for name, field in cls.model_fields.items() if name != "type"}


def import_path(method: type[Method]) -> str:
    """Return `package.module:Class`, by which a recipe names a class that is not registered."""
    return f"{method.__module__}:{method.__qualname__}"
