"""The architectures that GGUF holds: how each is named there, what is written about it, and what is refused.

llama.cpp computes each architecture in one way. An option of a model that it does not read is refused here, so no
file answers otherwise than the model does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from alignkit.errors import ExportError

Refusals = Callable[[Any], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture of llama.cpp."""

    arch: str
    """Its name in GGUF."""
    activation: str
    about: Callable[[Any, Any], None] = lambda _writer, _config: None
    """Writes what this architecture has beyond the common keys, from (writer, text config)."""
    refusals: Refusals = lambda _config: iter(())
    """What of a text config llama.cpp does not read, one clause each."""
    interleaved: bool = False
    """Whether llama.cpp rotates neighbouring elements of q and k, so their rows are written in another order."""
    norm_shift: float = 0.0
    """Added to the weights of norms, which transformers stores as differences from 1."""

    def require(self, config: Any) -> None:
        """Raise ExportError if llama.cpp would compute a model with this text config differently."""
        reasons = [*_common_refusals(config, self), *self.refusals(config)]
        if reasons:
            raise ExportError(f"GGUF cannot hold this {config.model_type} model: {'; '.join(reasons)}")


def rope_of(config: Any) -> dict[str, Any]:
    """The rotary parameters of the layers that see everything."""
    found = dict(config.rope_parameters)
    return dict(found.get("full_attention", found))


def head_size(config: Any) -> int:
    """Elements of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def window_of(config: Any) -> int | None:
    """The window of the layers with sliding attention; None if no layer has one."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    window = getattr(config, "sliding_window", None)
    return window if getattr(config, "use_sliding_window", True) else None


def context_of(config: Any, family: Family) -> int:
    """The length up to which llama.cpp computes as the model does."""
    window, most = window_of(config), int(config.max_position_embeddings)
    return min(most, window) if window is not None and family.arch not in _SLIDING else most


_SLIDING = frozenset({"gemma2", "gemma3"})
"""Architectures whose sliding windows llama.cpp knows; others are written with the window as their length."""
_ROPES = {"default", "linear", "llama3"}


def _common_refusals(config: Any, family: Family) -> Iterator[str]:
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != family.activation:
        yield f"its activation is {activation}, expected {family.activation}"
    kind = rope_of(config).get("rope_type", "default")
    if kind not in _ROPES or (kind == "llama3" and family.arch != "llama"):
        yield f"its rotary embeddings are scaled with {kind}, expected one of {', '.join(sorted(_ROPES))}"
    if getattr(config, "mlp_bias", False):
        yield "its MLP has biases (mlp_bias)"


def _gemma(writer: Any, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma2(writer: Any, config: Any) -> None:
    _gemma(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)


def _gemma3(writer: Any, config: Any) -> None:
    _gemma(writer, config)
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])


def _gemma_refusals(every: int, of_27b: int) -> Refusals:
    """What llama.cpp fixes for Gemma: full attention in each `every`-th layer, and the scale of the queries.

    `of_27b` is the number of layers by which it knows the model whose scale is hidden_size / heads.
    """

    def refusals(config: Any) -> Iterator[str]:
        layers = config.num_hidden_layers
        expected = [
            "full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)
        ]
        if list(config.layer_types) != expected:
            yield f"its layers do not have full attention in each {every}-th alone (layer_types)"
        scale = config.hidden_size / config.num_attention_heads if layers == of_27b else head_size(config)
        if config.query_pre_attn_scalar != scale:
            yield f"query_pre_attn_scalar is {config.query_pre_attn_scalar}, expected {scale:g}"
        if every == 2 and not (config.attn_logit_softcapping and config.final_logit_softcapping):
            yield "its logits have no soft caps"
        if every == 6 and getattr(config, "attn_logit_softcapping", None):
            yield "its attention has a soft cap (attn_logit_softcapping)"

    return refusals


_GEMMA3 = Family("gemma3", "gelu_pytorch_tanh", _gemma3, _gemma_refusals(6, 62), norm_shift=1.0)
FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "silu", interleaved=True),
    "mistral": Family("llama", "silu", interleaved=True),
    "qwen2": Family("qwen2", "silu"),
    "qwen3": Family("qwen3", "silu"),
    "gemma2": Family("gemma2", "gelu_pytorch_tanh", _gemma2, _gemma_refusals(2, 46), norm_shift=1.0),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
}
"""transformers' model_type -> the family."""


def family_of(model_type: str | None) -> Family:
    """The family of an architecture. Raises ExportError, which names those that are supported."""
    found = FAMILIES.get(model_type or "")
    if found is None:
        raise ExportError(
            f"{model_type} models cannot be written as GGUF here: expected one of {', '.join(FAMILIES)}. "
            "Export to merged, and convert that with llama.cpp's convert_hf_to_gguf.py if it knows the architecture"
        )
    return found
