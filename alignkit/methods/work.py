"""Records of a method's training cost: models, forward and backward passes, and fused heads.

Each method's `plan` returns them; `alignkit.estimate` adds them up.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from alignkit.adapter_sections import LoraSection
from alignkit.kernels.costs import NO_HEAD, HeadCost, HeadSize
from alignkit.sections import RunSections


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model that stays loaded during training."""

    path: str
    dtype: str
    field: str
    """The recipe field that names the model, for error messages."""
    trains: bool = False
    lora: LoraSection | None = None
    """LoRA adapters of a model that trains; None trains all weights."""
    keeps_start: bool = False
    """Whether a frozen copy of the initial adapters stays loaded."""
    quantization: str | None = None
    """Storage of frozen linear layers, a value of `model.quantization`."""

    def __hash__(self) -> int:
        """Hash by content, since a section has no hash of its own."""
        return hash(repr(self))


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward of a model, and its backward if it trains."""

    model: str
    """A key of `Plan.models`."""
    sequences: int
    length: float
    trains: bool = False
    times: float = 1.0
    """Repetitions per micro-batch. A pass that trains repeats its backward too."""
    head: HeadCost = NO_HEAD
    purpose: str = "policy"
    """The name under which the estimate reports its time: policy, reference, teacher or scoring."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Sampling of answers from a model."""

    model: str
    at_a_time: int
    prompt: float
    tokens: float
    answers: float
    """Answers per row of the data."""


@dataclass(frozen=True, slots=True)
class Work:
    """Cost of one micro-batch on one process, plus what each row costs once before training."""

    passes: tuple[Pass, ...]
    """Passes of the micro-batch, in order. One that trains once keeps its activations until all passes have run."""
    heads: HeadCost = NO_HEAD
    """Cost of the heads that read several models, after all passes."""
    drawing: Generation | None = None
    """Sampling for each row, once before training."""
    scoring: tuple[Pass, ...] = ()
    """Passes for each row, once before training."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch of `rows` rows, whose sequences have `length` tokens, `loss_tokens` of them with loss."""

    rows: int
    length: float
    loss_tokens: float
    prompt: float
    sequences: float
    """Sequences per row in the data, before any sampling."""
    heads: Mapping[str, HeadSize]
    gpu: bool

    def tokens(self, sequences: float) -> int:
        """Return the number of loss tokens in this many sequences."""
        return round(sequences * self.loss_tokens)


@dataclass(frozen=True, slots=True)
class Plan:
    """The models and the work of a recipe's training. The trained model is always called "policy"."""

    models: Mapping[str, ModelUse]
    work: Callable[[Batch], Work]
    micro_batch_matters: bool = False
    """Whether the loss depends on the micro-batch size, so that changing the size changes the result."""


def policy_use(recipe: RunSections) -> ModelUse:
    """Return the recipe's trained model."""
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
