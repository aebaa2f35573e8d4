"""Base and adapter merged into one model in safetensors, which needs no PEFT."""

from pathlib import Path
from typing import Any

from alignkit.errors import ExportError
from alignkit.export.card import CARD, card_of
from alignkit.export.options import ExportOptions
from alignkit.export.source import Source
from alignkit.models.adapters import lora_of
from alignkit.models.loading import load_weights
from alignkit.models.trainable import DEQUANTISED, config_of, quantization_of

NOTE = "All weights in safetensors: the adapter was added to its base in float32, and stored in the base's dtype."
NOTE_FULL = "All weights in safetensors, as trained."


def write(source: Source, folder: Path, options: ExportOptions) -> None:
    """Write the merged model with its tokenizer, chat template, generation config and card."""
    model, tokenizer = load_merged(source, options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    note = NOTE if source.is_adapter else NOTE_FULL
    card = card_of(source, library="transformers", relation="finetune", note=note)
    (folder / CARD).write_text(card, encoding="utf-8")


def full_files(source: Source) -> dict[str, Path | bytes]:
    """The name of each file of a model with all weights trained -> where it is, or its content."""
    files: dict[str, Path | bytes] = {path.name: path for path in source.folder.iterdir() if path.is_file()}
    card = card_of(source, library="transformers", relation="finetune", note=NOTE_FULL)
    return files | {CARD: card.encode()}


def load_merged(source: Source, options: ExportOptions) -> tuple[Any, Any]:
    """The model with its adapter merged, in the dtype of the base, and its tokenizer.

    Each adapted matrix is W + s B A, added in float32 and rounded once. Raises ExportError if the adapter cannot be
    merged, ModelError if something cannot be loaded.
    """
    tokenizer = source.tokenizer()
    quantized = _quantization(source)
    if quantized is not None and quantized not in DEQUANTISED:
        raise ExportError(
            f"the weights of {source.named_base} are quantised with {quantized}, and an adapter cannot be added to "
            "them exactly: export the adapter, or train over the checkpoint from which it was quantised"
        )
    options.report(f"Loading {source.named_base} …")
    model = load_weights(source.base, "bfloat16" if quantized else "auto", field=source.field)
    if source.is_adapter:
        options.report("Merging the adapter …")
        model = _merge(model, source)
    if ends := source.ends():
        model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    _drop_sampling_without_effect(model.generation_config)
    return model, tokenizer


def _quantization(source: Source) -> str | None:
    """The quantisation of the base's weights; None for a hub id, whose configuration is read when it is loaded."""
    return quantization_of(config_of(Path(source.base))) if Path(source.base).is_dir() else None


def _merge(model: Any, source: Source) -> Any:
    """`model` with the adapter of `source` in its weights."""
    import torch  # saves torch and peft at start-up
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    lora_of(source.folder)
    try:
        adapted = PeftModel.from_pretrained(model, source.folder)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ExportError(f"the adapter does not fit {source.named_base}: {error}") from error
    with torch.no_grad():
        for layer in [one for one in adapted.modules() if isinstance(one, BaseTunerLayer)]:
            base = layer.get_base_layer()
            dtypes = {name: weight.dtype for name, weight in base.named_parameters()}
            base.float()
            layer.merge()
            for name, weight in base.named_parameters():
                weight.data = weight.data.to(dtypes[name])
    return adapted.unload()


def _drop_sampling_without_effect(generation: Any) -> None:
    """Leave out sampling options of a greedy generation config, with which transformers saves nothing."""
    if not generation.do_sample:
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p"):
            setattr(generation, name, None)
