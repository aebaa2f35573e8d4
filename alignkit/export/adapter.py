"""The adapter as trained, with the tokenizer, the chat template, the card and the base model's hub id."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from alignkit.errors import ExportError
from alignkit.export.card import CARD, card_of
from alignkit.export.options import ExportOptions
from alignkit.export.source import Source
from alignkit.models.adapters import CONFIG_FILE, WEIGHTS_FILE
from alignkit.models.trainable import ENDS

NOTE = "A LoRA adapter in PEFT's form, with its tokenizer and chat template."
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Files in which transformers keeps a tokenizer and its chat template."""


def write(source: Source, folder: Path, options: ExportOptions) -> None:
    """Write the adapter. Raises ExportError for a model with all weights trained, which has none."""
    for name, content in files_of(source).items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            shutil.copyfile(content, folder / name)
    if source.base_id is None:
        options.report(
            f"The hub id of {source.named_base} is not known, so the adapter names it by this name"
        )


def files_of(source: Source) -> Mapping[str, Path | bytes]:
    """The name of each file of the archive -> where it is, or its content.

    Raises ExportError if there is no adapter.
    """
    if not source.is_adapter:
        raise ExportError(
            f"{source.name} has all its weights trained, so it has no adapter: choose merged or gguf"
        )
    files: dict[str, Path | bytes] = {path.name: path for path in _tokenizer_files(source)}
    files[WEIGHTS_FILE] = source.folder / WEIGHTS_FILE
    config = json.loads((source.folder / CONFIG_FILE).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = source.named_base
    files[CONFIG_FILE] = json.dumps(config, indent=2).encode()
    if ends := source.ends():
        files[ENDS] = json.dumps({"eos_token_id": ends}).encode()
    files[CARD] = card_of(source, library="peft", relation="adapter", note=NOTE).encode()
    return files


def _tokenizer_files(source: Source) -> Iterator[Path]:
    """The files of the tokenizer: those beside the adapter, and what the base has if the adapter has no tokenizer."""
    own = any(source.folder.glob("tokenizer*"))
    for folder in (source.folder,) if own else (Path(source.base), source.folder):
        yield from (folder / name for name in TOKENIZER if (folder / name).is_file())
