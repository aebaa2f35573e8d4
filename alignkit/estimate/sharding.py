"""Memory and communication of each process under the configurations in alignkit/accelerate_configs/.

The constants are the engines' defaults, which those configurations do not change.
"""

from dataclasses import dataclass, replace

from alignkit.estimate.devices import EstimateError

REDUCE_BUCKET = 500_000_000
"""DeepSpeed's reduce_bucket_size in elements; allocated as a whole."""
MAX_LIVE = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: the number of parameters that stay gathered."""
SUB_GROUP = 1_000_000_000
"""DeepSpeed's sub_group_size: the number of elements stepped at a time under ZeRO-3."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One way to shard training over processes. Every process holds a full copy of what is not sharded."""

    name: str
    shares_weights: bool = False
    shares_gradients: bool = False
    shares_optimizer: bool = False
    engine: str = "torch"
    """torch, deepspeed or fsdp."""
    offload: bool = False
    """Whether shares are kept in main memory."""
    reduces_each_forward: bool = False
    """Whether gradients are communicated at every backward pass instead of once per step."""
    sharding: str | None = None
    """The name of this stage in alignkit.run.environment_checks."""

    @property
    def master_weights(self) -> bool:
        """Whether a float32 copy of the trained weights is kept, with float32 optimizer state."""
        return self.engine == "deepspeed"

    def goes_with(self, devices: int) -> bool:
        """Whether the stage is possible with that many devices; one device can only train alone or offload."""
        return self.offload or (devices == 1) == (self.name == "single")

    @property
    def buckets(self) -> bool:
        """Whether gradients are copied into permanent buckets."""
        return self.name == "ddp"


_ZERO3 = Stage("zero3", True, True, True, engine="deepspeed", reduces_each_forward=True, sharding="ZeRO-3")

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("single"),
        Stage("ddp"),
        Stage("zero1", shares_optimizer=True, engine="deepspeed", sharding="ZeRO-1"),
        Stage(
            "zero2",
            shares_gradients=True,
            shares_optimizer=True,
            engine="deepspeed",
            reduces_each_forward=True,
            sharding="ZeRO-2",
        ),
        Stage("fsdp2", True, True, True, engine="fsdp", reduces_each_forward=True, sharding="FSDP"),
        _ZERO3,
        replace(_ZERO3, name="zero3_offload", offload=True),
    )
}
"""Stages by name, ordered by communication, the least first."""


def get(name: str) -> Stage:
    """The stage with that name. Raises EstimateError."""
    if name not in STAGES:
        raise EstimateError(f"stage: expected one of {', '.join(STAGES)}, found {name!r}")
    return STAGES[name]


def fitting(devices: int) -> list[Stage]:
    """The stages that are possible with that many devices."""
    return [stage for stage in STAGES.values() if stage.goes_with(devices)]
