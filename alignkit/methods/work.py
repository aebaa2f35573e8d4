"""What a method's training asks of a machine: models, passes through them, and fused heads.

Each method says it by its own `plan`; `alignkit.estimate` adds it up.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from alignkit.kernels.costs import NO_HEAD, HeadCost, HeadSize
from alignkit.sections import LoraSection, RunSections


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model that stays loaded while training."""

    path: str
    dtype: str
    field: str
    """Of the recipe, for errors."""
    trains: bool = False
    lora: LoraSection | None = None
    """With `trains`: adapters; None trains all weights."""
    keeps_start: bool = False
    """Whether a frozen copy of those adapters stays beside them."""
    quantization: str | None = None
    """How frozen linear layers are stored, by the recipe's name."""

    def __hash__(self) -> int:
        """A section has none of its own."""
        return hash(repr(self))


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward of a model, and its backward where it trains."""

    model: str
    """A name in `Plan.models`."""
    sequences: int
    length: float
    trains: bool = False
    times: float = 1.0
    """How often a micro-batch does it. What trains more than once has its backward each time."""
    head: HeadCost = NO_HEAD
    purpose: str = "policy"
    """What its time is told as: policy, reference, teacher or scoring."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Answers drawn from a model."""

    model: str
    at_a_time: int
    prompt: float
    tokens: float
    answers: float
    """Of each row of the data."""


@dataclass(frozen=True, slots=True)
class Work:
    """Of one micro-batch on one process, and of each row once before training."""

    passes: tuple[Pass, ...]
    """In order. What trains once keeps its activations until all have run."""
    heads: HeadCost = NO_HEAD
    """Over several models, after all passes."""
    drawing: Generation | None = None
    scoring: tuple[Pass, ...] = ()
    """Before training, for each row."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch: `rows` of the data, whose sequences have `length` tokens, `learned` of which carry loss."""

    rows: int
    length: float
    learned: float
    prompt: float
    sequences: float
    """Of each row as the data brings them."""
    heads: Mapping[str, HeadSize]
    gpu: bool

    def tokens(self, sequences: float) -> int:
        """Tokens that carry loss, of so many sequences."""
        return round(sequences * self.learned)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe's method trains with. The trained model is "policy", whatever the method calls it."""

    models: Mapping[str, ModelUse]
    work: Callable[[Batch], Work]
    micro_batch_matters: bool = False
    """Whether the micro-batch is part of the method, so that another one would be another training."""


def policy_use(recipe: RunSections) -> ModelUse:
    """The recipe's model, as it trains."""
    model = recipe.model
    return ModelUse(
        model.path,
        model.dtype,
        "model.path",
        trains=True,
        lora=recipe.lora,
        keeps_start=model.adapter is not None,
        quantization=model.quantization,
    )
