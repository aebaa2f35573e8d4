"""Memory of one process: bytes by kind, and the peak of their sum.

Training passes through moments: the forward pass, the heads, the start and end of the backward pass, the optimizer
step, an evaluation, and sampling for D2O. Some memory is held in all of them; the rest is temporary.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from alignkit.estimate.activations import Activations
from alignkit.estimate.devices import EstimateError
from alignkit.estimate.shapes import Shape
from alignkit.estimate.sharding import MAX_LIVE, REDUCE_BUCKET, SUB_GROUP, Stage
from alignkit.methods.work import Generation, ModelUse, Pass, Work

KINDS = ("weights", "gradients", "optimizer", "activations", "heads", "reference", "teacher", "gathered")
FLOAT = 4

OPTIMIZER_NUMBERS = {
    "adamw_torch": 2.0,
    "adamw_torch_fused": 2.0,
    "adamw_8bit": 0.5,
    "adamw_bnb_8bit": 0.5,
    "paged_adamw_8bit": 0.5,
    "adagrad": 1.0,
    "rmsprop": 1.0,
    "adafactor": 0.01,
    "sgd": 0.0,
}
"""Optimizer name in transformers -> state values per trained weight, in the weight's dtype."""
STEPS_AT_ONCE = {"adamw_torch", "adagrad", "rmsprop", "sgd"}
"""Optimizers that on a GPU make one temporary of all weights in their step."""


@dataclass(frozen=True, slots=True)
class Model:
    """One loaded model."""

    use: ModelUse
    shape: Shape
    copies: int = 0
    """Number of float32 copies of the trained weights that a recipe's terms keep."""

    @property
    def itemsize(self) -> int:
        """Bytes per weight as loaded."""
        return FLOAT if self.use.dtype == "float32" else 2


@dataclass(frozen=True, slots=True)
class Layout:
    """The distribution of training over devices."""

    stage: Stage
    devices: int
    gpu: bool
    optimizer: str
    mixed: bool
    accumulates: bool
    """Whether gradients of earlier micro-batches are held during a forward pass."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one process, in bytes."""

    kinds: dict[str, int]
    """Peak of each kind."""
    peak: int
    """Peak of all kinds together; not the sum of their peaks."""
    moment: str
    """Name of the moment of the peak."""
    host: int = 0
    """Main memory used for offloaded shares."""


Bytes = Counter[str]


def resident(models: Mapping[str, Model], layout: Layout) -> Bytes:
    """Memory held all the time: weights, gathered weights, gradient buckets and the optimizer state."""
    stage, held = layout.stage, Counter[str]()
    for role, model in models.items():
        share = layout.devices if stage.shares_weights else 1
        size = weight_bytes(model, layout)
        if not stage.offload:
            held["weights" if role == "policy" else role] += size // share
        if model.use.keeps_start and not stage.offload:
            held["reference"] += model.shape.trained_bytes // share
        held["reference"] += model.copies * FLOAT * model.shape.trainable
        held["gathered"] += _gathered(model, layout)
        if model.use.trains and not stage.offload:
            held["optimizer"] += _optimizer(model, layout)
    held["gradients"] += _standing_buckets(models, layout)
    return held


def weight_bytes(model: Model, layout: Layout) -> int:
    """Bytes of the whole model. Under mixed precision, DeepSpeed trains in 16 bits, FSDP2 in float32."""
    shape = model.shape
    if layout.mixed and layout.stage.engine == "deepspeed":
        return 2 * (shape.parameters - shape.quantised) + shape.quantised_bytes
    if layout.mixed and layout.stage.engine == "fsdp":
        return shape.weight_bytes - shape.trained_bytes + FLOAT * shape.trainable
    return shape.weight_bytes


def offloaded(models: Mapping[str, Model], layout: Layout) -> int:
    """Bytes of main memory for the offloaded shares of one process."""
    if not layout.stage.offload:
        return 0
    trained = [model for model in models.values() if model.use.trains]
    weights = sum(weight_bytes(model, layout) for model in models.values()) // layout.devices
    return weights + sum(_optimizer(m, layout) + _gradients(m, layout) + _stepped(m, layout) for m in trained)


