"""A model's shape from its configuration, without loading weights or computing anything."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml

from alignkit.errors import ModelError
from alignkit.estimate.devices import EstimateError
from alignkit.estimate.quantising import BYTES, matrices
from alignkit.estimate.upstream import is_masked
from alignkit.methods.work import ModelUse
from alignkit.models.adapters import peft_config
from alignkit.models.loading import experts_of
from alignkit.models.stored_weights import BUILDING, changed, require_whole


@dataclass(frozen=True, slots=True)
class Shape:
    """Counts of one model as used by a recipe."""

    source: str
    """Source of the configuration."""
    parameters: int
    trainable: int
    weight_bytes: int
    """Bytes of all parameters as stored."""
    quantised: int
    """Number of parameters that are stored quantised."""
    quantised_bytes: int
    largest_quantised: int
    """Parameters of the largest quantised matrix, which is dequantised for its products."""
    trained_bytes: int
    """Bytes of the trainable parameters."""
    largest_trained: int
    """Bytes of the largest single trainable tensor."""
    layers: int
    layer_parameters: int
    """Parameters of one layer, including adapters."""
    active: int
    """Parameters that a token passes through: all, but for the experts that its router leaves out."""
    multiplied: int
    """Active parameters of all layers; each takes part in one multiply-add per token."""
    hidden: int
    attention_width: int
    """Number of attention heads times their width."""
    cached: int
    """Values in the KV cache per token."""
    vocabulary: int
    max_positions: int | None
    embedding_trains: bool
    head_trains: bool


def configuration(use: ModelUse) -> tuple[Any, str]:
    """The model's configuration and its source: its folder, the table of known models, or the hub."""
    with refusing(f"{use.field}: {use.path}/config.json cannot be read"):
        config, source = _configuration(use)
    _require_decoder(config, use)
    return config, source


def _configuration(use: ModelUse) -> tuple[Any, str]:
    from transformers import AutoConfig  # saves transformers at start-up

    path = Path(use.path)
    if config_file(use).is_file():
        return AutoConfig.from_pretrained(path, trust_remote_code=False), f"{use.path}"
    known = known_name(use.path)
    if known is not None:
        entry = dict(_known()[known])
        return AutoConfig.for_model(entry.pop("model_type"), **entry), f"{known} (known shape)"
    if path.is_absolute() or use.path.count("/") != 1 or path.parent.exists():
        raise _no_model(use)
    try:
        return AutoConfig.from_pretrained(use.path, trust_remote_code=False), f"{use.path} (hub)"
    except (OSError, ValueError) as error:
        raise _no_model(use) from error


def config_file(use: ModelUse) -> Path:
    """The model's config.json, which exists only if its path is a folder."""
    return Path(use.path) / "config.json"


def known_name(path: str) -> str | None:
    """The known model named by a path's last part, possibly with a suffix such as -instruct or -sft; or None."""
    last = Path(path).name.lower()
    fitting = [name for name in _known() if last == name or last.startswith(f"{name}-")]
    return max(fitting, key=len, default=None)


def read_shape(use: ModelUse) -> Shape:
    """The counts of a model.

    Raises EstimateError if its configuration is missing or cannot be used, and ModelError if the checkpoint in its
    folder would not be loaded whole.
    """
    try:
        require_whole(Path(use.path))
    except ModelError as error:
        raise ModelError(f"{use.field}: {use.path}: {error}") from error
    return _read_shape(use, changed(config_file(use)))


@lru_cache(maxsize=64)
def _read_shape(use: ModelUse, _changed: tuple[str, int, int]) -> Shape:
    config, source = configuration(use)
    model = build(config, use)
    bare = model.get_base_model() if use.trains and use.lora else model
    text = config.get_text_config()
    layers = text.num_hidden_layers
    every = list(model.parameters())
    trained = [weight for weight in every if weight.requires_grad]
    head, embedding = bare.get_output_embeddings(), bare.get_input_embeddings()
    apart = {id(weight) for module in (head, embedding) for weight in module.parameters()}
    inside = sum(weight.numel() for weight in every if id(weight) not in apart)
    idle = _idle(bare, config)
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    size = BYTES.get(use.quantization or "")
    stored = list(matrices(bare)) if size else []
    quantised_bytes = round(sum(map(size, stored))) if size else 0
    loaded = sum(weight.nbytes for weight in every) - sum(weight.nbytes for weight in stored)
    return Shape(
        source=source,
        parameters=sum(weight.numel() for weight in every),
        trainable=sum(weight.numel() for weight in trained),
        weight_bytes=loaded + quantised_bytes,
        quantised=sum(weight.numel() for weight in stored),
        quantised_bytes=quantised_bytes,
        largest_quantised=max((weight.numel() for weight in stored), default=0),
        trained_bytes=sum(weight.nbytes for weight in trained),
        largest_trained=max((weight.nbytes for weight in trained), default=0),
        layers=layers,
        layer_parameters=inside // layers,
        active=sum(weight.numel() for weight in every) - idle,
        multiplied=inside - idle,
        hidden=text.hidden_size,
        attention_width=heads * width,
        cached=2 * layers * width * (getattr(text, "num_key_value_heads", None) or heads),
        vocabulary=head.weight.size(0),
        max_positions=getattr(text, "max_position_embeddings", None),
        embedding_trains=embedding.weight.requires_grad,
        head_trains=head.weight.requires_grad,
    )


