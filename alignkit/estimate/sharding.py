"""What each process holds and sends under each of the ways in recipes/accelerate/.

Of n processes. The figures are those of the engines' own defaults, which our configurations leave alone.
"""

from dataclasses import dataclass, replace

from alignkit.estimate.devices import EstimateError

REDUCE_BUCKET = 500_000_000
"""DeepSpeed's reduce_bucket_size, elements; allocated whole."""
MAX_LIVE = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: so many stay gathered."""
SUB_GROUP = 1_000_000_000
"""DeepSpeed's sub_group_size: so many elements are stepped at a time under ZeRO-3."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One way to share training among processes; what is not shared, every process holds whole."""

    name: str
    shares_weights: bool = False
    shares_gradients: bool = False
    shares_optimizer: bool = False
    engine: str = "torch"
    """torch, deepspeed or fsdp."""
    offload: bool = False
    """Shares lie in main memory."""
    reduces_each_forward: bool = False
    """Gradients are sent at every backward, not once a step."""
    sharding: str | None = None
    """What alignkit.run.environment_checks calls it."""

    @property
    def master_weights(self) -> bool:
        """Whether a float32 copy of the trained weights is kept, with float32 optimizer states."""
        return self.engine == "deepspeed"

    def goes_with(self, devices: int) -> bool:
        """Whether so many make sense: one shares nothing, but may leave its weights in main memory."""
        return self.offload or (devices == 1) == (self.name == "single")

    @property
    def buckets(self) -> bool:
        """Whether gradients are copied into buckets that stay."""
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
"""In the order in which they are tried: the least that is sent first."""


def get(name: str) -> Stage:
    """The stage of that name; raises EstimateError."""
    if name not in STAGES:
        raise EstimateError(f"stage: expected one of {', '.join(STAGES)}, found {name!r}")
    return STAGES[name]


def fitting(devices: int) -> list[Stage]:
    """The stages that make sense with so many devices."""
    return [stage for stage in STAGES.values() if stage.goes_with(devices)]