def peak(
    models: Mapping[str, Model],
    layout: Layout,
    work: Work,
    traces: Mapping[Pass, Activations],
    evaluation: Mapping[Pass, Activations],
) -> Memory:
    """The peak over all moments; `traces` are the activations of `work`'s passes, `evaluation` of an evaluation's."""
    trained = [model for model in models.values() if model.use.trains]
    on_device = [] if layout.stage.offload else trained
    whole = Counter(gradients=sum(_gradients(model, layout) for model in on_device))
    repeats = any(step.trains and step.times > 1 for step in work.passes)
    earlier = whole if layout.accumulates or repeats else Counter[str]()
    forwards, kept = _forwards(work, traces)
    moments = {
        name: earlier + extra
        for name, extra in (forwards | _backward_begins(models, work, traces, kept, bool(earlier))).items()
    }
    layer = max((traces[step].backward for step in work.passes if step.trains), default=0)
    second = max((_embedding_gradient(model) for model in trained), default=0)
    moments["backward's end"] = whole + Counter(activations=layer, gradients=second)
    moments["optimizer's step"] = whole + Counter(
        optimizer=sum(_step(model, layout) for model in on_device),
        gradients=sum(_stepped(model, layout) for model in on_device),
    )
    for step, found in evaluation.items():
        moments[f"evaluation, {step.purpose}"] = Counter(
            activations=found.kept + found.forward, heads=step.head.forward
        )
    if work.drawing is not None:
        moments["drawing"] = Counter(activations=_cache(models[work.drawing.model], work.drawing))
    return _most(resident(models, layout), moments, offloaded(models, layout))


def _forwards(work: Work, traces: Mapping[Pass, Activations]) -> tuple[dict[str, Bytes], Bytes]:
    """The moments of the forward passes and of heads over several models, and the memory kept after them."""
    moments, kept = {}, Counter[str]()
    for step in work.passes:
        found = traces[step]
        own = Counter(activations=found.kept, heads=step.head.kept) if step.trains else Counter[str]()
        passing = Counter(activations=found.forward, heads=step.head.forward)
        moments[f"forward, {step.purpose}"] = kept + own + passing
        kept += own
    kept += Counter(heads=work.heads.kept)
    moments["heads"] = kept + Counter(heads=work.heads.forward)
    return moments, kept


def _backward_begins(
    models: Mapping[str, Model],
    work: Work,
    traces: Mapping[Pass, Activations],
    kept: Bytes,
    accumulated: bool,  # noqa: FBT001
) -> dict[str, Bytes]:
    """The moments at the start of the backward pass (heads and last layer), with all activations held."""
    trained = [step for step in work.passes if step.trains]
    heads = work.heads.backward + max((step.head.backward for step in trained), default=0)
    states = max((_states(models[step.model], step) for step in trained), default=0)
    layer = max((traces[step].backward for step in trained), default=0)
    of_heads = 0 if accumulated else sum(_head_gradient(models[step.model]) for step in trained)
    return {
        "heads' backward": kept + Counter(heads=heads, activations=2 * states),
        "backward's beginning": kept + Counter(activations=layer, gradients=of_heads),
    }


def _most(always: Bytes, moments: Mapping[str, Bytes], host: int) -> Memory:
    totals = {name: always + extra for name, extra in moments.items()}
    moment = max(totals, key=lambda name: totals[name].total())
    kinds = {kind: max(total[kind] for total in totals.values()) for kind in KINDS}
    return Memory(kinds, totals[moment].total(), moment, host)


def optimizer_numbers(name: str) -> float:
    """State values that the optimizer keeps per trained weight. Raises EstimateError for an unknown optimizer."""
    if name not in OPTIMIZER_NUMBERS:
        known = ", ".join(OPTIMIZER_NUMBERS)
        raise EstimateError(f"training.optimizer: estimates support {known}, found {name!r}")
    return OPTIMIZER_NUMBERS[name]