CHOSEN = ("num_experts_per_tok", "experts_per_token", "moe_top_k", "moe_topk")
"""Configuration keys for the number of experts that a router chooses for a token."""


def _idle(model: Any, config: Any) -> int:
    """Parameters of the experts that a token does not pass through; 0 for a dense model."""
    experts, text = experts_of(config), config.get_text_config()
    if not experts:
        return 0
    chosen = next((count for name in CHOSEN if isinstance(count := getattr(text, name, None), int)), experts)
    inside = sum(weight.numel() for name, weight in model.named_parameters() if ".experts." in name)
    return inside - inside * min(chosen, experts) // experts


def build(config: Any, use: ModelUse) -> Any:
    """The model on torch's meta device, with its adapters, as the trainers build it."""
    from transformers import AutoModelForCausalLM  # saves transformers at start-up

    what = f"{use.field}: {use.path} cannot be built from its configuration"
    with refusing(what), BUILDING, torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, use.dtype))
        if use.trains and use.lora is not None:
            from peft import get_peft_model  # saves peft at start-up

            model = get_peft_model(model, peft_config(use.lora, model))
            if use.quantization is not None:  # as in TRL
                for weight in (weight for weight in model.parameters() if weight.requires_grad):
                    weight.data = weight.data.to(torch.bfloat16)
    if not use.trains:
        model.requires_grad_(False)
    return model


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn any exception of a model's code into an EstimateError that starts with `what`."""
    try:
        yield
    except EstimateError:
        raise
    except Exception as error:  # each model's code checks its configuration differently
        why = " ".join(str(error).partition("\nModel type should be one of")[0].split())
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        raise EstimateError(f"{what}: {kind}{why}") from error


def _require_decoder(config: Any, use: ModelUse) -> None:
    """Raise EstimateError unless the model is a decoder: a stack of causal layers, dense or of experts."""
    text = config.get_text_config()
    heads, layers = (getattr(text, name, None) for name in ("num_attention_heads", "num_hidden_layers"))
    masked = is_masked(config.model_type) and not getattr(config, "is_decoder", False)
    kinds = {
        "an encoder with a decoder": config.is_encoder_decoder,
        "an encoder": masked,
        "not a stack of layers": layers is None,
        "not a stack of attention layers": heads is None,
    }
    for kind in (kind for kind, is_one in kinds.items() if is_one):
        raise EstimateError(
            f"a {config.model_type} model is {kind}: estimates support only decoders with num_hidden_layers"
        )
    for name, found in (("num_attention_heads", heads), ("num_hidden_layers", layers)):
        if not isinstance(found, int) or found < 1:
            raise EstimateError(f"{use.field}: {use.path}: {name}: expected 1 or more, found {found!r}")


ALL_EXPERTS: dict[str, Any] = {
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "first_k_dense_replace": 0,
}
"""Configuration keys that make some layers of a mixture of experts dense -> the value that makes none so."""


def with_layers(config: Any, layers: int) -> Any:
    """A copy of the configuration with that many layers."""
    shorter = copy.deepcopy(config)
    shorter.num_hidden_layers = layers
    if getattr(shorter, "layer_types", None):  # one entry per layer, such as sliding or full attention
        shorter.layer_types = shorter.layer_types[:layers]
    for (
        name,
        every,
    ) in ALL_EXPERTS.items():  # layers of experts are the most and the larger: all count as such
        if getattr(shorter, name, None) is not None:
            setattr(shorter, name, every)
    return shorter


@cache
def _known() -> dict[str, dict[str, Any]]:
    values: dict[str, dict[str, Any]] = yaml.safe_load(
        Path(__file__).with_name("known_models.yaml").read_text(encoding="utf-8")
    )
    return values


def known_models() -> tuple[str, ...]:
    """Names of the models whose shape is known without a folder."""
    return tuple(_known())


def _no_model(use: ModelUse) -> EstimateError:
    return EstimateError(
        f"{use.field}: expected a folder with a config.json, a hub id, or a name that starts with one of "
        f"{', '.join(_known())}, found {use.path!r}"
    )
