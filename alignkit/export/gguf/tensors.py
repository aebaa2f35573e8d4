"""The weights of a model as GGUF stores them: names, order of rows, types."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alignkit.errors import ExportError, nearest
from alignkit.export.gguf.families import Family, head_size, rope_of

STORED = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q5_1": "MOSTLY_Q5_1",
    "q5_0": "MOSTLY_Q5_0",
    "q4_1": "MOSTLY_Q4_1",
    "q4_0": "MOSTLY_Q4_0",
}
"""How weights are stored -> GGUF's name of such a file. These are the types that the gguf package can write."""
FEW_BITS = ("q5_1", "q5_0", "q4_1", "q4_0")
"""Types with which embedding and head are stored in 8 bits."""
_AUTO = {"bfloat16": "bf16", "float16": "f16", "float32": "f16"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the file; `values` computes it, so only one is in memory at a time."""

    name: str
    shape: tuple[int, ...]
    stored: str
    """A name in STORED."""
    values: Any
    """A function without arguments that returns the float32 values, a numpy array of `shape`."""


def storage(quantize: str, dtype: str) -> str:
    """The name in STORED for an option and the dtype of a model's weights. Raises ExportError if it is unknown."""
    if quantize == "auto":
        return _AUTO.get(dtype, "f16")
    if quantize not in STORED:
        names = ["auto", *STORED]
        raise ExportError(
            f"--quantize {quantize}: expected one of {', '.join(names)}{nearest(quantize, names)}; llama.cpp's "
            "llama-quantize makes other types from the f16 or bf16 file"
        )
    return quantize


def tensors_of(model: Any, family: Family, stored: str) -> Iterator[Tensor]:
    """The tensors of `model`. Raises ExportError if GGUF has no name for one of them."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map  # an extra

    config = model.config.get_text_config()
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == family.arch)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        inside = _text_name(name)
        if inside is None or (tied and inside == "lm_head.weight"):
            continue
        found = names.get_name(inside, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ExportError(f"GGUF has no place for the weight {name} of a {config.model_type} model")
        yield Tensor(
            found, tuple(weight.shape), _type(found, weight, stored), _values(weight, inside, config, family)
        )
    if rope_of(config).get("rope_type") == "llama3":
        factors = rope_factors(rope_of(config), head_size(config))
        yield Tensor("rope_freqs.weight", (len(factors),), "f32", lambda: factors)


def rope_factors(rope: dict[str, Any], size: int) -> Any:
    """By how much each rotary frequency of Llama 3.1 is lowered, [size / 2] float32.

    Wavelengths beyond original / low_freq_factor are scaled by `factor`, those below original / high_freq_factor are
    kept, and between them the frequency is interpolated (as in transformers' llama3 rotary embeddings).
    """
    import torch  # saves torch at start-up

    original = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    lengths = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    share = ((original / lengths - low) / (high - low)).clamp(0.0, 1.0)
    return (1 / ((1 - share) / factor + share)).float().numpy()


def _text_name(name: str) -> str | None:
    """The name of a weight as in a model of text alone; None for what belongs to a vision tower."""
    if any(part in name for part in ("vision_tower.", "multi_modal_projector.")):
        return None
    return name.replace("model.language_model.", "model.").replace("language_model.model.", "model.")


def _type(name: str, weight: Any, stored: str) -> str:
    """How a tensor is stored: norms and biases as f32, rows that no block divides as f16."""
    if weight.ndim < 2 or "_norm." in name:
        return "f32"
    if name in ("token_embd.weight", "output.weight") and stored in FEW_BITS:
        stored = "q8_0"
    return "f16" if stored.startswith("q") and weight.shape[-1] % 32 else stored


def _values(weight: Any, name: str, config: Any, family: Family) -> Any:
    def values() -> Any:
        found = weight.detach().float().cpu()
        if family.norm_shift and name.endswith("norm.weight"):
            found = found + family.norm_shift
        if family.interleaved and (heads := _heads(name, config)):
            half = found.shape[0] // heads // 2
            found = found.reshape(heads, 2, half, *found.shape[1:]).transpose(1, 2).reshape(found.shape)
        return found.contiguous().numpy()

    return values


def _heads(name: str, config: Any) -> int:
    """The heads whose rotated rows a weight holds; 0 for weights without."""
    part = name.split(".")[-2]
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(part, 0)