def optimizer_bytes(model: Model, layout: Layout) -> int:
    """Bytes of the optimizer state, over all processes that share it."""
    numbers = optimizer_numbers(layout.optimizer)
    if layout.stage.master_weights:
        return int((1 + numbers) * FLOAT * model.shape.trainable)
    return int(numbers * trained_bytes(model, layout))


def _optimizer(model: Model, layout: Layout) -> int:
    return optimizer_bytes(model, layout) // (layout.devices if layout.stage.shares_optimizer else 1)


def _gradients(model: Model, layout: Layout) -> int:
    """Bytes of gradients per process, in the dtype of the weights."""
    return trained_bytes(model, layout) // (layout.devices if layout.stage.shares_gradients else 1)


def trained_bytes(model: Model, layout: Layout) -> int:
    """Bytes of the trained weights, as held by the stage's engine."""
    shape = model.shape
    if layout.stage.engine == "torch" or not layout.mixed:
        return shape.trained_bytes
    return shape.trainable * (2 if layout.stage.engine == "deepspeed" else FLOAT)


def _standing_buckets(models: Mapping[str, Model], layout: Layout) -> int:
    """DDP's copy of all gradients, or DeepSpeed's bucket. On a CPU, only a bucket's written part takes memory."""
    trained = [model for model in models.values() if model.use.trains]
    sizes = [trained_bytes(model, layout) for model in trained]
    if layout.stage.buckets:
        return sum(sizes)
    if layout.stage.engine != "deepspeed":
        return 0
    elements = sum(model.shape.trainable for model in trained)
    itemsize = sum(sizes) / max(1, elements)
    return int(itemsize * (REDUCE_BUCKET if layout.gpu else min(REDUCE_BUCKET, elements)))


def _gathered(model: Model, layout: Layout) -> int:
    """Bytes of weights that are temporarily whole, in addition to the share or their quantised form."""
    stage, shape = layout.stage, model.shape
    if not stage.shares_weights:
        return shape.largest_quantised * model.itemsize
    itemsize = 2 if layout.mixed else model.itemsize
    if stage.engine == "deepspeed":
        return itemsize * min(shape.parameters, MAX_LIVE)
    # FSDP2: the current layer and the next, and all weights outside layers, which stay gathered until the end
    return itemsize * (2 * shape.layer_parameters + shape.parameters - shape.layers * shape.layer_parameters)


def _step(model: Model, layout: Layout) -> int:
    """Bytes of temporaries in the optimizer step."""
    share = layout.devices if layout.stage.shares_optimizer else 1
    if layout.gpu and layout.optimizer in STEPS_AT_ONCE:
        size = FLOAT * model.shape.trainable if layout.stage.engine != "torch" else model.shape.trained_bytes
        return size // share
    return 2 * model.shape.largest_trained // share


def _stepped(model: Model, layout: Layout) -> int:
    """Bytes of DeepSpeed's float32 gradients in the optimizer step."""
    if not layout.stage.master_weights:
        return 0
    most = SUB_GROUP if layout.stage.shares_weights else model.shape.trainable
    return FLOAT * min(most, model.shape.trainable) // layout.devices


def _states(model: Model, step: Pass) -> int:
    """Bytes of one tensor of last hidden states."""
    return round(step.sequences * step.length) * model.shape.hidden * model.itemsize


def _head_gradient(model: Model) -> int:
    shape = model.shape
    return shape.vocabulary * shape.hidden * model.itemsize if shape.head_trains else 0


def _embedding_gradient(model: Model) -> int:
    """Bytes of a tied weight's second gradient, or of the first one's copy, before they are summed."""
    shape = model.shape
    return shape.vocabulary * shape.hidden * model.itemsize if shape.embedding_trains else 0


def _cache(model: Model, drawing: Generation) -> int:
    length = drawing.prompt + drawing.tokens
    # the cache of one layer is copied when it grows
    growing = 1 + 1 / model.shape.layers
    return round(drawing.at_a_time * length * model.shape.cached * model.itemsize * growing)
