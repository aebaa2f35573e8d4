"""One GGUF file with weights, tokenizer and chat template, for llama.cpp, Ollama and what is built on them."""

from pathlib import Path

from alignkit import extras
from alignkit.export.card import CARD, card_of
from alignkit.export.gguf.checking import check
from alignkit.export.gguf.families import family_of
from alignkit.export.gguf.tensors import STORED, storage
from alignkit.export.gguf.vocabulary import vocabulary_of
from alignkit.export.gguf.writing import write_file
from alignkit.export.merged import load_merged
from alignkit.export.options import ExportOptions
from alignkit.export.source import Source
from alignkit.models.trainable import config_of

__all__ = ["STORED", "write", "write_gguf"]


def write(source: Source, folder: Path, options: ExportOptions) -> None:
    """Write the GGUF file and its card."""
    file = write_gguf(source, folder, options)
    note = f"`{file.name}`: weights, tokenizer and chat template in GGUF, for llama.cpp and Ollama."
    card = card_of(source, library="gguf", relation="quantized", note=note)
    (folder / CARD).write_text(card, encoding="utf-8")


def write_gguf(source: Source, folder: Path, options: ExportOptions) -> Path:
    """Write the GGUF file into `folder` and return its path.

    Raises ExportError if GGUF cannot hold the model, before its weights are loaded where the base is a folder.
    """
    extras.require("gguf", extra="gguf", purpose="an export to GGUF")
    if Path(source.base).is_dir():
        family_of(config_of(Path(source.base)).get("model_type"))
    storage(options.quantize, "float32")
    model, tokenizer = load_merged(source, options)
    config = model.config.get_text_config()
    family = family_of(config.model_type)
    family.require(config)
    stored = storage(options.quantize, str(model.dtype).removeprefix("torch."))
    file = folder / f"{source.name.replace(':', '_')}-{stored.upper()}.gguf"
    options.report(f"Writing {file.name} …")
    vocabulary = vocabulary_of(tokenizer, model.get_input_embeddings().weight.shape[0])
    write_file(file, source, model, vocabulary, stored)
    if options.check:
        check(file, model, tokenizer, stored, options.report)
    return file
