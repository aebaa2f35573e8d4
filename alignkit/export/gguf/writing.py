"""Writes a GGUF file: the keys first, then one tensor after the other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkit.export.gguf.families import Family, context_of, family_of, head_size, rope_of
from alignkit.export.gguf.tensors import STORED, tensors_of
from alignkit.export.gguf.vocabulary import Vocabulary
from alignkit.export.source import Source


def write_file(file: Path, source: Source, model: Any, vocabulary: Vocabulary, stored: str) -> None:
    """Write `model` into `file`, with its weights as `stored`, a name in STORED.

    Raises ExportError if GGUF has no place for one of them.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType  # an extra
    from gguf.quants import quant_shape_to_byte_shape, quantize

    config = model.config.get_text_config()
    family = family_of(config.model_type)
    tensors = list(tensors_of(model, family, stored))
    writer = GGUFWriter(file, family.arch)
    try:
        _about_the_model(writer, source, LlamaFileType[STORED[stored]])
        _about_the_architecture(writer, config, family, len(vocabulary.tokens))
        vocabulary.write(writer)
        for tensor in tensors:
            kind = GGMLQuantizationType[tensor.stored.upper()]
            shape, dtype = _as_bytes(tensor.shape, kind, quant_shape_to_byte_shape)
            writer.add_tensor_info(tensor.name, shape, dtype, _size(shape, dtype), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(quantize(tensor.values(), GGMLQuantizationType[tensor.stored.upper()]))
    finally:
        writer.close()


def _as_bytes(shape: tuple[int, ...], kind: Any, packed: Callable[..., tuple[int, ...]]) -> tuple[Any, Any]:
    """(shape, dtype) of the array that holds a tensor: of bytes, except for the plain types."""
    import torch  # saves torch at start-up

    plain = {"F32": torch.float32, "F16": torch.float16}
    dtype = torch.empty(0, dtype=plain.get(kind.name, torch.uint8)).numpy().dtype
    return shape if kind.name in plain else packed(shape, kind), dtype


def _size(shape: tuple[int, ...], dtype: Any) -> int:
    size = int(dtype.itemsize)
    for length in shape:
        size *= length
    return size


def _about_the_model(writer: Any, source: Source, file_type: Any) -> None:
    from gguf import GGML_QUANT_VERSION  # an extra

    writer.add_type("model")
    writer.add_name(source.name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, source.named_base)
    if source.base_id is not None:
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{source.base_id}")
    writer.add_tags(["alignkit"])
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _about_the_architecture(writer: Any, config: Any, family: Family, tokens: int) -> None:
    writer.add_context_length(context_of(config, family))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(tokens)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_rope_dimension_count(head_size(config))
    rope = rope_of(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        _linear(writer, rope["factor"])
    family.about(writer, config)


def _linear(writer: Any, factor: float) -> None:
    from gguf import RopeScalingType  # an extra

    writer.add_rope_scaling_type(RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(factor)
