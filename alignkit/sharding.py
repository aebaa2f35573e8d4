"""The sharding that accelerate's launcher chose for this run."""

import os

SHARES_WEIGHTS = frozenset({"ZeRO-3", "FSDP"})
"""Kinds of sharding under which no process holds a weight whole."""


def sharding() -> str | None:
    """`ZeRO-1` to `ZeRO-3` or `FSDP`, from the launcher's environment variables; None if nothing is sharded."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return f"ZeRO-{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    return "FSDP" if os.environ.get("ACCELERATE_USE_FSDP") == "true" else None


def is_main_process() -> bool:
    """Return whether this process is rank 0."""
    return os.environ.get("RANK", "0") == "0"
