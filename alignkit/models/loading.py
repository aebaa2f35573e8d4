"""Loads a causal language model and its tokenizer for training: dtype, attention, quantisation."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit.errors import ModelError
from alignkit.models import ahead
from alignkit.models.stored_weights import reason, unjoined
from alignkit.models.trainable import EXPERTS, quantization_of, require_trainable


def load_causal_lm(
    path: str | Path,
    dtype: str,
    attn_implementation: str | None = None,
    *,
    field: str,
    quantization: str | None = None,
) -> tuple[Any, Any]:
    """The model in `path` (a folder or a hub id) and its tokenizer; never runs code from the checkpoint.

    `dtype` is torch's name of one, or "auto" for the checkpoint's own.

    `quantization`, a name in `QUANTIZATIONS`, sets how weights are stored; products are computed in `dtype`. Raises
    ModelError that names the recipe's `field`.
    """
    tokenizer = load_tokenizer(path, field=field)  # first: it says so if there is no such folder
    return load_weights(path, dtype, attn_implementation, field=field, quantization=quantization), tokenizer


def load_weights(
    path: str | Path,
    dtype: str,
    attn_implementation: str | None = None,
    *,
    field: str,
    quantization: str | None = None,
) -> Any:
    """The model of `load_causal_lm` alone, for a caller that has its tokenizer."""
    import torch  # saves torch and transformers at start-up
    from transformers import AutoModelForCausalLM

    held = None if quantization else ahead.take("model", path, (dtype, attn_implementation))
    if held is not None:
        return held
    options: dict[str, Any] = {"attn_implementation": attn_implementation} if attn_implementation else {}
    if quantization:
        options |= _quantized(quantization, getattr(torch, dtype))
    else:
        options |= dequantising(_read_config(path, field))
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{field}: cannot load {path}: {error}{gated(path, error)}") from error
    except RuntimeError as error:
        if (why := unjoined(error)) is None:
            raise
        raise ModelError(f"{field}: {path} {why}") from error
    if (why := reason(found)) is not None:
        raise ModelError(f"{field}: {path} {why}")
    return model


def load_tokenizer(path: str | Path, *, field: str) -> Any:
    """The tokenizer of the model in `path` (a folder or a hub id). Raises ModelError, which names `field`."""
    from transformers import AutoTokenizer  # saves transformers at start-up

    if str(path).startswith((".", "/", "~")) and not Path(path).is_dir():
        raise ModelError(
            f"{field}: there is no folder {path}; `alignkit models import` makes a model known by its name, "
            "and a folder or a hub id will do"
        )
    held = ahead.take("tokenizer", path, ())
    if held is not None:
        return held
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        if "/" not in str(path) and not Path(path).exists():
            raise ModelError(
                f"{field}: no model {path} is imported, and the hub gave none; `alignkit models import {path}` "
                "makes a model known by its name, and a folder or a hub id will do"
            ) from error
        raise ModelError(f"{field}: cannot load {path}: {error}{gated(path, error)}") from error


def adds_start(tokenizer: Any) -> bool:
    """Whether the tokenizer puts its start token before a text."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def ends_of(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer of the model: its generation config's, else its tokenizer's end token."""
    given = model.generation_config.eos_token_id
    if given is None:
        given = tokenizer.eos_token_id
    return [given] if isinstance(given, int) else list(given or [])


def gated(model: str | Path, error: BaseException) -> str:
    """Completes the message of a model that the hub gives only to those who accepted its licence; else empty."""
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    refused = any(type(one).__name__ == "GatedRepoError" for one in chain)
    if not refused and "gated repo" not in str(error):
        return ""
    return (
        f". The model is gated: accept its licence at https://huggingface.co/{model}, then run `hf auth login` "
        "with an account that did"
    )


def _read_config(path: str | Path, field: str) -> dict[str, Any]:
    """The configuration of a model in a folder or on the hub. Raises ModelError if it cannot be trained."""
    from transformers import PreTrainedConfig  # saves transformers at start-up

    try:
        config, _ = PreTrainedConfig.get_config_dict(path)
        require_trainable(config)
    except (OSError, ValueError) as error:
        raise ModelError(f"{field}: cannot load {path}: {error}") from error
    except ModelError as error:
        raise ModelError(f"{field}: {path}: {error}") from error
    return dict(config)


def dequantising(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for from_pretrained that turn a quantised checkpoint into floating point while loading."""
    from transformers import FineGrainedFP8Config, Mxfp4Config  # saves transformers at start-up

    kinds = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
    kind = kinds.get(quantization_of(config) or "")
    return {} if kind is None else {"quantization_config": kind(dequantize=True)}


def experts_of(config: Any) -> int:
    """The number of experts of a mixture of experts; 0 for a dense model."""
    text = config.get_text_config()
    found = [getattr(text, name, None) for name in EXPERTS]
    parts = getattr(text, "ffn_config", None)
    return next((count for count in [*found, getattr(parts, "moe_num_experts", None)] if count), 0)


QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
"""QLoRA storage of frozen weights -> bitsandbytes options."""


def _quantized(name: str, dtype: Any) -> dict[str, Any]:
    """Arguments for from_pretrained that quantise the weights on this process's GPU."""
    import torch  # saves torch and transformers at start-up
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(bnb_4bit_compute_dtype=dtype, **QUANTIZATIONS[name])
    place = {"": int(os.environ.get("LOCAL_RANK", "0"))} if torch.cuda.is_available() else {"": "cpu"}
    return {"quantization_config": config, "device_map": place}
