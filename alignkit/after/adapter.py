"""Arithmetic on the weights of a LoRA adapter: scaling, combining and cutting, exact in delta W = s B A."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignkit.errors import ModelError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
IN, OUT = ".lora_A.weight", ".lora_B.weight"
_OUTPUTS = (OUT, ".lora_B.bias")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A plain LoRA adapter: delta W = s B A, with s = alpha / rank, or alpha / sqrt(rank) under rsLoRA."""

    weights: dict[str, Tensor]
    """peft's names -> A [r, k] or B [d, r]."""
    rank: int
    alpha: float
    use_rslora: bool = False

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def scaled(self, factor: float) -> "Adapter":
        """The adapter of factor * delta W: its B are multiplied."""
        return replace(
            self,
            weights={
                name: weight * factor if name.endswith(_OUTPUTS) else weight
                for name, weight in self.weights.items()
            },
        )

    def plus(self, other: "Adapter") -> "Adapter":
        """The adapter of the sum of both delta W, of rank r + r': [B, s'/s B'] and [A; A']. Its scale is this one's.

        Raises ModelError unless both change the same modules.
        """
        if self.weights.keys() != other.weights.keys():
            names = ", ".join(sorted(self.weights.keys() ^ other.weights.keys())[:3])
            raise ModelError(
                f"two adapters cannot be added unless they change the same modules; only one has {names}"
            )
        if biased := [name for name in self.weights if not name.endswith((IN, OUT))]:
            raise ModelError(f"only plain LoRA can be added, found {biased[0]}")
        theirs = other.scaled(other.scale / self.scale).weights
        joined = {
            name: torch.cat([weight, theirs[name].to(weight)], dim=0 if name.endswith(IN) else 1)
            for name, weight in self.weights.items()
        }
        return self._of_rank(joined, self.rank + other.rank)

    def cut(self, rank: int) -> "Adapter":
        """The adapter of the first `rank` rows of every A and columns of every B, at the same scale."""
        kept = {
            name: weight[:rank] if name.endswith(IN) else weight[:, :rank] if name.endswith(OUT) else weight
            for name, weight in self.weights.items()
        }
        return self._of_rank({name: weight.contiguous() for name, weight in kept.items()}, rank)

    def _of_rank(self, weights: dict[str, Tensor], rank: int) -> "Adapter":
        alpha = self.scale * (math.sqrt(rank) if self.use_rslora else rank)
        return replace(self, weights=weights, rank=rank, alpha=int(alpha) if alpha == int(alpha) else alpha)


def read(folder: Path) -> Adapter:
    """Read the adapter in `folder`. Raises ModelError unless it is plain LoRA of one rank."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: expected the folder of a LoRA adapter: {error}") from error
    if fault := not_plain(config, weights):
        raise ModelError(f"{folder}: expected plain LoRA of one rank, found {fault}")
    return Adapter(weights, config["r"], config["lora_alpha"], bool(config.get("use_rslora")))


def not_plain(config: dict[str, object], weights: dict[str, Tensor]) -> str | None:
    """What makes an adapter of this configuration more than delta W = s B A with one s; None if nothing does."""
    if config.get("peft_type") != "LORA":
        return f"peft_type {config.get('peft_type')}"
    for name in ("rank_pattern", "alpha_pattern"):
        if config.get(name):
            return f"{name} {config[name]}"
    return next((name for name in weights if not name.endswith((IN, *_OUTPUTS))), None)


def write(adapter: Adapter, folder: Path) -> None:
    """Write the adapter's weights, rank and alpha over those in `folder`."""
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"r": adapter.rank, "lora_alpha": adapter.alpha}
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    whole = {name: weight.contiguous() for name, weight in adapter.weights.items()}
    save_file(whole, folder / WEIGHTS_FILE, metadata={"format": "pt"})
