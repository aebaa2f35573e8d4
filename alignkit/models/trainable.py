"""Checks whether a model can be trained by its config.json alone, without loading weights or torch.

Import, job creation and every run use the same checks, so that no run fails after it has waited for a device.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from alignkit.errors import ModelError

DEQUANTISED = frozenset({"fp8", "mxfp4"})
"""Quantisations that transformers converts to floating point while loading a checkpoint."""
QUANTISED_BESIDE = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq"}
"""File that tells of quantised weights beside config.json, which then need not -> method."""
FROZEN_UNDER_LORA = frozenset({"bitsandbytes"})
"""Quantisations whose weights stay quantised and frozen while adapters train."""


def config_of(folder: Path) -> dict[str, Any]:
    """The configuration in `folder`. Raises ModelError if it is missing or not a JSON object."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError("it has no config.json: expected a model folder in Hugging Face format") from error
    except ValueError as error:
        raise ModelError("its config.json is not JSON") from error
    if not isinstance(config, dict):
        raise ModelError("its config.json is not a JSON object")
    beside = next((method for name, method in QUANTISED_BESIDE.items() if (folder / name).is_file()), None)
    return config if beside is None else {"quantization_config": {"quant_method": beside}} | config


def quantization_of(config: Mapping[str, Any]) -> str | None:
    """The quantisation method of a checkpoint's weights, in lower case; None if they are not quantised."""
    for part in (config, config.get("text_config")):
        found = part.get("quantization_config") if isinstance(part, Mapping) else None
        if isinstance(found, Mapping):
            on_load = found.get("load_in_4bit") or found.get("load_in_8bit")
            return str(found.get("quant_method") or ("bitsandbytes" if on_load else "unknown")).lower()
    return None


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Configuration keys for the number of experts in a mixture."""
OF_EXPERTS = frozenset(
    {"experts", "gate", "router", "gate_proj", "up_proj", "gate_up_proj", "down_proj", "w1", "w2", "w3"}
)
"""Names of the matrices of a mixture's experts and router; dense parts of the same model may have them too."""


def is_mixture(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config.json is a mixture of experts."""
    parts = [config.get("text_config"), config, config.get("ffn_config")]
    return any(part.get(name) for part in parts if isinstance(part, Mapping) for name in EXPERTS)


_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")


def positions_of(config: Mapping[str, Any]) -> int | None:
    """The maximum number of tokens for this configuration; None if it sets no limit."""
    text = config.get("text_config")
    for part in (text if isinstance(text, Mapping) else {}, config):
        for name in _POSITIONS:
            if isinstance(part.get(name), int) and part[name] > 0:
                return int(part[name])
    return None


def vocabulary_of(config: Mapping[str, Any]) -> int | None:
    """The number of tokens that a model with this config.json has embeddings of; None if it does not say."""
    text = config.get("text_config")
    for part in (text if isinstance(text, Mapping) else {}, config):
        if isinstance(part.get("vocab_size"), int) and part["vocab_size"] > 0:
            return int(part["vocab_size"])
    return None


def vocabulary_in(folder: Path) -> int | None:
    """`vocabulary_of` the model in `folder`; None for one that is not in a folder or cannot be read."""
    try:
        return vocabulary_of(config_of(folder))
    except ModelError:
        return None


ENDS = "generation_config.json"
"""The file in which transformers keeps the tokens that end an answer."""


def ends_in(folder: Path) -> list[int]:
    """The end tokens of the generation config in `folder`; empty if it has none."""
    try:
        found = json.loads((folder / ENDS).read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return []
    return [found] if isinstance(found, int) else list(found or [])


def length_within(folder: Path, asked: int | None, default: int) -> int:
    """Maximum tokens of a training row: `asked`, or `default` (limited to the model's positions) if None.

    Raises ValueError if `asked` exceeds the positions of the model in `folder`. A model that is not in a folder, or
    whose configuration cannot be read, sets no limit here.
    """
    try:
        most = positions_of(config_of(folder))
    except ModelError:
        most = None
    if asked is None:
        return default if most is None else min(default, most)
    if most is not None and asked > most:
        raise ValueError(f"expected at most {most}, the positions of the model, found {asked}")
    return asked


def refusals(config: Mapping[str, Any], *, all_weights: bool = False) -> Iterator[str]:
    """The reasons why a model with this configuration cannot train, one clause each; `all_weights`: without LoRA."""
    quantization = quantization_of(config)
    if quantization is not None and quantization not in DEQUANTISED:
        if quantization not in FROZEN_UNDER_LORA:
            yield (
                f"its weights are quantised with {quantization.upper()}, which cannot be trained; use the "
                "checkpoint from which it was quantised"
            )
        elif all_weights:
            yield f"its weights are quantised with {quantization}, so only adapters can be trained"
    name = config.get("model_type")
    reason = architectures()["refused"].get(name)
    if reason is not None and not config.get("is_decoder"):
        yield f"{name} models cannot be trained: {reason}"


def require_trainable(config: Mapping[str, Any], *, all_weights: bool = False) -> None:
    """Raise ModelError with one sentence if a model with this configuration cannot be trained."""
    if reasons := list(refusals(config, all_weights=all_weights)):
        raise ModelError("; ".join(reasons))


@cache
def architectures() -> dict[str, Any]:
    """Support of transformers' causal architectures: `agrees`, `refused` (with the reason) and `not_built`."""
    file = Path(__file__).with_name("architectures.yaml")
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found
