"""The LoRA rank that an engine serves: every adapter in it takes the memory and the time of the largest rank."""

import json
from functools import lru_cache
from pathlib import Path

from alignkit.models.adapters import CONFIG_FILE

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for --max-lora-rank."""
FIRST_RANK = 16
"""Rank of an engine without larger adapters; that of a job by default, so that most need no restart."""


def engine_rank(asked: int, most: int) -> int:
    """The smallest value of vLLM's --max-lora-rank for adapters of rank `asked`, in a service of at most `most`."""
    wanted = min(max(asked, FIRST_RANK), most)
    return next((rank for rank in VLLM_RANKS if rank >= wanted), VLLM_RANKS[-1])


def published_rank(folder: Path) -> int:
    """The largest rank of the adapters in a base model's folder of published adapters; 0 if there is none."""
    found = folder.iterdir() if folder.is_dir() else ()
    return max((adapter_rank(str(path)) for path in found if not path.name.startswith(".")), default=0)


@lru_cache(maxsize=4096)
def adapter_rank(folder: str) -> int:
    """The rank that vLLM requires for a published adapter, from its adapter_config.json; 0 if it cannot be read.

    Cached: published files never change, and names are unique.
    """
    try:
        config = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
        return max(int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values()), 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0
