"""Time of a step and its parts: operations over a rate, bytes over a bandwidth.

Assumptions, here and in devices.py: training reaches a fixed share of a large matrix product's rate; communication
overlaps with computation, so that a step takes the longer of the two; a collective waits HOP once per node in its
ring.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from alignkit.estimate.devices import Device
from alignkit.estimate.memory import FLOAT, Layout, Model, optimizer_numbers, weight_bytes
from alignkit.methods.work import Generation, Pass, Work

HOP = 10e-6
"""Seconds that a collective loses per node, and once within a node."""


HOST_BANDWIDTH = 50e9
"""Bytes per second between a device and the main memory that holds offloaded shares."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of one optimizer step, and of the work before training."""

    computing: dict[str, float]
    """Seconds of computation by purpose: policy, reference, teacher, scoring, heads, tuning."""
    optimizer: float
    communication: float
    """Seconds of communication if it did not overlap."""
    drawing: float
    """Seconds of sampling answers, once before training."""
    scoring: float
    """Seconds of computing reference log-probs, once before training."""

    @property
    def step(self) -> float:
        """Seconds of the whole step, with overlapping communication."""
        return max(sum(self.computing.values()), self.communication) + self.optimizer


def seconds(
    device: Device,
    layout: Layout,
    models: Mapping[str, Model],
    work: Work,
    *,
    forwards: int,
    rows: int,
    checkpointing: bool,
) -> Seconds:
    """The time of `work` per micro-batch, with `forwards` micro-batches per step and `rows` rows before training."""
    rate = device.rate(2 if layout.mixed else models["policy"].itemsize)
    computing: defaultdict[str, float] = defaultdict(float)
    for step in work.passes:
        operations = flops(models[step.model], step, checkpointing=checkpointing)
        computing[step.purpose] += forwards * step.times * operations / rate
        computing["heads"] += forwards * step.times * step.head.flops / rate
    computing["heads"] += forwards * work.heads.flops / rate
    bandwidth = (
        min(device.memory_bandwidth, HOST_BANDWIDTH) if layout.stage.offload else device.memory_bandwidth
    )
    optimizer = sum(_stepped_bytes(m, layout) for m in models.values() if m.use.trains) / bandwidth
    before = sum(
        p.times * (flops(models[p.model], p, checkpointing=False) + p.head.flops) for p in work.scoring
    )
    return Seconds(
        computing=dict(computing),
        optimizer=optimizer,
        communication=communication(
            device, layout, models, work, forwards=forwards, checkpointing=checkpointing
        ),
        drawing=_drawing(device, layout, models, work.drawing, rows) if work.drawing else 0.0,
        scoring=rows * before / rate / layout.devices,
    )


def flops(model: Model, step: Pass, *, checkpointing: bool) -> float:
    """Operations of one pass without heads; frozen weights have no gradient, but propagate one."""
    shape, tokens = model.shape, step.sequences * step.length
    forward = (
        2.0 * shape.multiplied * tokens + 4.0 * tokens * step.length * shape.attention_width * shape.layers
    )
    if not step.trains:
        return forward
    backward = 2.0 if model.use.lora is None else 1.0
    return forward * (1 + backward + (1 if checkpointing else 0))


def communication(
    device: Device,
    layout: Layout,
    models: Mapping[str, Model],
    work: Work,
    *,
    forwards: int,
    checkpointing: bool,
) -> float:
    """Seconds of a step's collectives: gradient reduction, and gathering of sharded weights."""
    stage, count = layout.stage, layout.devices
    if count == 1 and not stage.offload:
        return 0.0
    bandwidth = (
        device.link if count <= device.per_node else min(device.link, device.network * device.per_node)
    )
    if stage.offload:
        bandwidth = min(bandwidth, HOST_BANDWIDTH)
    trained = [model for model in models.values() if model.use.trains]
    gradients = sum(_sent(model, layout) for model in trained)
    times = forwards * max(p.times for p in work.passes if p.trains) if stage.reduces_each_forward else 1
    # reduced to shares; gathered again unless the weights are sharded
    total, collectives = gradients * times * (1 if stage.shares_weights else 2), 2.0 * times
    if stage.shares_weights:
        for step in work.passes:
            model = models[step.model]
            gathers = (
                forwards * step.times * (1 if not step.trains else 3 if _twice(layout, checkpointing) else 2)
            )
            size = 2 * model.shape.parameters if layout.mixed else weight_bytes(model, layout)
            total += gathers * size
            collectives += gathers * model.shape.layers
    nodes = -(-count // device.per_node)
    # with offloading, a process's own share is also transferred over the bus
    share = 1.0 if stage.offload else (count - 1) / count
    return total * share / bandwidth + collectives * HOP * nodes


def _twice(layout: Layout, checkpointing: bool) -> bool:  # noqa: FBT001
    """Whether weights are gathered twice: ZeRO-3 does so for the recomputed forward and for the backward."""
    return checkpointing and layout.stage.engine == "deepspeed"


def _sent(model: Model, layout: Layout) -> int:
    shape = model.shape
    return 2 * shape.trainable if layout.mixed and layout.stage.engine != "torch" else shape.trained_bytes


def _stepped_bytes(model: Model, layout: Layout) -> float:
    """Bytes read and written by the optimizer: weights, gradients and its state."""
    share = layout.devices if layout.stage.shares_optimizer else 1
    return model.shape.trainable * FLOAT * (3 + 2 * optimizer_numbers(layout.optimizer)) / share


def _drawing(
    device: Device, layout: Layout, models: Mapping[str, Model], drawing: Generation, rows: int
) -> float:
    """Seconds of sampling: each new token reads all weights once, and computes for all rows of a batch."""
    model = models[drawing.model]
    reading = (
        model.shape.weight_bytes
        + drawing.at_a_time * (drawing.prompt + drawing.tokens / 2) * model.shape.cached * model.itemsize
    )
    computing = 2.0 * model.shape.parameters * drawing.at_a_time / device.rate(model.itemsize)
    turns = rows * drawing.answers / drawing.at_a_time / layout.devices
    return turns * drawing.tokens * max(reading / device.memory_bandwidth, computing)
