"""Training that starts from an adapter: reads its folder, loads it for training, and keeps a frozen copy of it.

The copy is the model before training, which all references mean. TRL's DPOTrainer makes this copy itself, under the
same name; `keep_start` makes it for the other trainers. Importing this module imports neither torch nor peft.
"""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from alignkit.adapter_sections import HEAD_MODULES, LoraSection
from alignkit.errors import ModelError
from alignkit.models.loading import experts_of
from alignkit.models.trainable import OF_EXPERTS

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
START = "ref"
"""Name of the frozen copy, as in TRL."""
PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""peft's named initialisations that leave the base weights unchanged; all others change them."""

_REFUSED = ("modules_to_save", "layer_replication", "trainable_token_indices", "alora_invocation_tokens")
"""Config entries beyond plain LoRA: a copy of such an adapter would change the model, or not be an exact copy."""
_PARTS = (".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".lora_magnitude_vector")


def lora_of(folder: Path) -> LoraSection:
    """The LoRA section of the adapter in `folder`. Raises ModelError unless it can be trained further."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{folder} has no {CONFIG_FILE}: expected the folder of a peft adapter") from error
    except ValueError as error:
        raise ModelError(f"{folder}: {CONFIG_FILE} is not JSON") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{folder}: expected a LoRA adapter")
    _require_plain(folder, config)
    targets = config.get("target_modules")
    try:
        return LoraSection(
            r=config.get("r"),
            alpha=config.get("lora_alpha"),
            dropout=config.get("lora_dropout", 0.0),
            target_modules=targets if isinstance(targets, str) else sorted(targets or ()),
            use_rslora=config.get("use_rslora", False),
        )
    except (ValueError, TypeError) as error:  # pydantic's is a ValueError
        raise ModelError(
            f"{folder}: {CONFIG_FILE} does not describe a LoRA that can be trained further: {error}"
        ) from error


def _require_plain(folder: Path, config: dict[str, Any]) -> None:
    """Raise ModelError unless the adapter is plain LoRA on inner layers and leaves the base weights unchanged."""
    init = config.get("init_lora_weights", True)
    for name in _REFUSED:
        if config.get(name):
            raise ModelError(f"{folder}: expected only LoRA, found {name} {config[name]}")
    if config.get("bias", "none") != "none":
        raise ModelError(f"{folder}: expected bias 'none', found {config['bias']!r}")
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        raise ModelError(f"{folder}: init_lora_weights {init!r} changes the base weights")
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(f"{folder} has no {WEIGHTS_FILE}; pickled weights are not accepted")
    for name in _written(folder):
        if not name.endswith(_PARTS) or HEAD_MODULES & set(name.split(".")):
            raise ModelError(f"{folder}: expected LoRA on inner layers only, found {name}")


def _written(folder: Path) -> set[str]:
    """The names of an adapter's weights."""

    try:
        with safe_open(folder / WEIGHTS_FILE, framework="numpy") as weights:
            return set(weights.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: {WEIGHTS_FILE} is not a safetensors file ({error})") from error


def train_on(model: Any, folder: Path, *, upcast: bool = True) -> Any:
    """Put the adapter in `folder`, which is then trained, on `model` (a causal LM).

    Raises ModelError if it does not fit. `upcast` holds a 16-bit adapter in float32.
    """
    from peft import PeftModel, get_peft_model_state_dict  # saves peft at start-up

    lora_of(folder)
    try:
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=True, autocast_adapter_dtype=upcast)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot load the adapter {folder} onto the model: {error}") from error
    # peft skips weights whose names do not match, with only a warning.
    held = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    if differing := _written(folder) ^ held:
        names = ", ".join(sorted(differing)[:3])
        raise ModelError(f"the adapter {folder} belongs to another model: it does not match in {names}")
    # A published adapter names the service's base model, which peft would look up on the hub at each save.
    adapted.peft_config[adapted.active_adapter].base_model_name_or_path = model.name_or_path
    _cast_like_trl(adapted)
    adapted.add_adapter = partial(_add_in_same_dtype, adapted, adapted.add_adapter, upcast)
    return adapted


def _cast_like_trl(model: Any) -> None:
    """Cast adapters over quantised weights to bfloat16, as TRL does later, so that a copy gets that dtype, too."""
    import torch  # saves torch at the start of the engine manager, which reads adapters

    if not (getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False)):
        return
    for name, weight in model.named_parameters():
        if weight.requires_grad and "lora_magnitude_vector" not in name:
            weight.data = weight.data.to(torch.bfloat16)


def _add_in_same_dtype(model: Any, add: Callable[..., None], upcast: bool, name: str, config: Any) -> None:  # noqa: FBT001
    """Add an adapter like peft's `add_adapter`, in the active adapter's dtype; another dtype would round the copy."""
    add(name, config, autocast_adapter_dtype=upcast)
    for copy, own in _pairs(model, name):
        copy.data = copy.data.to(own.dtype)


def _pairs(model: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """Pairs (weight of the adapter `name`, corresponding weight of the active adapter)."""
    active = f".{model.active_adapter}."
    for place, own in list(model.named_parameters()):
        if active in place:
            yield model.get_parameter(place.replace(active, f".{name}.")), own


def keep_start(model: Any) -> None:
    """Give a peft model that trains a loaded adapter a frozen copy of it, unless it has one."""
    if START in model.peft_config:
        return
    model.add_adapter(START, model.peft_config[model.active_adapter])
    for copy, own in _pairs(model, START):
        copy.data.copy_(own.data)


def start_of(model: Any) -> str | None:
    """The adapter with which a peft model equals the model before training; None for no adapter."""
    return START if START in model.peft_config else None


def peft_config(lora: LoraSection | None, model: Any = None) -> Any:
    """peft's LoraConfig for a recipe's section; None for None.

    `model` is the model it is for. In a multimodal model, only the language model gets adapters: text rows give no
    gradient to the rest, and vLLM would not serve it. In a mixture of experts, `all-linear` leaves out the experts,
    which peft adapts in a form that vLLM refuses, and the matrices that share their names.
    """
    if lora is None:
        return None
    from peft import LoraConfig  # saves peft at start-up

    inside = None if model is None else language_model(model)
    targets = lora.target_modules
    if model is not None and targets == "all-linear" and experts_of(model.config):
        targets = beside_experts(model) or targets
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.use_rslora,
        target_modules=targets,
        exclude_modules=None if inside is None else rf"(?!{re.escape(inside)}\.).*",
        task_type="CAUSAL_LM",
    )


def beside_experts(model: Any) -> list[str]:
    """The names of a mixture's linear modules, without head, experts, router and modules of the same names."""
    from torch.nn import Linear  # saves torch at start-up

    head = model.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, Linear)
        and module is not head
        and not any(part in name for part in ("expert", "router"))
    }
    return sorted(found - OF_EXPERTS)


def language_model(model: Any) -> str | None:
    """The name of the language model inside a multimodal `model`; None for a plain language model."""
    if model.config.get_text_config() is model.config:
        return None
    decoder = model.get_decoder()
    return next((name for name, module in model.named_modules() if name and module is decoder), None)


def adapted_modules(model: Any) -> tuple[str, ...]:
    """The last name parts of the modules that `model`'s adapters change, sorted."""
    places = {name.rpartition(".lora_A.")[0] for name, _ in model.named_parameters()}
    # if a module has two adapted matrices, peft wraps it twice
    names = {place.removesuffix(".base_layer").rpartition(".")[2] for place in places}
    return tuple(sorted(names - {""}))
